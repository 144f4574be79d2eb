"""The SDK with one planted bug, named by LIVETUNE_PLANTED: the controls of the tests of training. See `BUGS`.

Each takes one protection out. Imported by the programs that train, before they make a job.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import livetune.job
from livetune import messages as m
from livetune.driver import ThreadDriver
from livetune.job import Job
from livetune.ranks import Lockstep

_step = Job.step


def waits() -> None:
    """A step is over when the daemon has answered."""
    from livetune.v1 import control_pb2, control_pb2_grpc

    def step(self: Job, step: int | None = None) -> None:
        _step(self, step)
        if self.connected:
            import grpc

            with grpc.insecure_channel(os.environ["LIVETUNE_ENDPOINT"]) as channel:
                request = control_pb2.GetJobRequest(name=f"jobs/{self.name}")
                control_pb2_grpc.ControlServiceStub(channel).GetJob(request)

    Job.step = step  # type: ignore[method-assign]


def knocks() -> None:
    """A step looks whether the daemon is there."""

    def step(self: Job, step: int | None = None) -> None:
        _step(self, step)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect_ex(os.environ["LIVETUNE_ENDPOINT"].removeprefix("unix:"))

    Job.step = step  # type: ignore[method-assign]


def raises() -> None:
    """A step tells the program when the daemon has gone."""
    been_there = threading.Event()

    def step(self: Job, step: int | None = None) -> None:
        _step(self, step)
        if self.connected:
            been_there.set()
        elif been_there.is_set():
            raise ConnectionError("the daemon has gone")

    Job.step = step  # type: ignore[method-assign]


def gives_up() -> None:
    """The thread that talks to the daemon does so once."""
    converse = ThreadDriver._converse

    def once(self: ThreadDriver) -> None:
        try:
            converse(self)
        finally:
            self._conversation.over = True

    ThreadDriver._converse = once  # type: ignore[method-assign]


def never_leaves() -> None:
    """The end of the program waits until the daemon has recorded it, however long that takes."""
    livetune.job.FINISH_SECONDS = 1e6
    deliver = Job._deliver

    def deaf(self: Job, event: m.Event) -> None:
        if not (self._finished and isinstance(event, m.Disconnected)):  # a daemon that has gone is waited for as well
            deliver(self, event)

    Job._deliver = deaf  # type: ignore[method-assign]


def alive_in_children() -> None:
    """A forked child believes that it is the job."""
    Job._become_inert = lambda self: None  # type: ignore[method-assign]


def ranks_raise() -> None:
    """A rank that is gone is told to the program of the others."""

    def meet(self: Job, lockstep: Lockstep) -> None:
        lockstep.at_safe_point(self._step)

    Job._meet = meet  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (waits, knocks, raises, gives_up, never_leaves, alive_in_children, ranks_raise)
}

if name := os.environ.get("LIVETUNE_PLANTED"):
    BUGS[name]()
