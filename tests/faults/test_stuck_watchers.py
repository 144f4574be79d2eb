"""Watchers that are frozen or do not read: the healthy ones get everything, the daemon keeps little, the stuck are let go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from support.daemon import Daemon, eventually
from support.metrics import metric, page
from support.plants import PlantedDaemon
from support.process import Process
from support.programs import Program, program
from support.results import count, long_run, seed

JOB = "jobs/vgg"
PORTS = ("--job-ports", "22100-22109")
VALUE_BYTES = 60_000
HEALTHY = 5
PER_PROCESS = 10
"""Watches of one client process, each over a connection of its own."""
KEPT_BYTES = 6_000_000
"""What the daemon may keep for one watcher that does not read: gRPC takes about 4 MB before it says that it is enough."""


class Healthy:
    """A watcher that reads what comes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stream = control_pb2_grpc.ControlServiceStub(channel).Watch(control_pb2.WatchRequest(job=JOB))
        next(self._stream)
        self.revisions: list[int] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._stream:
                if response.HasField("event"):
                    self.revisions.append(response.event.revision)
        except grpc.RpcError:
            pass  # cancelled

    def close(self) -> None:
        self._stream.cancel()
        self._thread.join(10)


def declare_text(daemon: Daemon) -> None:
    """Leaves a job with one text variable."""
    spec = types_pb2.VariableSpec(variable_id="text", type=types_pb2.VARIABLE_TYPE_STRING)
    spec.initial.string_value = ""
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        assert not process.declare(spec).variables[0].HasField("error")
        process.close()


def set_texts(daemon: Daemon, changes: int) -> list[int]:
    """Changes the text so often; returns the revisions."""
    revisions = []
    with daemon.control() as control:
        for number in range(changes):
            request = control_pb2.SetVariablesRequest(job=JOB)
            request.updates.add(variable_id="text").value.string_value = f"{number:08}" * (VALUE_BYTES // 8)
            revisions.append(control.SetVariables(request, timeout=30).change.revision)
    return revisions


def resumed(daemon: Daemon, after: int, head: int) -> list[int]:
    """Returns the revisions that a watch gets which resumes after one, up to another."""
    with daemon.control() as control:
        stream = control.Watch(control_pb2.WatchRequest(job=JOB, after_revision=after), timeout=30)
        found = [next(stream).bookmark.revision]
        while found[-1] < head:
            found.append(next(stream).event.revision)
        stream.cancel()
        return found[1:]


@contextmanager
def clients(daemon: Daemon, folder: Path, number: int, how: str) -> Iterator[list[Program]]:
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                program("watchers.py", daemon.target, JOB, str(PER_PROCESS), how, log=folder / f"{how}.log")
            )
            for _ in range(number // PER_PROCESS)
        ]
        for client in started:
            assert "watching" == client.line()
        yield started


def watch_beside_stuck(daemon: Daemon, folder: Path, *, stuck: int, frozen: int, changes: int) -> dict[str, Any]:
    """Checks what healthy watchers get beside stuck and frozen ones, and what becomes of those. Returns figures."""
    declare_text(daemon)
    with (
        clients(daemon, folder, stuck, "stuck") as stuck_clients,
        clients(daemon, folder, frozen, "read") as frozen_clients,
        daemon.channel() as channel,
    ):
        healthy = [Healthy(channel) for _ in range(HEALTHY)]
        watching = stuck + frozen + HEALTHY
        eventually(lambda: metric(daemon, "livetune_watchers") == watching)
        for client in frozen_clients:
            client.freeze()
        assert daemon.process is not None
        memory = psutil.Process(daemon.process.pid)
        before = memory.memory_info().rss
        revisions = set_texts(daemon, changes)
        for watcher in healthy:
            eventually(lambda watcher=watcher: len(watcher.revisions) >= changes, 60)
            assert revisions == watcher.revisions
        kept = memory.memory_info().rss - before
        assert kept < KEPT_BYTES * (stuck + frozen) + 100_000_000, f"{kept / 1e6:.0f} MB kept"
        # The daemon lets go of them by itself.
        eventually(lambda: metric(daemon, "livetune_watchers") == HEALTHY, 120)
        for client in frozen_clients:
            client.thaw()
            client.tell()
            for _ in range(PER_PROCESS):
                check_prefix(json.loads(client.line()), revisions)
        for client in stuck_clients:
            client.tell()
            for number in range(PER_PROCESS):
                result = json.loads(client.line())
                last = check_prefix(result, revisions)
                assert ("ABORTED", "WATCH_TOO_SLOW") == (result["status"], result["reason"])
                if number == 0:
                    assert [revision for revision in revisions if revision > last] == resumed(
                        daemon, last, revisions[-1]
                    )
        for watcher in healthy:
            watcher.close()
    assert "ok" in page(daemon, "/healthz")
    assert "Traceback" not in daemon.log
    return {"kept_mb_per_watcher": round(kept / (stuck + frozen) / 1e6, 2), "sent_mb": changes * VALUE_BYTES // 10**6}


def check_prefix(result: dict[str, Any], revisions: list[int]) -> int:
    """Checks that what a watcher got has no gap, repeat or disorder, as far as it goes. Returns where it ends."""
    seen = result["revisions"]
    assert revisions[: len(seen)] == seen
    return int(seen[-1]) if seen else int(result["start"])


def test_stuck_watchers_cost_the_others_nothing(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["stall_seconds=2"], *PORTS)
    try:
        daemon.start()
        watch_beside_stuck(daemon, tmp_path, stuck=10, frozen=10, changes=400)
    finally:
        daemon.close()


def test_control_a_queue_for_each_watcher_keeps_everything(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["stall_seconds=60", "queue_per_watcher"], *PORTS)
    try:
        daemon.start()
        with pytest.raises(AssertionError, match="MB kept"):
            watch_beside_stuck(daemon, tmp_path, stuck=20, frozen=0, changes=400)
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_stuck_watchers_cost_the_others_nothing(tmp_path: Path) -> None:
    stuck, frozen, changes = count("STUCK", 50), count("FROZEN", 50), count("STUCK_CHANGES", 1_500)
    daemon = Daemon(tmp_path, *PORTS)
    with long_run("stuck watchers", seed(0), stuck=stuck, frozen=frozen, changes=changes) as figures:
        try:
            daemon.start()
            figures.update(watch_beside_stuck(daemon, tmp_path, stuck=stuck, frozen=frozen, changes=changes))
        finally:
            daemon.close()
