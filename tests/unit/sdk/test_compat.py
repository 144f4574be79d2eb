"""The classic names keep their documented manners, without what went wrong with the original."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import livetune
from livetune import compat
from livetune.compat import liveTrigger, liveVar
from livetune.errors import DeclarationError, InvalidNameError
from livetune.job import live_jobs
from support.forking import in_child


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[compat._Process]:
    """A process that has made nothing classic yet; its daemon is nowhere."""
    fresh = compat._Process()
    monkeypatch.setattr(compat, "_process", fresh)
    monkeypatch.setenv("LIVETUNE_ENDPOINT", "unix:/nowhere")
    monkeypatch.setenv("LIVETUNE_JOB", "classic")
    yield fresh
    for job in live_jobs():
        job.finish()


def ask(name: str, value: Any, revision: int = 1) -> None:
    """A change comes from outside, and waits for the safe point."""
    from livetune import messages as m

    (job,) = live_jobs()
    job._deliver(m.ChangeReceived(revision, ((name, value),)))


def fire(name: str, revision: int = 1) -> None:
    from livetune import messages as m

    (job,) = live_jobs()
    job._deliver(m.ChangeReceived(revision, (), (name,)))


def test_it_is_read_and_shows_a_change_at_the_next_read() -> None:
    lr = liveVar(0.1, "lr")
    assert [0.1, 0.1, 0.1, 0.1] == [lr(), lr["value"], lr.var_value, lr.value]
    ask("lr", 0.5)
    assert 0.5 == lr()
    assert ["classic"] == [job.name for job in live_jobs()]


def test_all_variables_of_a_change_show_in_the_same_iteration() -> None:
    from livetune import messages as m

    a, b = liveVar(1.0, "a"), liveVar(1.0, "b")
    (job,) = live_jobs()
    seen = []
    for iteration in range(4):
        first = a()
        if iteration == 2:
            job._deliver(m.ChangeReceived(1, (("a", 2.0), ("b", 2.0))))
        seen.append((first, b()))
    assert [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (2.0, 2.0)] == seen
    assert 4 == job.current_step == a._variable.applied_step


def test_asking_whether_it_changed_does_not_end_the_iteration() -> None:
    lr = liveVar(0.1, "lr")
    (job,) = live_jobs()
    told = []
    for iteration in range(4):
        if iteration == 2:
            ask("lr", 0.5)
        told.append((lr.changed(), lr()))
    assert [(False, 0.1), (False, 0.1), (True, 0.5), (False, 0.5)] == told
    assert 4 == job.current_step


def test_a_job_of_the_programs_own_keeps_its_safe_point() -> None:
    with livetune.init("own", endpoint="unix:/nowhere") as job:
        lr = liveVar(0.1, "lr")
        assert [job] == live_jobs()
        ask("lr", 0.5)
        assert [0.1, 0.1] == [lr(), lr()]
        job.step()
        assert 0.5 == lr()
        assert 1 == job.current_step
        bounded = job.variable("wd", 0.1, max=1.0)
        wd = liveVar(0.1, "wd")
        assert wd == bounded
        with pytest.raises(ValueError, match=r"at most 1\.0"):
            wd.update(2.0)


@pytest.mark.parametrize(("initial", "good", "bad"), [(0.1, 0.5, 1), (3, 5, 0.5), (3, 5, True), (False, True, 1)])
def test_update_sets_it_here_and_takes_its_own_type_only(initial: Any, good: Any, bad: Any) -> None:
    x = liveVar(initial, "x")
    x.update(good)
    assert (good, type(initial)) == (x(), type(x()))
    with pytest.raises(TypeError, match="'x' is of type"):
        x.update(bad)
    assert good == x()
    ask("x", initial)
    assert initial == x()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DeclarationError, match="finite"):
        liveVar(bad, "lr")
    lr = liveVar(0.1, "lr")
    with pytest.raises(ValueError, match="finite"):
        lr.update(bad)
    assert 0.1 == lr()


def test_changed_is_told_once_after_a_change_and_after_an_update() -> None:
    x = liveVar(0.1, "x")
    assert not x.changed()
    x.update(0.1)
    assert not x.changed()
    x.update(0.2)
    assert [True, False] == [x.changed(), x.changed()]
    ask("x", 0.3)
    assert [True, False] == [x.changed(), x.changed()]


def test_it_is_a_number() -> None:
    x, y = liveVar(2.0, "x"), liveVar(4, "y")
    assert [4.0, 4.0, 1.0, 0.5, 8.0, 6.0] == [x * 2, 2 * x, 3 - x, 1 / x, x * y, x + y]
    assert (2.0, "2.00", "2.0", True, True) == (float(x), f"{x:.2f}", str(x), x < 3, x == 2.0)
    assert [False, True] == [bool(liveVar(False, "off")), bool(liveVar(True, "on"))]
    assert {x: "here"}[x] == "here"
    assert [0, 1, 2, 3] == list(range(y))  # type: ignore[call-overload]
    assert "<liveVar x=2.0>" == repr(x)
    assert copy.deepcopy([x])[0] is copy.copy(x) is x
    assert 2.0 == pickle.loads(pickle.dumps(x))()


def test_the_in_place_forms_set_it_and_give_itself() -> None:
    x = was = liveVar(2.0, "x")
    x += 1
    x -= 0.5
    x *= liveVar(2, "two")
    x /= 4
    assert x is was
    assert 1.25 == x()
    n = liveVar(4, "n")
    n += 1
    with pytest.raises(TypeError, match="of type int"):
        n /= 2
    assert 5 == n()


def test_its_attributes() -> None:
    lr = liveVar(0.1, "lr")
    assert ("lr", float, float, 0.1) == (lr.tag, lr.dtype, lr["dtype"], lr["value"])
    lr.var_value = 0.2
    with lr.lock:
        assert 0.2 == lr()
    with pytest.raises(KeyError, match="'values'"):
        lr["values"]  # type: ignore[index]


def test_without_a_daemon_it_has_no_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "CONNECT_SECONDS", 0.1)
    lr = liveVar(0.1, "lr")
    assert (None, None, None) == (lr.port, lr["port"], lr.get_dictionary_port())
    assert [None] == lr.dictionary_port == liveVar.dictionary_port
    with pytest.warns(UserWarning, match="the daemon assigns"):
        liveVar.setPort(5000)


def test_a_tag_used_twice_warns_and_is_the_newer_ones() -> None:
    old = liveVar(0.1, "lr")
    with pytest.warns(UserWarning, match="tag 'lr' is used twice"):
        new = liveVar(0.2, "lr")
    assert (0.1, 0.2) == (old(), new())
    ask("lr", 0.5)
    assert (0.1, 0.5) == (old(), new())
    old.update(0.3)
    assert (0.3, 0.5) == (old(), new())
    with pytest.raises(DeclarationError, match="type int"):
        liveVar(1, "lr")
    assert 0.5 == new()


def test_a_tag_that_is_no_name_is_made_one_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="called 'learning_rate'"):
        lr = liveVar(0.1, "learning rate")
    ask("learning_rate", 0.5)
    assert ("learning rate", 0.5) == (lr.tag, lr())
    with pytest.raises(InvalidNameError):
        liveVar(0.1, "1.")
    with pytest.raises(InvalidNameError):
        liveVar(0.1, 5)  # type: ignore[arg-type]


def test_a_trigger_is_true_once_per_firing() -> None:
    save = liveTrigger("save")
    assert not save()
    fire("save", 1)
    fire("save", 2)
    assert [True, True, False] == [save(), save(), save()]
    assert "save" == save.tag
    with pytest.raises(TypeError, match="by calling it"):
        bool(save)
    with pytest.warns(UserWarning, match="used twice"):
        newer = liveTrigger("save")
    fire("save", 3)
    assert [False, True] == [save(), newer()]
    with pytest.raises(DeclarationError):
        liveVar(0.1, "save")


def test_in_a_forked_child_it_reads_and_makes_no_job() -> None:
    lr = liveVar(0.1, "lr")
    ask("lr", 0.5)
    assert 0.5 == lr()

    def facts() -> list[object]:
        compat._process.after_fork_in_child()
        own = liveVar(0.3, "own")
        trigger = liveTrigger("save")
        return [lr(), own(), own() * 2, trigger(), len(live_jobs()), pickle.loads(pickle.dumps(lr))()]

    assert [0.5, 0.3, 0.6, False, 0, 0.5] == in_child(facts)


@pytest.mark.parametrize(
    ("script", "job"),
    [
        ("/x/train_vgg.py", "train-vgg"),
        ("/x/My Run (2).py", "my-run-2"),
        ("/x/app/__main__.py", "app"),
        ("", "python"),
        ("/x/___.py", "python"),
    ],
)
def test_the_job_is_called_as_the_script(monkeypatch: pytest.MonkeyPatch, script: str, job: str) -> None:
    monkeypatch.delenv("LIVETUNE_JOB")
    monkeypatch.setattr(sys, "argv", [script])
    assert job == compat._job_name()


def test_importing_it_loads_neither_torch_nor_grpc_and_starts_nothing() -> None:
    code = (
        "import sys, threading; from livetune.compat import liveVar\n"
        "print(threading.active_count(), sorted({'torch', 'grpc', 'google.protobuf', 'multiprocessing', 'asyncio'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "1 []" == answer.stdout.strip()
