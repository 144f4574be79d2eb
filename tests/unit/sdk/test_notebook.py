"""What a notebook shows: whole and escaped HTML of bounded size, in the notebook's own colours; and the plain repr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

import livetune
from livetune import messages as m
from livetune.conversation import Identity
from livetune.job import Job
from livetune.messages import AppliedChange
from livetune.notebook import AppliedChanges, constraint
from livetune.specs import Scalar, VariableSpec

EVIL = "</td><script>alert(1)</script>'\"&amp;<b onclick=x>"


class Page(HTMLParser):
    """Reads HTML as a browser would: every tag is closed by its own, and what is text is text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.styles: set[str] = set()
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert [] == self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {"style"} >= {name for name, _ in attrs}
        self.tags[tag] += 1
        self.styles |= {rule.partition(":")[0] for _, style in attrs for rule in (style or "").split(";")}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def change(
    step: int, values: dict[str, tuple[Scalar, Scalar]], reason: str = "", actor: str = "ann@a"
) -> AppliedChange:
    return AppliedChange(4_700 + step, step, values, reason, actor)


@pytest.fixture
def job() -> Job:
    """A job whose driver never runs."""
    return Job(Identity("vgg", "i", 0, 1), endpoint="unix:/nowhere/d.sock")


def connect(job: Job) -> None:
    job._deliver(m.Registered("store", 1, 21_000, 0))
    job._deliver(m.Opened("store", 0))
    answers = tuple(m.VariableAnswer(name, item.value, 1, False) for name, item in job.variables.items())
    job._deliver(m.Declared(answers))


def test_a_job_is_a_table_of_its_variables_its_triggers_and_its_last_changes(job: Job) -> None:
    lr = job.variable("lr", 0.1, min=1e-6, max=1.0, scale="log", unit="1/step", doc="Learning rate.")
    job.variable("mode", "a", choices=["a", "b"])
    save = job.trigger("save", doc="Save now.")
    connect(job)
    job._deliver(m.ChangeReceived(4_711, (("lr", 0.5),), ("save",), "plateau", "ann@a"))
    job.step(8_042)
    page = Page(job._repr_html_())
    assert [
        ["variable", "value", "takes", "revision", "since step", "meaning"],
        ["lr", "0.5 1/step", "float, 1e-06 to 1.0, log scale", "4711", "8042", "Learning rate."],
        ["mode", "'a'", "str, one of a, b", "", "", ""],
        ["trigger", "to consume", "meaning"],
        ["save", "1", "Save now."],
        ["step", "change", "revision", "reason", "who"],
        ["8042", "lr 0.1 → 0.5", "4711", "plateau", "ann@a"],
    ] == page.rows
    assert page.text.startswith("vgg step 8042, port 21000")
    assert page.rows[:2] == Page(lr._repr_html_()).rows
    assert page.rows[3:5] == Page(save._repr_html_()).rows
    assert page.rows[5:] == Page(job.changes._repr_html_()).rows  # type: ignore[attr-defined]


def test_an_empty_job_is_one_line(job: Job) -> None:
    page = Page(job._repr_html_())
    assert ("vgg step 0, not connected", []) == (page.text, page.rows)


def test_texts_of_programs_and_people_are_text(job: Job) -> None:
    job.variable("mode", EVIL, choices=[EVIL, "b"], unit=EVIL, doc=EVIL)
    job.trigger("save", doc=EVIL)
    connect(job)
    job._deliver(m.ChangeReceived(4_711, (("mode", "b"),), (), EVIL, EVIL))
    job._deliver(m.ChangeReceived(4_712, (("mode", EVIL),), (), "", ""))
    job.step(1)
    job._deliver(m.ChangeReceived(4_713, (("mode", "b"),), (), EVIL, EVIL))
    job.step(2)
    page = Page(job._repr_html_())
    assert {"div", "table", "tr", "th", "td", "b", "code", "span"} == set(page.tags)
    assert [["2", f"mode {EVIL!r} → 'b'", "4713", EVIL, EVIL]] == page.rows[-2:-1]
    assert page.rows[1][-1] == EVIL == page.rows[3][-1]


