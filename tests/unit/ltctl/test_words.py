"""What ltctl reads and prints, without a daemon: exit codes, arguments, escapes, YAML, tables."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import IO

import click
import grpc
import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from livetune.status import refusal_of
from livetune.v1 import control_pb2, types_pb2
from livetuned.domain.errors import DomainError, Reason
from livetuned.transport.errors import DETAILS_KEY, details
from ltctl import events, render
from ltctl.arguments import parse_assignments, revision, seconds, split_job, split_undo, word
from ltctl.client import metadata
from ltctl.exits import BY_STATUS, CommandError, Exit, ReaderLeftError
from ltctl.options import print_items
from ltctl.text import Table, note, out, safe, table, to_json, to_yaml, width


def test_every_grpc_status_has_an_exit_code() -> None:
    assert {code.name for code in grpc.StatusCode} == set(BY_STATUS)


def test_help_and_completion_load_no_grpc() -> None:
    code = "import sys; from ltctl.main import cli; cli.main(['--help'], standalone_mode=False); print('grpc' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("False\n")
    assert "livetuned" not in answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["lr=0.01"], {"lr": "0.01"}),
        (["a=-1", "b=", "c=x=y"], {"a": "-1", "b": "", "c": "x=y"}),
    ],
)
def test_assignments(words: list[str], texts: dict[str, str]) -> None:
    assert texts == parse_assignments(words, "example")


@pytest.mark.parametrize("words", [[], ["lr"], ["=1"], ["lr=1", "lr=2"]])
def test_assignments_that_are_none(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse_assignments(words, "ltctl set JOB lr=0.01")


def test_the_job_comes_first_but_on_its_own_port() -> None:
    assert ("vgg", ["lr"]) == split_job(["vgg", "lr"], scoped=False, example="")
    assert ("", ["lr"]) == split_job(["lr"], scoped=True, example="")
    with pytest.raises(click.UsageError, match="which job"):
        split_job([], scoped=False, example="ltctl get JOB")


@pytest.mark.parametrize(
    ("words", "scoped", "found"),
    [
        (["vgg"], False, ("vgg", None)),
        (["vgg", "4711"], False, ("vgg", 4711)),
        (["12"], False, ("12", None)),
        ([], True, ("", None)),
        (["4711"], True, ("", 4711)),
        (["vgg"], True, ("vgg", None)),
        (["vgg", "4711"], True, ("vgg", 4711)),
    ],
)
def test_what_is_to_be_undone(words: list[str], scoped: bool, found: tuple[str, int | None]) -> None:
    assert found == split_undo(words, scoped=scoped, example="")


@pytest.mark.parametrize(
    ("words", "scoped"),
    [([], False), (["vgg", "x"], False), (["vgg", "0"], False), (["vgg", "1", "2"], False), (["1", "2"], True)],
)
def test_what_cannot_be_undone(words: list[str], scoped: bool) -> None:
    with pytest.raises(click.UsageError):
        split_undo(words, scoped=scoped, example="ltctl undo JOB 4711")


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "\u0663", str(2**63), "9" * 5_000])
def test_what_is_no_revision(text: str) -> None:
    assert 2**63 - 1 == revision(str(2**63 - 1))
    with pytest.raises(click.BadParameter, match="is not a revision"):
        revision(text)


def test_what_strangers_wrote_does_not_steer_the_terminal() -> None:
    assert r"a\x1b[2Jb\nc\u202ed" == safe("a\x1b[2Jb\nc\u202ed")
    assert ["A      B", r"\x07   c"] == table(["A", "B"], [["\x07", "c"]])


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("lr", 2),
        ("训练", 4),
        ("한국", 4),
        ("\u1112\u1161\u11ab", 2),
        ("zo\u0308", 2),
        ("zö", 2),
        ("ﾊﾝｶｸ", 4),
        ("\uff21", 2),
        ("a\u200bb", 2),
        ("co\xadop", 5),
        ("😀", 2),
        ("", 0),
    ],
)
def test_widths_are_those_of_a_terminal(text: str, columns: int) -> None:
    assert columns == width(text)


def test_columns_are_aligned_by_what_the_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    rows = [["训练", "x"], ["zo\u0308", "x"], ["plain", "x"]]
    assert ["A       B", "训练    x", "zo\u0308      x", "plain   x"] == table(["A", "B"], rows)
    assert {8} == {width(line[: line.rindex("x")]) for line in table(["A", "B"], rows)[1:]}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert [r"\u8bad\u7ec3   x", r"zo\u0308       x", "plain          x"] == table(["A", "B"], rows)[1:]


def test_a_table_that_comes_in_parts_has_one_head_and_never_gets_narrower() -> None:
    aligned = Table(["A", "B"])
    assert ["A     B", "abc   1"] == aligned.lines([["abc", "1"]])
    assert ["a     2"] == aligned.lines([["a", "2"]])
    assert ["abcde   3"] == aligned.lines([["abcde", "3"]])
    assert ["a       4"] == aligned.lines([["a", "4"]])
    assert [] == aligned.lines([])


@pytest.mark.parametrize("count", [0, 1, 3, 2_500])
def test_many_things_are_printed_as_they_come(capsys: pytest.CaptureFixture[str], count: int) -> None:
    data = [{"n": number, "deep": [{"text": "a\nb"}]} for number in range(count)]
    printed = {}
    for form in ("json", "yaml", "jsonl", "name", "table"):
        print_items(form, iter(data), lambda item: item, lambda item: str(item["n"]), lambda part: [f"{len(part)}"])
        printed[form] = capsys.readouterr().out
    assert json.dumps(data, indent=2) + "\n" == printed["json"]
    assert data == yaml.safe_load(printed["yaml"])
    assert data == [json.loads(line) for line in printed["jsonl"].splitlines()]
    assert [str(number) for number in range(count)] == printed["name"].splitlines()
    assert count == sum(map(int, printed["table"].splitlines()))


def nobody_reads() -> IO[str]:
    ours, theirs = os.pipe()
    os.close(ours)
    return os.fdopen(theirs, "w")


def full_disk() -> IO[str]:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


@pytest.mark.parametrize(("stream", "raised"), [(nobody_reads, ReaderLeftError), (full_disk, CommandError)])
def test_an_output_that_nobody_reads_or_that_is_full(
    monkeypatch: pytest.MonkeyPatch, stream: Callable[[], IO[str]], raised: type[Exception]
) -> None:
    with stream() as output, stream() as errors:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", errors)
        with pytest.raises(raised):
            out("data")
        note("a message that nobody reads is no error")
    # What was left in the buffers has gone nowhere: closing them raises nothing.


def test_no_output_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    out("nobody is there →")
    assert ["A   B"] == table(["A", "B"], [])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("pretty", [True, False])
def test_json_is_valid_and_harmless_in_every_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, pretty: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    data = {"é": "😀 →", "steering": "\x1b[31m \x7f \x9b31m \u202e \u2028"}
    text = to_json(data, pretty=pretty)
    assert data == json.loads(text.encode(encoding).decode(encoding))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e300", "soon"])
def test_times_that_no_timer_may_get(text: str) -> None:
    with pytest.raises(click.BadParameter, match=text):
        seconds(text)


def test_words_that_cannot_be_sent() -> None:
    assert "é" == word("é")
    with pytest.raises(click.BadParameter, match=r"'lr=\\xff' is not valid UTF-8"):
        word("lr=\udcff")


def test_the_actor_fits_into_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "zoë\n")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-7")
    assert (("livetune-actor", "zo??@gpu-7"),) == metadata()


@pytest.mark.parametrize(
    "data",
    [
        {"a": 1, "b": [1.5, -0.25, 1e-06, 1e22, True, None, ""], "c": {"d": "no", "e": [], "f": {}}},
        [{"x": [{"y": 1}, {"z": ["k: v", "- a", "# c", "'", '"', "\n", "null", "1", "1e3", "~", "é\u2028"]}]}],
        {"on": "off", "nested": [[1, 2], [3]]},
        {"emoji": "a😀\\ud83d", "steering": "\x7f\x9b31m\u202e"},
        [],
        {},
        "text",
    ],
)
def test_yaml_is_read_back_by_a_yaml_reader(data: object) -> None:
    assert data == yaml.safe_load(to_yaml(data))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (types_pb2.Value(float_value=0.01), "0.01"),
        (types_pb2.Value(float_value=0.1 + 0.2), "0.30000000000000004"),
        (types_pb2.Value(float_value=1e-6), "1e-06"),
        (types_pb2.Value(int_value=-5), "-5"),
        (types_pb2.Value(bool_value=False), "false"),
        (types_pb2.Value(string_value=""), "''"),
        (types_pb2.Value(string_value="a\x1b"), r"a\x1b"),
        (types_pb2.Value(), "-"),
    ],
)
def test_values_as_people_read_them(value: types_pb2.Value, text: str) -> None:
    assert text == render.shown(value)


def change(**applies: list[tuple[types_pb2.ApplyStatus.ValueType, int, str]]) -> types_pb2.Change:
    message = types_pb2.Change(revision=7, job="jobs/vgg", time=Timestamp(seconds=1), actor="ann", reason="why")
    for name, outcomes in applies.items():
        message.assignments.add(variable_id=name).new_value.float_value = 1.0
        for status, step, reason in outcomes:
            apply = message.applies.add(change_revision=7, step=step)
            apply.outcomes.add(variable_id=name, status=status, reason=reason)
    return message


def test_what_became_of_a_change_in_words() -> None:
    applied, refused, superseded = (
        types_pb2.APPLY_STATUS_APPLIED,
        types_pb2.APPLY_STATUS_REFUSED,
        types_pb2.APPLY_STATUS_SUPERSEDED,
    )
    assert "pending" == render.applied_words(change(lr=[]))
    assert "step 5" == render.applied_words(change(lr=[(applied, 5, "")], wd=[(applied, 5, "")]))
    assert "refused at step 5 (no)" == render.applied_words(change(lr=[(refused, 5, "no")]))
    assert "superseded at step 5, step 9" == render.applied_words(
        change(lr=[(superseded, 5, "")], wd=[(applied, 9, "")])
    )


def test_an_undo_is_marked_and_its_default_reason_is_not_said_twice() -> None:
    undo = change(lr=[])
    undo.undone_revision, undo.reason = 5, "undo of 5"
    assert render.change_words(undo).endswith(" (undo of 5)")
    assert "" == render.reason_words(undo)
    undo.reason = "worse"
    assert "worse" == render.reason_words(undo)
    assert 5 == render.change_data(undo)["undone_revision"]
    assert render.change_data(change(lr=[]))["undone_revision"] is None


def test_who_lags_behind() -> None:
    job = types_pb2.Job(world_size=4)
    for rank, revision_applied in enumerate([9, 0, 9]):
        job.ranks.add(
            rank=rank, applied_revision=revision_applied, connected=rank != 1
        ).process.host = f"gpu-{rank % 2}"
    assert ("9 (rank 1: -)", "2/4", "gpu-0, gpu-1") == (
        render.lag_words(job), render.ranks_words(job), render.hosts_words(job)
    )  # fmt: skip
    for rank in range(3, 8):
        job.ranks.add(rank=rank, applied_revision=rank).process.host = f"gpu-{rank}"
    assert "9 (rank 1: -, rank 3: 3, rank 4: 4, 3 more)" == render.lag_words(job)
    assert "gpu-0, gpu-1, gpu-3, 4 more" == render.hosts_words(job)
    assert ("-", "0/0") == (render.lag_words(types_pb2.Job()), render.ranks_words(types_pb2.Job()))


def test_what_a_watch_says_in_words_and_data() -> None:
    removed = control_pb2.Event(revision=9, job="jobs/vgg")
    removed.removed.actor, removed.removed.reason = "ann@a", "old\x1b"
    assert r'forgotten  by ann@a  "old\x1b"' == events.event_words(removed)
    assert ("removed", "ann@a", "old\x1b") == tuple(map(events.event_data(removed).get, ("kind", "actor", "reason")))
    assert "something that this ltctl does not know" == events.event_words(control_pb2.Event())
    job = types_pb2.Job(name="jobs/vgg", state=types_pb2.JOB_STATE_LOST, step=7, port=21_000)
    assert "lost at step 7, port 21000" == events.snapshot_words(job, 2)
    for number in range(3):
        variable = job.variables.add()
        variable.spec.variable_id, variable.desired.string_value = f"v{number}", "x" * 30 * (number + 1)
    assert f"lost at step 7, port 21000: v0 {'x' * 30}, v1 {'x' * 37}..., 1 more" == events.snapshot_words(job, 2)
    begin = control_pb2.WatchResponse(store_id="s")
    begin.snapshot_begin.cause = control_pb2.SNAPSHOT_CAUSE_COMPACTED
    assert {"kind": "snapshot_begin", "cause": "compacted", "store_id": "s"} == events.watch_data(begin)
    assert {"kind": "unknown"} == events.watch_data(control_pb2.WatchResponse())


def test_an_unknown_state_of_a_newer_daemon_is_shown_by_its_number() -> None:
    assert "99" == render.state(types_pb2.Job(state=99))  # type: ignore[arg-type]


class FakeError(grpc.RpcError):
    """A failed call as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        self._answer = code, text, trailing

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._answer[2]


def test_refusals_are_read_with_reason_and_metadata_and_damaged_ones_without() -> None:
    error = DomainError(Reason.ABOVE_MAXIMUM, "too high", variable="lr")
    good = FakeError(grpc.StatusCode.OUT_OF_RANGE, "too high", ((DETAILS_KEY, details(error)),))
    refusal = refusal_of(good)
    assert ("OUT_OF_RANGE", "too high", "ABOVE_MAXIMUM", {"variable": "lr"}) == (
        refusal.code,
        refusal.message,
        refusal.reason,
        dict(refusal.metadata),
    )
    damaged = FakeError(grpc.StatusCode.OUT_OF_RANGE, "too high", ((DETAILS_KEY, b"\xff\xff"),))
    assert ("OUT_OF_RANGE", "") == (refusal_of(damaged).code, refusal_of(damaged).reason)
    assert "UNKNOWN" == refusal_of(grpc.RpcError("other")).code


def test_exit_codes_are_documented_in_the_help() -> None:
    from ltctl.exits import EXIT_HELP

    for code in Exit:
        assert f"{code.value} " in EXIT_HELP
