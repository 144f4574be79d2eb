"""No file descriptor left: what is connected goes on, the daemon does not spin, and when there are some it takes connections."""

from __future__ import annotations

import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from livetune.v1 import control_pb2, types_pb2
from support.calls import get_job, set_request
from support.daemon import Daemon, eventually
from support.metrics import page
from support.plants import PlantedDaemon
from support.programs import Program, program
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22160-22169")
SPARE = 15
"""Descriptors that are left before the flood comes."""
LOG_BYTES = 100_000
"""What the daemon may log over one flood."""
WATCHED_SECONDS = 2.0
"""How long the daemon's work is measured while it can take nothing, in seconds."""


def addresses(daemon: Daemon) -> dict[str, tuple[int, str | tuple[str, int]]]:
    """Returns where a daemon takes connections: families and addresses."""
    return {
        "socket": (socket.AF_UNIX, str(daemon.socket)),
        "metrics": (socket.AF_INET, ("127.0.0.1", daemon.metrics_port)),
        "job port": (socket.AF_INET, ("127.0.0.1", get_job(daemon).port)),
    }


@contextmanager
def flood(daemon: Daemon, family: int, address: str | tuple[str, int]) -> Iterator[None]:
    """Opens connections until the daemon has no descriptor left for one more."""
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    limit, _ = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as connections:
        # Twice as many as it can take: the others wait in the kernel.
        for _ in range(2 * SPARE):
            connections.enter_context(socket.socket(family, socket.SOCK_STREAM)).connect(address)
        eventually(lambda: process.num_fds() >= limit)
        yield


def exhaust(daemon: Daemon, job: Program, where: str) -> float:
    """Floods a daemon and checks what goes on meanwhile. Returns the share of a core that it used while it did nothing."""
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    with daemon.control() as control:
        watch = control.Watch(control_pb2.WatchRequest(job="jobs/vgg"), timeout=120)
        next(watch)
        family, address = addresses(daemon)[where]
        # The soft limit only: the hard one could not be raised again in the next round.
        _, most = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + SPARE, most))
        with flood(daemon, family, address):
            for lr in (0.2, 0.3):
                revision = control.SetVariables(set_request("vgg", lr=lr), timeout=5).change.revision
                while (response := next(watch)).event.revision < revision:
                    pass
                assert revision == response.event.revision
                job.facts(lambda fact, lr=lr: _connected(fact) and fact["lr"] == lr, 30)
            before = process.cpu_times()
            time.sleep(WATCHED_SECONDS)  # nothing is waited for: the daemon's work is measured over this time
            after = process.cpu_times()
        watch.cancel()
    return (after.user + after.system - before.user - before.system) / WATCHED_SECONDS


def _connected(fact: dict[str, object]) -> bool:
    assert fact["connected"], "the session ended"
    return True


def exhaust_often(daemon: Daemon, folder: Path, rounds: int, chosen_seed: int) -> dict[str, object]:
    generator = random.Random(chosen_seed)
    busiest, longest_log, log = 0.0, 0, daemon.folder / "daemon.log"
    daemon.start()
    with program("trainer.py", "vgg", log=folder / "trainer.log", LIVETUNE_ENDPOINT=daemon.target) as job:
        job.facts(lambda fact: fact["connected"])
        places = sorted(addresses(daemon))
        for number in range(rounds):
            logged = log.stat().st_size
            where = places[number] if number < len(places) else generator.choice(places)
            busiest = max(busiest, exhaust(daemon, job, where))
            assert busiest < 0.7, "the daemon spins"
            longest_log = max(longest_log, log.stat().st_size - logged)
            assert longest_log < LOG_BYTES, "the daemon floods its log"
            # There are descriptors again: so there are connections.
            eventually(lambda: _reachable(daemon), 20)
            assert types_pb2.JOB_STATE_RUNNING == get_job(daemon).state
        job.tell()
        assert 0 == job.facts(lambda fact: "done" in fact)["errors"]
    return {"busiest_share_of_a_core": round(busiest, 2), "most_logged_bytes": longest_log}


def _reachable(daemon: Daemon) -> bool:
    try:
        return get_job(daemon).port > 0 and "ok" in page(daemon, "/healthz")
    except (OSError, grpc.RpcError, grpc.FutureTimeoutError):
        return False


def test_without_descriptors_what_is_connected_goes_on(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, *PORTS)
    try:
        exhaust_often(daemon, tmp_path, rounds=2, chosen_seed=seed(81))
    finally:
        daemon.close()


def test_control_descriptors_for_each_change_are_missed(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, [f"descriptors_per_change={SPARE // 2}"], *PORTS)
    try:
        with pytest.raises(grpc.RpcError):
            exhaust_often(daemon, tmp_path, rounds=1, chosen_seed=seed(81))
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_descriptors_again_and_again(tmp_path: Path) -> None:
    chosen, rounds = seed(82), count("DESCRIPTOR_FLOODS", 30)
    daemon = Daemon(tmp_path, *PORTS)
    with long_run("descriptors exhausted", chosen, floods=rounds) as figures:
        try:
            figures.update(exhaust_often(daemon, tmp_path, rounds, chosen))
        finally:
            daemon.close()
