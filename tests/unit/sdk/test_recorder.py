"""What a job writes of what it applied: the lines, the file, and what a broken disk does to training (nothing)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import livetune
from livetune import messages as m
from livetune import records
from livetune.specs import Scalar

STORE = "3f1c"


class Live:
    """A job that is told of changes as the driver would tell it."""

    def __init__(self, job: livetune.Job) -> None:
        self.job = job
        self.revision = 10

    def connect(self, store: str = STORE) -> None:
        self.job._deliver(m.Registered(store, 1, 25_000, self.revision))
        self.job._deliver(m.Opened(store, self.revision))
        variables = tuple(m.VariableAnswer(name, item.value, 3, False) for name, item in self.job.variables.items())
        self.job._deliver(m.Declared(variables))

    def change(self, *firings: str, reason: str = "why", actor: str = "ann@a", **values: Scalar) -> int:
        self.revision += 1
        self.job._deliver(m.ChangeReceived(self.revision, tuple(values.items()), firings, reason, actor))
        return self.revision


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def record(path: Path) -> Iterator[Callable[..., Live]]:
    made: list[livetune.Job] = []

    def start(to: Path | str = path) -> Live:
        made.append(livetune.init("vgg", endpoint="unix:/nowhere/d.sock", record=to))
        return Live(made[-1])

    yield start
    for job in made:
        job.finish()


def test_the_lines(record: Callable[..., Live], path: Path) -> None:
    live = record()
    job = live.job
    lr, n, on, mode = job.variable("lr", 0.1), job.variable("n", 3), job.variable("on", True), job.variable("mode", "a")
    save = job.trigger("save")
    job.step()
    assert 1 == len(lines(path))
    live.connect()
    live.change(lr=0.1 + 0.2, n=2**63 - 1, on=False, mode="é\n")
    live.change("save", reason="", actor="bob@b")
    job.step(7)
    job.step()
    assert save()
    assert (0.1 + 0.2, 2**63 - 1, False, "é\n") == (lr.value, n.value, on.value, mode.value)
    job.variable("late", -0.0)
    job.finish()
    values = {
        "lr": {"old": 0.1, "new": 0.30000000000000004},
        "n": {"old": 3, "new": 9223372036854775807},
        "on": {"old": True, "new": False},
        "mode": {"old": "a", "new": "é\n"},
    }
    declared = [
        {"name": "lr", "type": "float", "initial": 0.1},
        {"name": "n", "type": "int", "initial": 3},
        {"name": "on", "type": "bool", "initial": True},
        {"name": "mode", "type": "str", "initial": "a"},
        {"name": "save", "type": "trigger"},
    ]
    head = {"livetune_record": 1, "job": "vgg", "rank": 0, "world_size": 1, "sdk_version": livetune.__version__}
    assert [
        {**head, "store_id": "", "declared": declared},
        {"kind": "store", "store_id": STORE},
        {"kind": "change", "revision": 11, "step": 7, "values": values, "reason": "why", "actor": "ann@a"},
        {"kind": "firing", "revision": 12, "step": 8, "trigger": "save", "reason": "", "actor": "bob@b"},
        {"kind": "declared", "declared": [{"name": "late", "type": "float", "initial": -0.0}]},
        {"kind": "end", "step": 8, "failed": False},
    ] == lines(path)
    assert path.read_bytes().isascii()


def test_what_is_applied_is_in_the_file_when_step_returns(record: Callable[..., Live], path: Path) -> None:
    live = record()
    live.job.variable("lr", 0.1)
    live.connect()
    for number in range(5):
        live.change(lr=float(number))
        live.job.step()
        assert number + 1 == sum("kind" in line for line in lines(path))
    assert [0.0, 1.0, 2.0, 3.0, 4.0] == [entry.values["lr"] for entry in records.read(str(path), 0).entries]


def test_what_is_not_applied_is_not_recorded(record: Callable[..., Live], path: Path) -> None:
    live = record()
    lr = live.job.variable("lr", 0.1, max=1.0)
    live.connect()
    live.change(lr=5.0)
    live.change(lr=0.5)
    live.change(lr=0.25)
    live.job.step()
    lr.on_set(lambda new, old: (_ for _ in ()).throw(livetune.Veto("no")))
    live.change(lr=0.75)
    live.job.step()
    assert [(13, 1, {"lr": 0.25})] == [(e.revision, e.step, e.values) for e in records.read(str(path), 0).entries]


def test_an_idle_step_writes_nothing(record: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    live = record()
    live.job.step()
    assert not live.job._pending
    monkeypatch.setattr(live.job, "_apply", lambda: pytest.fail("an idle step does no more than count"))
    live.job.step()


def test_a_file_is_continued_with_a_header_of_its_own(record: Callable[..., Live], path: Path) -> None:
    path.write_bytes(b'{"livetune_record": 1, "job": "vgg", "declared": []}\n{"kind": "chan')
    live = record()
    live.job.variable("lr", 0.1)
    live.connect()
    live.change(lr=0.5)
    live.job.step()
    live.job.finish()
    recording = records.read(str(path), 0)
    assert ([], [0.5]) == (recording.warnings, [entry.values["lr"] for entry in recording.entries])
    assert f"{path}:4" == recording.entries[0].where


def test_a_store_that_was_replaced_is_named(record: Callable[..., Live], path: Path) -> None:
    live = record()
    live.job.variable("lr", 0.1)
    live.connect()
    live.job.step()
    for store in (STORE, "other"):
        live.connect(store)
        live.change(lr=len(store) / 16)
        live.job.step()
    recording = records.read(str(path), 0)
    assert (STORE, [STORE, "other"]) == (recording.store_id, [entry.store_id for entry in recording.entries])


@pytest.mark.parametrize("where", ["missing/run.jsonl", ".", "pipe", "run\0"])
def test_a_file_that_cannot_be_opened_is_a_warning_and_training_goes_on(
    record: Callable[..., Live], tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe")
    live = record(str(tmp_path / where))
    lr = live.job.variable("lr", 0.1)
    save = live.job.trigger("save")
    live.connect()
    live.change("save", lr=0.5)
    live.job.step()
    assert save()
    live.job.finish()
    assert 0.5 == lr.value
    (warning,) = [text for text in caplog.messages if "recorded" in text]
    assert warning.startswith(f"job vgg: nothing is recorded any more in {tmp_path / where}: ")
    assert warning.endswith("; training goes on")


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_is_one_warning_and_leaves_a_record_without_a_hole(
    record: Callable[..., Live],
    path: Path,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = record()
    lr = live.job.variable("lr", 0.1)
    live.connect()
    live.change(lr=0.5)
    live.job.step()
    write = os.write

    def full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(file, data[:room])

    monkeypatch.setattr(os, "write", full)
    live.change(lr=0.25)
    live.job.step()
    monkeypatch.undo()  # there is room again: too late
    live.change(lr=0.125)
    live.job.step()
    live.job.finish()
    assert 0.125 == lr.value
    assert 1 == len([text for text in caplog.messages if "nothing is recorded any more" in text])
    recording = records.read(str(path), 0)
    assert [0.5] == [entry.values["lr"] for entry in recording.entries]
    assert (1 if room else 0) == sum("breaks off" in text for text in recording.warnings)
    assert 1 == sum("has no end" in text for text in recording.warnings)


def test_a_program_that_counts_anew_is_told_that_this_cannot_be_replayed(
    record: Callable[..., Live], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = record()
    live.job.variable("lr", 0.1)
    live.connect()
    for step in (8, 2, 9):
        live.change(lr=step / 10)
        live.job.step(step)
    assert 1 == sum("steps fell from 8 to 2" in text for text in caplog.messages)
    assert [8] == [entry.step for entry in records.read(str(path), 0).entries]


def test_the_environment_names_the_file_and_each_rank_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "4", "LIVETUNE_RECORD": str(tmp_path / "r{rank}.jsonl")}.items():
        monkeypatch.setenv(key, value)
    with livetune.init("vgg", endpoint="unix:/nowhere/d.sock") as job:
        job.step()
    (head, _) = lines(tmp_path / "r1.jsonl")
    assert (1, 4) == (head["rank"], head["world_size"])
    with pytest.raises(livetune.ReplayError, match="each of 4 ranks needs a file of its own"):
        livetune.init("vgg", record=tmp_path / "run.jsonl")


def test_a_forked_child_writes_nothing(record: Callable[..., Live], path: Path) -> None:
    live = record()
    live.job.variable("lr", 0.1)
    live.job.step()
    before = path.read_bytes()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        live.job.step()
        live.job.finish()
        os._exit(0 if live.job._recorder is None else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert before == path.read_bytes()
    live.connect()
    live.change(lr=0.5)
    live.job.step()
    assert 1 == len(records.read(str(path), 0).entries)


def test_only_what_was_asked_for_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETUNE_RECORD", "")
    with livetune.init("vgg", endpoint="unix:/nowhere/d.sock") as job:
        assert job._recorder is None


def test_two_jobs_do_not_share_a_record(
    record: Callable[..., Live], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record().job.step()
    with livetune.init("other", endpoint="unix:/nowhere/d.sock", record=path) as other:
        other.step()
    assert (
        f"job other: nothing is recorded any more in {path}: another job writes to it; training goes on"
        in caplog.messages
    )
    assert ["vgg"] == [line["job"] for line in lines(path)]


def test_a_file_system_without_locks_records(
    record: Callable[..., Live], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    record().job.step()
    assert 1 == len(lines(path))
