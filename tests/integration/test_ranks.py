"""Four processes, one job: every change at the same step on all of them, whatever becomes of the daemon."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from livetune.v1 import types_pb2
from support.calls import set_request
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.results import count, long_run, seed
from support.shell import Shell, state_of

pytest.importorskip("torch")

SIZE = 4


@contextmanager
def running(daemon: Daemon, folder: Path, how: str = "", size: int = SIZE) -> Iterator[list[Program]]:
    """The ranks of job `vgg`, once the daemon sees it run."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                program(
                    "ranked.py", "vgg", str(rank), str(size), str(folder / "meeting"), how,
                    log=folder / f"rank{rank}.log", LIVETUNE_ENDPOINT=daemon.target,
                )
            )
            for rank in range(size)
        ]  # fmt: skip
        for rank in ranks:
            rank.facts(lambda fact: fact.get("ready"))
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        yield ranks


def ends(ranks: list[Program]) -> list[dict[str, Any]]:
    """What each rank says at its end."""
    return [rank.facts(lambda fact: "seen" in fact) for rank in ranks]


def set_both(daemon: Daemon, value: float) -> int:
    with daemon.control() as control:
        return control.SetVariables(set_request("vgg", lr=value, wd=-value), timeout=20).change.revision


def test_every_change_takes_effect_at_the_same_step_on_all_ranks(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with running(daemon, tmp_path) as ranks:
        assert "4/4" in shell("jobs").out
        assert "rank 0 speaks for all 4 ranks" in shell("describe", "vgg").out
        for number in range(1, 6):
            answer = shell.data("set", "vgg", f"lr={number}", f"wd={-number}")
            assert ["applied"] == [item["status"] for item in answer["applied"]["lr"]]
        long = "x" * 3_000  # more than what travels at every meeting
        assert 0 == shell("set", "vgg", f"text={long}").code
        for number in range(6, 40):
            set_both(daemon, float(number))
            if number % 12 == 0:
                shell("trigger", "vgg", "save")
        shell("trigger", "vgg", "stop")
        told = ends(ranks)
        assert [0] * SIZE == [rank.process.wait(30) for rank in ranks]
    first = told[0]
    assert ([39.0, -39.0], long) == (first["values"], first["text"])
    for other in told[1:]:
        assert (first["seen"], first["saved"], first["step"]) == (other["seen"], other["saved"], other["step"])
        assert (first["changes"], first["text"]) == (other["changes"], other["text"])
    # All of a change at one step: after the first half of it there is no step.
    assert all(lr == -wd for _, lr, wd in first["seen"])
    assert first["saved"]


def test_control_ranks_by_themselves_take_changes_at_different_steps(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "alone", 2) as ranks:
        for number in range(1, 30):
            set_both(daemon, float(number))
        Shell(daemon)("trigger", "vgg", "stop", "--wait", "accepted")
        assert "takes changes at a step of its own" in ranks[1].log.read_text()
        told = ends(ranks)
    assert any(told[0]["seen"] != other["seen"] for other in told[1:])


def test_ranks_agree_while_the_daemon_dies_and_comes_back(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path) as ranks:
        for number in range(1, 9):
            set_both(daemon, float(number))
            if number % 4 == 0:
                daemon.kill()
                daemon.start()
                eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        assert 0 == Shell(daemon)("set", "vgg", "lr=99", "--timeout", "30").code
        Shell(daemon)("trigger", "vgg", "stop")
        told = ends(ranks)
    assert 99.0 == told[0]["values"][0]
    assert all(told[0]["seen"] == other["seen"] for other in told[1:])


def test_what_waits_for_a_step_takes_effect_exactly_there_on_all_ranks(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with running(daemon, tmp_path) as ranks:
        eventually(lambda: shell.data("describe", "vgg")["step"] > 0, 20)
        steps = []
        for number in range(1, 4):
            made = shell.data("set", "vgg", f"lr={number}", f"wd={-number}", "--in", str(400 + 100 * number))
            steps.append(made["at_step"])
        fired = shell.data("trigger", "vgg", "save", "--in", "800")["at_step"]
        daemon.kill()  # rank 0 keeps them
        daemon.start()
        eventually(lambda: shell.data("describe", "vgg")["step"] > fired, 90)
        kept = shell.data("set", "vgg", "lr=9", "--in", "1000000")["at_step"]
        assert 0 == shell("trigger", "vgg", "stop").code
        told = ends(ranks)
        assert [0] * SIZE == [rank.process.wait(30) for rank in ranks]
    seen = [[step, float(number), float(-number)] for number, step in enumerate(steps, 1) for _ in ("lr", "wd")]
    assert [seen] * SIZE == [rank["seen"] for rank in told]
    assert [[fired]] * SIZE == [rank["saved"] for rank in told]
    # All ranks go on from the checkpoint of rank 0, with what waits.
    again = tmp_path / "again"
    again.mkdir()
    with running(daemon, again, f"from {tmp_path / 'meeting.state'}", 2) as ranks:
        assert [kept] == [change["at_step"] for change in shell.data("get", "vgg")["scheduled"]]
        assert 0 == shell("trigger", "vgg", "stop").code
        told = ends(ranks)
    assert [[3.0, -3.0]] * 2 == [rank["values"] for rank in told]
    assert told[0]["step"] == told[1]["step"] > fired


def test_a_veto_of_one_rank_is_a_veto_of_all(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with running(daemon, tmp_path, "veto", 2) as ranks:
        answer = shell("set", "vgg", "lr=7", "wd=1")
        assert 9 == answer.code
        assert "lr: rank 1: rank 1 takes nothing above 1" in answer.err
        assert 0 == shell("set", "vgg", "lr=0.5").code
        shell("trigger", "vgg", "stop")
        told = ends(ranks)
    assert [[0.5, 0.0]] * 2 == [item["values"] for item in told]
    assert all(told[0]["seen"] == other["seen"] for other in told)


@pytest.mark.slow
def test_a_veto_that_a_rank_comes_by_later_counts(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with running(daemon, tmp_path, "late", 2) as ranks:
        for rank in ranks:
            rank.facts(lambda fact: "late" in fact)
        answer = shell("set", "vgg", "lr=7")
        assert 9 == answer.code
        assert "lr: rank 1: rank 1 takes nothing above 1" in answer.err
        shell("trigger", "vgg", "stop")
        assert [[0.0, 0.0]] * 2 == [item["values"] for item in ends(ranks)]


@pytest.mark.slow
def test_ranks_may_number_their_steps_each_in_its_own_way(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "numbered", 2) as ranks:
        for number in range(1, 20):
            set_both(daemon, float(number))
        shell = Shell(daemon)
        assert 0 == shell("set", "vgg", "lr=0.5").code
        shell("trigger", "vgg", "stop")
        told = ends(ranks)
    assert told[0]["seen"] == told[1]["seen"]
    # What each of them says and records of a change is its own step, by which it would be replayed.
    assert [[step + 1 for _, step in told[0]["changes"]]] == [[step for _, step in told[1]["changes"]]]
    assert [0, 1] == [item["step"] % 7 for item in told]


def test_ranks_that_are_paused_take_changes_and_go_on_together(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with running(daemon, tmp_path, "held", 2) as ranks:
        for value in (0.5, 0.25):
            assert 0 == shell("set", "vgg", "run.paused=true").code
            for rank in ranks:
                eventually(lambda log=rank.log: "paused at step" in log.read_text(), 20)
            assert 0 == shell("set", "vgg", f"lr={value}").code
            assert 0 == shell("set", "vgg", "run.paused=false").code
        shell("trigger", "vgg", "run.stop")
        told = ends(ranks)
        assert [0, 0] == [rank.wait() for rank in ranks]
    assert (told[0]["seen"], told[0]["step"]) == (told[1]["seen"], told[1]["step"])
    assert [0.5, 0.25] == [lr for _, lr, _ in told[0]["seen"]]


def test_ranks_with_fewer_inputs_take_the_changes_that_come_later(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "uneven", 2) as ranks:
        with suppress(grpc.RpcError):  # until it has finished
            for number in range(1, 10_000):
                set_both(daemon, float(number))
        told = ends(ranks)
    assert all(told[0]["seen"] == other["seen"] for other in told[1:])
    assert told[0]["seen"][-1][0] > 600, "no change came after the first rank had run out"


def test_a_rank_that_dies_stops_the_changes_and_is_seen(daemon: Daemon, tmp_path: Path) -> None:
    """What torch does to the others is torch's business; ours is that no exception comes out of job.step()."""
    with running(daemon, tmp_path, size=3) as ranks:
        set_both(daemon, 1.0)
        ranks[2].process.kill()
        for rank in ranks[:2]:
            assert 0 != rank.process.wait(60)
            assert "livetune/job.py" not in rank.log.read_text().split("Traceback")[-1]
        eventually(lambda: types_pb2.JOB_STATE_RUNNING != state_of(daemon, "vgg"), 30)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_thousand_changes_with_pauses_and_kills(daemon: Daemon, tmp_path: Path) -> None:
    chosen, changes = seed(71), count("RANK_CHANGES", 10_000)
    generator = random.Random(chosen)
    kills = pauses = 0
    with long_run("four ranks", chosen, changes=changes) as figures:
        with running(daemon, tmp_path) as ranks:
            for number in range(1, changes + 1):
                set_both(daemon, float(number))
                dice = generator.random()
                if dice < 0.002:
                    kills += 1
                    daemon.kill()
                    daemon.start()
                    eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 60)
                elif dice < 0.01:
                    pauses += 1
                    paused = generator.choice(ranks)
                    paused.freeze()
                    for extra in range(3):
                        set_both(daemon, number + extra / 10)
                    paused.thaw()
            assert 0 == Shell(daemon)("set", "vgg", "lr=0.25", "wd=-0.25", "--timeout", "60").code
            Shell(daemon)("trigger", "vgg", "stop")
            told = ends(ranks)
        differ = sum(told[0]["seen"] != other["seen"] for other in told[1:])
        figures.update({"kills": kills, "pauses": pauses, "steps": told[0]["passed"], "differ": differ})
        assert not differ
        assert [[0.25, -0.25]] * SIZE == [item["values"] for item in told]
