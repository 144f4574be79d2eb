"""A daemon or a job that is frozen (SIGSTOP): training goes on, the other side notices within seconds, and both meet again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from livetune.v1 import types_pb2
from support.calls import get_job, set_request, set_values
from support.daemon import Daemon, eventually
from support.plants import PlantedDaemon
from support.programs import Program, program
from support.results import long_run, seed

PORTS = ("--job-ports", "22110-22119")


@contextmanager
def training(daemon: Daemon, folder: Path) -> Iterator[Program]:
    """A job that trains and is connected."""
    with program("trainer.py", "vgg", log=folder / "trainer.log", LIVETUNE_ENDPOINT=daemon.target) as job:
        job.facts(lambda fact: fact["connected"])
        yield job


def freeze_daemon(
    daemon: Daemon, job: Program, long_enough: Callable[[dict[str, Any], int], object]
) -> dict[str, float]:
    """Freezes the daemon until the job says what is waited for; a change is asked for meanwhile. Returns seconds and steps."""
    assert daemon.process is not None
    before = job.facts(lambda fact: True)["step"]
    with daemon.control() as control:
        daemon.process.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        asked = threading.Thread(target=lambda: control.SetVariables(set_request(lr=0.02), timeout=60))
        asked.start()
        steps = job.facts(lambda fact: long_enough(fact, before), 90)["step"] - before
        thawed = time.monotonic()
        daemon.process.send_signal(signal.SIGCONT)
        asked.join(60)
    job.facts(lambda fact: fact["connected"] and fact["lr"] == 0.02, 30)
    converged = time.monotonic()
    set_values(daemon, lr=0.03)
    assert 0 == job.facts(lambda fact: fact["lr"] == 0.03, 30)["errors"]
    return {
        "frozen_s": round(thawed - frozen, 1),
        "steps_meanwhile": steps,
        "converged_s_after": round(converged - thawed, 2),
    }


def test_training_goes_on_beside_a_frozen_daemon(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(*PORTS).start()
    with training(daemon, tmp_path) as job:
        freeze_daemon(daemon, job, lambda fact, before: fact["step"] > before + 1_000)
        job.tell()
        assert 0 == job.facts(lambda fact: "done" in fact)["errors"]


@pytest.mark.slow
def test_a_frozen_daemon_is_noticed_and_taken_up_again(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(*PORTS).start()
    with long_run("frozen daemon", seed(0)) as figures, training(daemon, tmp_path) as job:
        figures.update(freeze_daemon(daemon, job, lambda fact, _: not fact["connected"]))
        job.tell()
        figures.update(job.facts(lambda fact: "done" in fact))
        assert 0 == figures["errors"]


def freeze_job(daemon: Daemon, job: Program, lost_within: float) -> float:
    """Freezes the job until the daemon calls it lost, and thaws it. Returns how long that took, in seconds."""
    eventually(lambda: get_job(daemon).state == types_pb2.JOB_STATE_RUNNING)
    job.freeze()
    frozen = time.monotonic()
    try:
        eventually(lambda: get_job(daemon).state == types_pb2.JOB_STATE_LOST, lost_within)
        lost = time.monotonic() - frozen
        set_values(daemon, lr=0.02)
    finally:
        job.thaw()
    job.facts(lambda fact: fact["lr"] == 0.02, 30)
    eventually(lambda: get_job(daemon).state == types_pb2.JOB_STATE_RUNNING, 30)
    return lost


@pytest.mark.slow
def test_a_frozen_job_is_called_lost_and_taken_back(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(*PORTS).start()
    with long_run("frozen job", seed(0)) as figures, training(daemon, tmp_path) as job:
        # 10 s of silence, a ping, 3 s without its answer.
        figures["lost_after_s"] = round(freeze_job(daemon, job, 30), 1)
        job.tell()
        assert 0 == job.facts(lambda fact: "done" in fact)["errors"]


@pytest.mark.slow
def test_control_without_a_ping_timeout_a_frozen_job_is_not_noticed(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["no_ping_timeout"], *PORTS)
    try:
        daemon.start()
        with (
            long_run("frozen job, control without ping_timeout", seed(0)) as figures,
            training(daemon, tmp_path) as job,
        ):
            figures["lost_after_s"] = lost = round(freeze_job(daemon, job, 100), 1)
            assert lost > 30, "the daemon noticed without it: this control controls nothing"
    finally:
        daemon.close()
