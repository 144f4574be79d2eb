"""kill -9 of the daemon while it writes: nothing acknowledged is lost, nothing is half done. With its control."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from livetune.v1 import control_pb2
from support.daemon import Daemon
from support.process import Process, float_spec

BROKEN = Path(__file__).parent.parent / "support" / "ack_before_commit.py"


class BrokenDaemon(Daemon):
    """A daemon that acknowledges before it commits."""

    def command(self) -> list[str]:
        return [sys.executable, str(BROKEN), *super().command()[3:]]


def update(values: dict[str, float]) -> control_pb2.SetVariablesRequest:
    request = control_pb2.SetVariablesRequest(job="jobs/vgg")
    for name, value in values.items():
        request.updates.add(variable_id=name).value.float_value = value
    return request


def kill_while_writing(daemon: Daemon, kills: int, seed: int) -> tuple[int, int]:
    """Returns how many changes were acknowledged, and how many of them are missing or not whole afterwards."""
    generator = random.Random(seed)
    acknowledged: dict[int, float] = {}
    number = 0.0
    daemon.start()
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("x", 0.0), float_spec("y", 0.0))
    for _ in range(kills):
        running = threading.Event()

        def write(running: threading.Event = running) -> None:
            nonlocal number
            with daemon.control() as control:
                while True:
                    number += 1
                    try:
                        answer = control.SetVariables(update({"x": number, "y": -number}), timeout=5)
                    except grpc.RpcError:
                        return
                    acknowledged[answer.change.revision] = number
                    running.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert running.wait(20)
        time.sleep(generator.uniform(0, 0.05))
        daemon.kill()
        writer.join()
        daemon.start()
    found: dict[int, tuple[float, float]] = {}
    with daemon.control() as control:
        before = 0
        while True:
            page = control.ListChanges(
                control_pb2.ListChangesRequest(job="jobs/vgg", page_size=1_000, before_revision=before)
            )
            for change in page.changes:
                x, y = (item.new_value.float_value for item in change.assignments)
                found[change.revision] = (x, y)
            before = page.previous_before_revision
            if not before:
                break
    wrong = sum(found.get(revision) != (value, -value) for revision, value in acknowledged.items())
    return len(acknowledged), wrong


def test_no_acknowledged_change_is_lost_by_kill_9(make_daemon: Callable[..., Daemon]) -> None:
    acknowledged, wrong = kill_while_writing(make_daemon("--job-ports", "22010-22019"), kills=5, seed=1)
    assert acknowledged > 5
    assert 0 == wrong


def test_control_acknowledging_before_the_commit_loses_changes(tmp_path: Path) -> None:
    daemon = BrokenDaemon(tmp_path, "--job-ports", "22010-22019")
    try:
        _, wrong = kill_while_writing(daemon, kills=5, seed=1)
    finally:
        daemon.close()
    assert wrong > 0


@pytest.mark.slow
def test_no_acknowledged_change_is_lost_by_many_kills(make_daemon: Callable[..., Daemon]) -> None:
    acknowledged, wrong = kill_while_writing(make_daemon("--job-ports", "22010-22019"), kills=200, seed=2)
    assert acknowledged > 200
    assert 0 == wrong
