"""What a daemon acknowledged, kept outside of it, and compared with what it has after a fault."""

from __future__ import annotations

import threading

import grpc

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from support.calls import set_request
from support.daemon import Daemon
from support.process import Process, float_spec


def all_changes(daemon: Daemon, job: str) -> list[types_pb2.Change]:
    """Returns the whole history of a job, in order."""
    found: list[types_pb2.Change] = []
    with daemon.control() as control:
        before = 0
        while True:
            request = control_pb2.ListChangesRequest(job=f"jobs/{job}", page_size=1_000, before_revision=before)
            page = control.ListChanges(request, timeout=30)
            found[:0] = page.changes
            before = page.previous_before_revision
            if not before:
                return found


class Ledger:
    """Sets pairs x and -x, so that half a change shows, and remembers what was acknowledged. Used by one writer at a time."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, float] = {}
        self._last = 0.0
        self._jobs = 0

    @property
    def job(self) -> str:
        """The job whose pair is set."""
        return f"vgg-{self._jobs}"

    def declare(self, daemon: Daemon) -> None:
        """Leaves a job with the pair. May be repeated while nothing was acknowledged: another job is taken then."""
        assert not self.acknowledged
        self._jobs += 1
        with daemon.channel() as channel:
            process = Process(channel, self.job)
            process.join()
            process.declare(float_spec("x", 0.0), float_spec("y", 0.0))
            process.close()

    def write(self, control: control_pb2_grpc.ControlServiceStub) -> None:
        """Sets the next pair.

        Raises:
            grpc.RpcError: It was not acknowledged.
        """
        self._last += 1
        answer = control.SetVariables(set_request(self.job, x=self._last, y=-self._last), timeout=10)
        self.acknowledged[answer.change.revision] = self._last

    def write_until_error(self, daemon: Daemon, begun: threading.Event | None = None) -> grpc.StatusCode:
        """Sets pairs until one is not acknowledged. Returns the status of that one.

        Args:
            daemon: Who is asked.
            begun: Set once one was acknowledged.
        """
        with daemon.control() as control:
            while True:
                try:
                    self.write(control)
                except grpc.RpcError as error:
                    return error.code()
                if begun is not None:
                    begun.set()

    def wrong(self, daemon: Daemon) -> int:
        """Returns how many changes are missing, or half, or not as they were acknowledged, or were never asked for."""
        found: dict[int, tuple[float, ...]] = {}
        for change in all_changes(daemon, self.job):
            found[change.revision] = tuple(item.new_value.float_value for item in change.assignments)
        lost = sum(found.get(revision) != (value, -value) for revision, value in self.acknowledged.items())
        # What was asked for and never acknowledged may be there, whole.
        asked = {(float(value), float(-value)) for value in range(1, int(self._last) + 1)}
        return lost + sum(pair not in asked for pair in found.values())