def test_colours_are_the_notebooks_own(job: Job) -> None:
    job.variable("lr", 0.1)
    styles = Page(job._repr_html_()).styles
    assert not {"color", "background-color", "border-color"} & styles
    assert "background:none" in job._repr_html_()  # of rows, where a notebook stripes its tables
    assert 1 == job._repr_html_().count("<tr style='background:none'><td")


def test_a_job_of_a_thousand_variables_of_64_kib_is_shown_in_part(job: Job) -> None:
    for number in range(1_000):
        job.variable(f"v{number}", "x" * 65_000, doc="d" * 65_000)
        job.trigger(f"t{number}", doc="d" * 65_000)
    values: dict[str, tuple[Scalar, Scalar]] = {f"v{one}": ("a" * 65_000, "b") for one in range(1_000)}
    for number in range(60):
        job._changes.append(change(number, values, "r" * 65_000, "a" * 65_000))
    html = job._repr_html_()
    page = Page(html)
    assert 100_000 > len(html)
    assert 1 + 50 + 1 + 50 + 1 + 5 == len(page.rows)
    assert 2 == page.text.count("and 950 more")
    assert "and 55 older" in page.text
    assert "and 995 more" in page.rows[-1][1]
    assert 150_000 > len(Page(job.changes._repr_html_()).text)  # type: ignore[attr-defined]
    assert 51 == len(Page(job.changes._repr_html_()).rows)  # type: ignore[attr-defined]


def test_the_plain_repr_is_bounded_too(job: Job) -> None:
    for number in range(25):
        job.variable(f"v{number}", "x" * 65_000, choices=["x" * 65_000])
    text = repr(job)
    assert text.startswith("<Job vgg, step 0, not connected: v0='xxx")
    assert text.endswith("..., and 5 more>")
    assert 3_000 > len(text)
    assert 300 > len(repr(job.variables["v0"]))


def test_changes_are_a_list_still() -> None:
    changes = [change(1, {"lr": (0.1, 0.2)}), change(2, {"lr": (0.2, 0.3)})]
    shown = AppliedChanges(changes)
    assert (changes, repr(changes), True) == (shown, repr(shown), isinstance(shown, list))
    assert ["2", "1"] == [row[0] for row in Page(shown._repr_html_()).rows[1:]]  # the newest first
    assert ["step", "change", "revision", "reason", "who"] == Page(AppliedChanges()._repr_html_()).rows[0]


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: VariableSpec.declare("x", 1.0), "float"),
        (lambda: VariableSpec.declare("x", 1, minimum=0), "int, at least 0"),
        (lambda: VariableSpec.declare("x", 1.0, maximum=2), "float, at most 2.0"),
        (
            lambda: VariableSpec.declare("x", 1.0, minimum=1e-3, maximum=2, scale="log"),
            "float, 0.001 to 2.0, log scale",
        ),
        (lambda: VariableSpec.declare("x", 1.0, scale="linear"), "float"),
        (lambda: VariableSpec.declare("x", True), "bool"),
        (lambda: VariableSpec.declare("x", "a", choices=["a", "b"]), "str, one of a, b"),
    ],
)
def test_a_constraint_in_words(declare: Callable[[], VariableSpec], words: str) -> None:
    assert words == constraint(declare())


def test_a_finished_job_and_a_variable_that_was_never_changed_say_so() -> None:
    with livetune.init("ends", endpoint="unix:/nowhere/d.sock") as job:
        job.variable("lr", 0.1)
        job.step()
    page = Page(job._repr_html_())
    assert page.text.startswith("ends step 1, ended")
    assert ["lr", "0.1", "float", "", "", ""] == page.rows[1]
