"""Checkpoint, evaluate, stop, pause and an end: with ltctl, on a running program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.shell import Shell, state_of


@contextmanager
def running(daemon: Daemon, folder: Path, max_steps: int = 0) -> Iterator[Program]:
    log = folder / "vgg.log"
    with program("controlled.py", "vgg", str(max_steps), log=log, LIVETUNE_ENDPOINT=daemon.target) as job:
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        yield job


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


def test_checkpoint_evaluate_and_stop(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with running(daemon, tmp_path) as job:
        assert 0 == shell("trigger", "vgg", "run.checkpoint", "run.evaluate").code
        saved = job.facts(lambda fact: "saved" in fact)["saved"]
        assert saved == job.facts(lambda fact: "evaluated" in fact)["evaluated"]
        assert 0 == shell("trigger", "vgg", "run.stop", "--reason", "it has converged").code
        told = job.facts(lambda fact: "tested" in fact)
        assert told["tested"] > saved
        assert not told["still"]
        assert 0 == job.wait()
    assert "finished" in shell("jobs", "-a").out


def test_a_paused_run_stands_still_takes_changes_and_goes_on(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with running(daemon, tmp_path) as job:
        assert 0 == shell("set", "vgg", "run.paused=true").code
        eventually(lambda: "paused at step" in job.log.read_text(), 20)
        assert "GiB of memory" in job.log.read_text()
        before = shell.data("describe", "vgg")["step"]
        assert 0 == shell("set", "vgg", "lr=0.5").code
        assert before == shell.data("describe", "vgg")["step"]
        # The daemon may go meanwhile: the run waits for its word.
        daemon.kill()
        daemon.start()
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        assert 0 == shell("set", "vgg", "run.paused=false").code
        assert 0.5 == job.facts(lambda fact: "lr" in fact)["lr"]
        assert "goes on after" in job.log.read_text()
        eventually(lambda: shell.data("describe", "vgg")["step"] > before, 20)


def test_a_paused_run_can_be_stopped(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with running(daemon, tmp_path) as job:
        assert 0 == shell("set", "vgg", "run.paused=true").code
        assert 0 == shell("trigger", "vgg", "run.stop").code
        assert 0 == job.wait()
        assert "stopped after" in job.log.read_text()


def test_a_run_ends_at_max_steps_and_the_end_can_be_moved(daemon: Daemon, shell: Shell, tmp_path: Path) -> None:
    with running(daemon, tmp_path, max_steps=100_000_000) as job:
        end = shell.data("describe", "vgg")["step"] + 2_000
        assert 0 == shell("set", "vgg", f"run.max_steps={end}").code
        assert end == job.facts(lambda fact: "tested" in fact)["tested"]
        assert 0 == job.wait()
