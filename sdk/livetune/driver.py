"""Owns the thread that talks to the daemon: it connects, registers, carries messages both ways, and begins again.

The training thread never waits for it. gRPC and protobuf are loaded here, in this thread, and nowhere else.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from livetune import messages as m
from livetune._version import __version__
from livetune.endpoints import CHANNEL_OPTIONS, candidates, parse_endpoint, resolve
from livetune.errors import LiveTuneError
from livetune.specs import utf8

if TYPE_CHECKING:
    from livetune.v1 import job_pb2

__all__ = ["Driver", "Identity"]

log = logging.getLogger("livetune")

TICK_SECONDS = 1.0
"""How often the daemon is told where the program is."""
REGISTER_SECONDS = 10.0
"""How long a registration may take."""
BACKOFF_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts: a job follows a daemon that is back within the longer one."""
REFUSED_SECONDS = 5.0
"""Pause after the daemon refused this process: somebody must do something first."""

_OPTIONS: list[tuple[str, Any]] = [
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True)
class Identity:
    """Who this process is to the daemon."""

    job: str
    instance_id: str
    rank: int
    world_size: int
    latest_only: bool = False
    """After a break, only the newest value of each variable."""
    leads: bool = False
    """It speaks for all ranks: the others take from it what they apply."""


class Driver:
    """Runs one job's conversation with the daemon in a thread of its own.

    Args:
        identity: Who we are.
        endpoint: Where the daemon is; None to look for it anew at every attempt.
        deliver: Takes an event; called on the driver's threads. The actions that follow come back through `send`.
        step: Tells where the program is.
    """

    def __init__(
        self, identity: Identity, endpoint: str | None, deliver: Callable[[m.Event], None], step: Callable[[], int]
    ) -> None:
        self._identity = identity
        self._targets = None if endpoint is None else [parse_endpoint(endpoint)]
        self._deliver = deliver
        self._step = step
        self._out: queue.SimpleQueue[m.Message | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._call: Any = None  # the open stream; grpc's call objects have no common type
        self._token = ""
        self._told = ""
        self._refused = False
        self._position_refused = False
        self.trying = True
        """False during the pauses between attempts."""
        self._thread = threading.Thread(target=self._run, name=f"livetune-{identity.job}", daemon=True)

    def start(self) -> None:
        """Start the thread. Returns at once."""
        self._thread.start()

    def send(self, message: m.Message) -> None:
        """Put a message on the stream, if there is one; the session repeats what matters on the next. Never blocks."""
        self._out.put(message)

    def stop(self, seconds: float) -> None:
        """End the conversation and wait for the thread, at most so long."""
        self._stopped.set()
        self._out.put(None)
        call = self._call  # the thread may clear it at any moment
        if call is not None:
            call.cancel()
        self._thread.join(seconds)

    def _run(self) -> None:
        pause, longest = BACKOFF_SECONDS
        while not self._stopped.is_set():
            begun = time.monotonic()
            self.trying = True
            try:
                self._converse()
            except Exception as error:  # noqa: BLE001 - whatever goes wrong here, training goes on
                self._explain(error)
            self.trying = False
            self._deliver(m.Disconnected(self._position_refused))
            if time.monotonic() - begun > longest:
                pause = BACKOFF_SECONDS[0]
            self._stopped.wait(REFUSED_SECONDS if self._refused else pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, longest)

    def _converse(self) -> None:
        """Register and hold one stream until it ends."""
        target = resolve(self._targets or candidates(os.environ))
        import grpc

        from livetune import wire
        from livetune.v1 import job_pb2_grpc

        self._out = queue.SimpleQueue()
        with grpc.insecure_channel(target, options=_OPTIONS) as channel:
            stub = job_pb2_grpc.JobServiceStub(channel)
            answer = stub.Register(self._registration(), timeout=REGISTER_SECONDS)
            self._refused = False
            self._token = answer.job_token
            self._deliver(wire.registered_from_response(answer))
            self._call = stub.Session(self._requests())
            if self._stopped.is_set():  # stop() may have come too early to see the call
                self._call.cancel()
            try:
                for response in self._call:
                    event = wire.event_from_response(response)
                    if isinstance(event, m.Opened):
                        self._tell(logging.INFO, f"connected to {target}, port {answer.port}")
                    if event is not None:
                        self._deliver(event)
                    if isinstance(event, m.EndRecorded):
                        self._stopped.set()
                        return
                raise ConnectionError("the daemon closed the stream")
            finally:
                self._call = None
                self._out.put(None)

    def _registration(self) -> job_pb2.RegisterRequest:
        from livetune.v1 import job_pb2, types_pb2
        from livetune.wire import job_name

        identity = self._identity
        user = ""
        with contextlib.suppress(KeyError, OSError):  # a uid without a name, as in containers
            user = getpass.getuser()
        return job_pb2.RegisterRequest(
            job=job_name(identity.job),
            instance_id=identity.instance_id,
            rank=identity.rank,
            world_size=identity.world_size,
            leads=identity.leads,
            process=types_pb2.Process(
                host=socket.gethostname(),
                pid=os.getpid(),
                user=user,
                command=utf8(" ".join(sys.orig_argv), 1000),
                sdk_version=__version__,
            ),
            job_token=self._token,
        )

    def _requests(self) -> Iterator[job_pb2.SessionRequest]:
        """Yield what is to be sent, on gRPC's thread; about once a second without anything, tell where we are."""
        from livetune import wire

        identity, out = self._identity, self._out
        next_tick = time.monotonic() + TICK_SECONDS
        while True:
            try:
                message = out.get(timeout=max(0.0, next_tick - time.monotonic()))
            except queue.Empty:
                next_tick = time.monotonic() + TICK_SECONDS
                self._deliver(m.Tick(self._step()))
                continue
            if message is None:
                return
            yield wire.request_from_message(
                message,
                job=identity.job,
                instance_id=identity.instance_id,
                rank=identity.rank,
                token=self._token,
                latest_only=identity.latest_only,
            )

    def _explain(self, error: Exception) -> None:
        """Say once what is wrong, and remember what it means for the next attempt."""
        if self._stopped.is_set():
            return
        text = _text(error)
        refusal = None
        if type(error).__module__.startswith("grpc"):
            from livetune.status import refusal_of

            refusal = refusal_of(error)  # type: ignore[arg-type] # an error of grpc's, which is not loaded for its type
            text = refusal.message
        reason = "" if refusal is None else refusal.reason
        self._position_refused = reason == "STORE_REPLACED"
        self._refused = reason in ("JOB_EXISTS", "JOB_ENDED", "LIMIT_EXCEEDED", "PORTS_EXHAUSTED", "INVALID_NAME")
        if self._refused:
            self._tell(logging.WARNING, f"the daemon refuses this process, it trains on untuned: {text}")
        elif reason != "STORE_REPLACED":
            self._tell(logging.WARNING, f"no daemon, training on with the last values until there is one ({text})")

    def _tell(self, level: int, text: str) -> None:
        # One line for each change of state, however many attempts it takes.
        state = text.partition(" (")[0] if level != logging.INFO else text
        if state != self._told:
            self._told = state
            log.log(level, "job %s: %s", self._identity.job, text)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, (LiveTuneError, OSError)) else f"{type(error).__name__}: {error}"
