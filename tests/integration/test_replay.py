"""A real training, tuned from outside while it runs, is replayed bit by bit: from its record, and from the history."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from livetune import records
from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.shell import Shell, state_of

NOWHERE = "unix:/nowhere/d.sock"


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "25000-25009").start()


class Tuned:
    """A run that was tuned while it trained, and what it left."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "live.jsonl"
        self.shell = Shell(daemon)
        said = {"LIVETUNE_ENDPOINT": daemon.target, "LIVETUNE_RECORD": str(self.record)}
        with program("replaying.py", "net", str(folder / "live.pt"), log=folder / "live.log", **said) as training:
            training.facts(lambda found: found["connected"])
            self._tune(training)
            assert 0 == training.wait()
        self.history = folder / "history.jsonl"
        answer = self.shell("history", "net", "-n", "100000", "-o", "jsonl")
        assert (0, "") == (answer.code, answer.err)
        self.history.write_text(answer.out)

    def _tune(self, training: Program) -> None:
        """Changes what there is to change, at steps that chance picks."""
        chance, step = random.Random(20261124), 0
        for code, *words in (
            (0, "set", "net", "lr=0.003", "--reason", "faster"),
            (0, "set", "net", f"lr={0.1 / 3!r}", "optim.wd=0.1", "--reason", "both\nat once"),
            (0, "trigger", "net", "shake"),
            (0, "set", "net", "noise=3"),
            (5, "set", "net", "noise=2", "lr=7"),
            (0, "trigger", "net", "shake", "--wait", "accepted"),
            (0, "trigger", "net", "shake"),
            (0, "set", "net", "noise=2"),
            (0, "undo", "net"),
            (0, "set", "net", "optim.wd=0.01", "lr=1e-05"),
            (0, "trigger", "net", "stop"),
        ):
            step += chance.randrange(5, 60)
            training.facts(lambda said: said["step"] >= step)  # noqa: B023 - asked at once
            answer = self.shell.inside(*map(str, words))
            assert code == answer.code, answer

    def weights(self) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.folder / "live.pt")
        return found

    def replay(self, source: Path, name: str) -> dict[str, Any]:
        """Trains again as a file says, without a daemon, recording it."""
        said = {
            "LIVETUNE_ENDPOINT": NOWHERE,
            "LIVETUNE_REPLAY": str(source),
            "LIVETUNE_RECORD": str(self.folder / f"{name}.jsonl"),
        }
        out, log = self.folder / f"{name}.pt", self.folder / f"{name}.log"
        with program("replaying.py", "net", str(out), log=log, **said) as training:
            assert 0 == training.wait(), log.read_text()
        assert "" == log.read_text()
        found: dict[str, Any] = torch.load(out)
        return found


