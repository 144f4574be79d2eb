"""Changes that wait for their step, with ltctl and real processes: exact, cancelled, over kills, in checkpoints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Daemon, eventually
from support.process import Process, float_spec
from support.programs import Program, program
from support.shell import Shell


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


class Stepwise:
    """A job that takes as many steps as it is told."""

    def __init__(self, process: Program) -> None:
        self.process = process
        self.begun = process.facts(lambda fact: "ready" in fact)

    def takes(self, steps: int) -> dict[str, Any]:
        self.process.tell(str(steps))
        return self.process.facts(lambda fact: "step" in fact)

    def until(self, **facts: object) -> dict[str, Any]:
        """Waits, without a step, until it says so."""

        def said() -> dict[str, Any] | None:
            told = self.takes(0)
            return told if all(told[name] == value for name, value in facts.items()) else None

        return eventually(said, 30)

    def save(self, file: Path) -> None:
        self.process.tell(f"state {file}")
        self.process.facts(lambda fact: "saved" in fact)

    def end(self) -> None:
        self.process.tell("end")
        assert 0 == self.process.wait()


@contextmanager
def stepwise(daemon: Daemon, folder: Path, *state: Path) -> Iterator[Stepwise]:
    arguments = ["vgg", *map(str, state)]
    with program("stepwise.py", *arguments, log=folder / "vgg.log", LIVETUNE_ENDPOINT=daemon.target) as process:
        job = Stepwise(process)
        job.until(connected=True)
        yield job


def code_of(command: subprocess.Popen[str]) -> int:
    command.communicate(timeout=60)
    return command.returncode


def known_step(shell: Shell, step: int) -> None:
    eventually(lambda: step == shell.data("describe", "vgg")["step"], 20)


def history(shell: Shell) -> list[tuple[dict[str, Any], list[int]]]:
    """The changes of the job: what they assign, and the steps at which they took effect."""
    return [
        (
            {item["variable"]: item["new"] for item in change["assignments"]},
            [apply["step"] for apply in change["applies"]],
        )
        for change in shell.data("history", "vgg")
    ]


def test_a_change_takes_effect_at_its_step_and_not_before(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(3)
        known_step(shell, 3)
        answer = shell("set", "vgg", "lr=0.5", "wd=0.25", "--at-step", "10", "--reason", "warm up is over")
        assert (0, "") == (answer.code, answer.err)
        revision = shell.data("get", "vgg")["scheduled"][0]["revision"]
        assert [
            f"lr 0.1 → 0.5   scheduled for step 10 as revision {revision}",
            f"wd 0 → 0.25   scheduled for step 10 as revision {revision}",
        ] == answer.out.splitlines()
        got = shell("get", "vgg", "lr")
        assert f"waits for step 10: lr 0.1 → 0.5, wd 0 → 0.25  (revision {revision}, by " in got.out
        assert [] == shell.data("history", "vgg")
        job.until(waiting=[10])
        assert 0.1 == job.takes(6)["lr"]
        told = job.takes(1)
        assert (10, 0.5, 0.25, []) == (told["step"], told["lr"], told["wd"], told["waiting"])
        eventually(lambda: [({"lr": 0.5, "wd": 0.25}, [10])] == history(shell))
        change = shell.data("history", "vgg")[0]
        assert (revision, "warm up is over") == (change["scheduled_revision"], change["reason"])
        assert [] == shell.data("get", "vgg")["scheduled"]
        # It is undone by either of its revisions.
        waiting = shell.start("undo", "vgg", str(revision))
        eventually(lambda: 0.1 == job.takes(1)["lr"], 30)
        assert 0 == code_of(waiting)


def test_in_so_many_steps_counts_from_what_the_job_told(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(5)
        known_step(shell, 5)
        assert "fire save   scheduled for step 9" in shell("trigger", "vgg", "save", "--in", "4").out
        job.until(waiting=[9])
        job.takes(3)
        job.process.tell("save")
        assert not job.process.facts(lambda fact: "consumed" in fact)["consumed"]
        job.takes(1)
        job.process.tell("save")
        assert {"consumed": True, "at": 9} == job.process.facts(lambda fact: "consumed" in fact)
        eventually(lambda: [({}, [9])] == history(shell))


def test_a_change_made_meanwhile_holds_until_then(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(1)
        shell("set", "vgg", "lr=0.5", "--at-step", "9000")
        job.until(waiting=[9000])
        waiting = shell.start("set", "vgg", "lr=0.3")
        eventually(lambda: 0.3 == job.takes(1)["lr"], 30)
        assert 0 == code_of(waiting)
        job.takes(9000 - job.takes(0)["step"])
        eventually(lambda: [{"lr": 0.3}, {"lr": 0.5}] == [values for values, _ in history(shell)])
        assert [9000] == history(shell)[-1][1]
        assert 0.5 == shell.data("get", "vgg")["variables"][0]["desired"]


def test_a_cancelled_change_never_takes_effect(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(1)
        first = shell.data("set", "vgg", "lr=0.5", "--at-step", "5")["revision"]
        second = shell.data("set", "vgg", "lr=0.7", "--at-step", "6")["revision"]
        which = shell("cancel", "vgg")
        assert 2 == which.code
        assert f"2 of job 'vgg' wait: {first}: lr 0.1 → 0.5 at step 5; {second}: lr 0.1 → 0.7 at step 6" in which.err
        job.until(waiting=[5, 6])
        answer = shell("cancel", "vgg", str(first), "--reason", "not needed")
        assert (0, "lr 0.1 → 0.5   cancelled: it waited for step 5\n") == (answer.code, answer.out)
        job.until(waiting=[6])
        assert 0.1 == job.takes(4)["lr"]
        assert 0.7 == job.takes(1)["lr"]
        eventually(lambda: [({"lr": 0.7}, [6])] == history(shell))
        for revision, why in ((first, "it was cancelled"), (second, "it was made, at revision"), (1, "none was")):
            refused = shell("cancel", "vgg", str(revision))
            assert 3 == refused.code
            assert why in refused.err
        assert "was cancelled; there is nothing to undo" in shell("undo", "vgg", str(first)).err
        assert 3 == shell("cancel", "vgg").code
        events = shell.start("watch", "vgg", "--after", "0", "-o", "jsonl")
        assert events.stdout is not None
        kinds = [json.loads(events.stdout.readline())["kind"] for _ in range(5)]
        events.kill()
        events.communicate()
        assert ["registered", "declared", "scheduled", "scheduled", "cancelled"] == kinds[:5]


def test_what_cannot_be_scheduled_has_its_exit_code(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(20)
        known_step(shell, 20)
        cases = [
            (("set", "vgg", "lr=0.5", "--at-step", "20"), 5, "step 20 has passed: job 'vgg' is at step 20"),
            (("set", "vgg", "lr=5", "--at-step", "30"), 5, "it must be <= 1.0"),
            (("set", "vgg", "lr=0.5", "--at-step", "0"), 2, "'0' is not a step"),
            (
                ("set", "vgg", "lr=0.5", "--at-step", str(2**64)),
                2,
                "is not a step: a whole number from 1 on, of 63 bits",
            ),
            (("set", "vgg", "lr=0.5", "--in", "-3"), 2, "'-3' is not a step"),
            (("set", "vgg", "lr=0.5", "--in", "1", "--at-step", "30"), 2, "exclude each other"),
            (("set", "vgg", "lr=0.5", "--in", "1", "--wait", "applied"), 2, "is not waited for"),
            (("trigger", "vgg", "save", "--in", "1", "--merge"), 2, "--merge is for firings that wait now"),
            (("trigger", "vgg", "sav", "--in", "1"), 3, "did you mean 'save'?"),
        ]
        for words, code, text in cases:
            answer = shell.inside(*words)
            assert (code, "") == (answer.code, answer.out), (words, answer)
            assert text in answer.err, (words, answer)
        dry = shell("set", "vgg", "lr=0.5", "--in", "10", "--dry-run")
        assert (0, "would set lr 0.1 → 0.5 at step 30\n") == (dry.code, dry.out)
        assert [] == shell.data("get", "vgg")["scheduled"]


def test_a_job_that_cannot_hold_changes_is_not_asked_to(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "old")
        process.join()
        process.declare(float_spec("lr", 0.1))
        answer = shell("set", "old", "lr=0.5", "--at-step", "10")
        assert 1 == answer.code
        assert "rank 0 of job 'old' can't hold a change until its step: its SDK" in answer.err


def test_the_step_comes_while_the_daemon_is_away(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with stepwise(daemon, tmp_path) as job:
        job.takes(1)
        shell("set", "vgg", "lr=0.5", "--at-step", "5")
        shell("trigger", "vgg", "save", "--at-step", "6")
        job.until(waiting=[5, 6])
        daemon.kill()
        job.until(connected=False)
        told = job.takes(9)
        assert [[5, {"lr": 0.5}]] == told["changes"]
        job.process.tell("save")
        assert job.process.facts(lambda fact: "consumed" in fact)["consumed"]
        daemon.start()
        job.until(connected=True)
        eventually(lambda: [({"lr": 0.5}, [5]), ({}, [10])] == history(shell), 20)
        assert 0.5 == shell.data("get", "vgg")["variables"][0]["desired"]
        assert [[5, {"lr": 0.5}]] == job.takes(3)["changes"]


def test_a_restarted_program_goes_on_from_its_checkpoint(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with stepwise(daemon, tmp_path) as job:
        job.takes(2)
        waiting = shell.start("set", "vgg", "lr=0.2")
        eventually(lambda: 0.2 == job.takes(1)["lr"], 30)
        assert 0 == code_of(waiting)
        job.takes(9000 - job.takes(0)["step"])
        shell("set", "vgg", "wd=0.5", "--at-step", "9005")
        shell("set", "vgg", "wd=0.9", "--at-step", "9100")
        job.until(waiting=[9005, 9100])
        job.save(state)
        assert 0.5 == job.takes(10)["wd"]  # after the checkpoint: it will come again, at the same step
        eventually(lambda: 2 == len(history(shell)))
    shell("set", "vgg", "lr=0.3", "--wait", "accepted", "--reason", "while it was down")
    with stepwise(daemon, tmp_path, state) as job:
        assert (9000, 0.2, 0.0) == (job.begun["step"], job.begun["lr"], job.begun["wd"])
        told = job.takes(1)
        assert (9001, 0.3, 0.0) == (told["step"], told["lr"], told["wd"])  # what was set meanwhile wins
        assert "variable 'lr' is 0.3, set at revision" in (tmp_path / "vgg.log").read_text()
        assert "that wins over the checkpoint's 0.2" in (tmp_path / "vgg.log").read_text()
        told = job.takes(4)
        assert [[9001, {"lr": 0.3}], [9005, {"wd": 0.5}]] == told["changes"]
        assert [9100] == told["waiting"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["a new run", "another daemon"])
def test_what_waits_in_a_checkpoint_waits_in_the_next_run(
    daemon: Daemon, shell: Shell, tmp_path: Path, elsewhere: bool
) -> None:
    state = tmp_path / "state.json"
    with stepwise(daemon, tmp_path) as job:
        job.takes(20)
        revision = shell.data("set", "vgg", "lr=0.5", "--at-step", "25", "--reason", "later")["revision"]
        job.until(waiting=[25])
        job.save(state)
        job.end()
    if elsewhere:
        daemon.close()
        daemon.state.rename(tmp_path / "away")
        daemon.start()
    with stepwise(daemon, tmp_path, state) as job:
        waiting = eventually(lambda: shell.data("get", "vgg")["scheduled"])
        assert [(25, "later")] == [(change["at_step"], change["reason"]) for change in waiting]
        assert revision == waiting[0]["scheduled_revision"]
        job.until(waiting=[25])
        assert 0.1 == job.takes(4)["lr"]
        assert 0.5 == job.takes(1)["lr"]
        eventually(lambda: [({"lr": 0.5}, [25])] == history(shell))
        assert [] == shell.data("get", "vgg")["scheduled"]


def test_a_checkpoint_is_gone_on_from_without_a_daemon(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with stepwise(daemon, tmp_path) as job:
        job.takes(20)
        shell("set", "vgg", "lr=0.5", "--at-step", "25")
        job.until(waiting=[25])
        job.save(state)
    daemon.kill()
    with program(
        "stepwise.py", "vgg", str(state), log=tmp_path / "vgg.log", LIVETUNE_ENDPOINT=daemon.target
    ) as process:
        job = Stepwise(process)
        assert (24, 0.1) == ((told := job.takes(4))["step"], told["lr"])
        assert 0.5 == job.takes(1)["lr"]
        daemon.start()
        job.until(connected=True)
        # It belongs to the same run: the history has it, at its step.
        eventually(lambda: [({"lr": 0.5}, [25])] == history(shell), 20)
        assert [] == shell.data("get", "vgg")["scheduled"]
