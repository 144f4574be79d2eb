"""`ltctl set` under a schedule: the learning rate that was asked for is used, and what the step really used is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import program
from support.shell import Shell, state_of

JOBS = ("onecycle", "lambda", "cosine", "rebase")


def test_the_learning_rate_that_was_asked_for_is_used_and_told(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    with program("annealing.py", log=tmp_path / "jobs.log", LIVETUNE_ENDPOINT=daemon.target) as process:
        for name in JOBS:
            eventually(lambda name=name: types_pb2.JOB_STATE_RUNNING == state_of(daemon, name), 60)
        for name in ("onecycle", "lambda", "cosine"):
            answer = shell("set", name, "lr=0.02")
            assert 0 == answer.code, answer
            assert "used" not in answer.out  # it used what was asked for: there is nothing more to say
            fact = process.facts(lambda fact, name=name: fact["job"] == name)
            assert (0.02, 0.02) == (fact["lr"], fact["used"])
            (outcome,) = shell.data("set", name, "lr=0.03")["applied"]["lr"]
            assert ("applied", 0.03, [0.03]) == (outcome["status"], outcome["effective"], outcome["used"])
        # A new base is another thing: half a schedule later the step uses a part of it.
        (outcome,) = shell.data("set", "rebase", "lr=0.05")["applied"]["lr"]
        fact = process.facts(lambda fact: fact["job"] == "rebase")
        assert 0.05 == fact["lr"]
        assert [pytest.approx(fact["used"], rel=1e-9)] == outcome["used"]
        process.tell()
        assert 0 == process.wait()
    applied = [change["applies"][0]["outcomes"][0] for change in shell.data("history", "onecycle")]
    assert [[0.02], [0.03]] == [outcome["used"] for outcome in applied]