def tensors(data: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by where they are in it."""
    if isinstance(data, torch.Tensor):
        return {path: data}
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return {name: found for key, item in items for name, found in tensors(item, f"{path}/{key}").items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The tensors that are not bit by bit the same."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    return {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}


def happened(path: Path) -> list[dict[str, Any]]:
    """The lines of a record that say what took effect."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("kind") in ("change", "firing", "end")]


@pytest.mark.timeout(300)  # several programs that load torch, one after the other
def test_a_replay_ends_with_the_same_bits_from_the_record_and_from_the_history(daemon: Daemon, tmp_path: Path) -> None:
    tuned = Tuned(daemon, tmp_path)
    live = tuned.weights()
    assert 16 == len(tensors(live))  # 4 of the model, 3 for each of them in AdamW
    kinds = [line["kind"] for line in happened(tuned.record)]
    assert (6, 4) == (kinds.count("change"), kinds.count("firing"))
    daemon.kill()

    again = tuned.replay(tuned.record, "from-record")
    assert (live["step"], set()) == (again["step"], differing(live, again))
    assert tuned.record.read_bytes() == (tmp_path / "from-record.jsonl").read_bytes()

    again = tuned.replay(tuned.history, "from-history")
    assert (live["step"], set()) == (again["step"], differing(live, again))
    assert happened(tuned.record) == happened(tmp_path / "from-history.jsonl")

    # The control: one value a little off, and the weights are others.
    text = tuned.record.read_text()
    assert repr(0.1 / 3) in text
    altered = tmp_path / "altered.jsonl"
    altered.write_text(text.replace(repr(0.1 / 3), "0.0334"))
    other = tuned.replay(altered, "from-altered")
    assert live["step"] == other["step"]
    assert {name for name in tensors(live) if not name.endswith("/step")} == differing(live, other)


def test_a_program_killed_leaves_a_record_up_to_its_last_safe_point(daemon: Daemon, tmp_path: Path) -> None:
    path, shell = tmp_path / "killed.jsonl", Shell(daemon)
    said = {"LIVETUNE_ENDPOINT": daemon.target, "LIVETUNE_RECORD": str(path)}
    with program("trainer.py", "vgg", log=tmp_path / "killed.log", **said) as training:
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        for number in range(1, 21):
            assert 0 == shell.inside("set", "vgg", f"lr={number / 32}").code
        training.process.kill()
        training.wait()
    recording = records.read(str(path), 0)
    steps = [item["step"] for change in shell.data("history", "vgg") for item in change["applies"]]
    assert [number / 32 for number in range(1, 21)] == [entry.values["lr"] for entry in recording.entries]
    assert steps == [entry.step for entry in recording.entries]
    (warning,) = recording.warnings
    assert (
        f"the record has no end, its program was killed or could not write on: what came after step {steps[-1]}"
        in warning
    )


def ends_of_ranks(folder: Path, name: str, tune: Callable[[list[Program]], None], **said: str) -> list[dict[str, Any]]:
    """What each of two ranks that take changes together saw, at which step; `{rank}` in what is said is filled in by the SDK."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                program(
                    "ranked.py", "vgg", str(rank), "2", str(folder / f"{name}.meeting"),
                    log=folder / f"{name}{rank}.log", **said,
                )
            )
            for rank in range(2)
        ]  # fmt: skip
        for training in ranks:
            training.facts(lambda fact: fact.get("ready"))
        tune(ranks)
        told = [training.facts(lambda fact: "seen" in fact) for training in ranks]
        assert [0, 0] == [training.wait() for training in ranks]
    return told


@pytest.mark.timeout(300)  # several programs that load torch, one after the other
def test_ranks_record_each_for_itself_and_replay_without_a_word_to_each_other(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)

    def tune(_: list[Program]) -> None:
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        for number in range(1, 4):
            assert 0 == shell.inside("set", "vgg", f"lr={number}", f"wd={-number}").code
            assert 0 == shell.inside("trigger", "vgg", "save").code
        assert 0 == shell.inside("trigger", "vgg", "stop").code

    record = tmp_path / "run{rank}.jsonl"
    live = ends_of_ranks(tmp_path, "live", tune, LIVETUNE_ENDPOINT=daemon.target, LIVETUNE_RECORD=str(record))
    assert 3 == len(live[0]["saved"])
    first, second = (happened(tmp_path / f"run{rank}.jsonl") for rank in range(2))
    assert first == second
    history = tmp_path / "history.jsonl"
    history.write_text(shell("history", "vgg", "-n", "1000", "-o", "jsonl").out)
    for name, source in [("from-record", record), ("from-history", history)]:
        said = {"LIVETUNE_REPLAY": str(source), "LIVETUNE_RECORD": str(tmp_path / f"{name}{{rank}}.jsonl")}
        assert live == ends_of_ranks(tmp_path, name, lambda _: None, LIVETUNE_ENDPOINT=NOWHERE, **said)
        assert [first, first] == [happened(tmp_path / f"{name}{rank}.jsonl") for rank in range(2)]
