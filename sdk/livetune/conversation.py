"""Owns what goes on around the session: how a process registers, when it tries again, what its user is told.

Sans I/O: no thread, no event loop, no clock, no channel. A driver has those, and asks here what to do. It makes
attempts. Each begins with a registration, holds one stream until it ends, and is judged by `ended`; then the driver
waits for as long as `pause` says. Nothing here loads gRPC or protobuf before there is a daemon to talk to.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import random
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from livetune import messages as m
from livetune._version import __version__
from livetune.endpoints import CHANNEL_OPTIONS, candidates, parse_endpoint
from livetune.errors import LiveTuneError
from livetune.specs import utf8

if TYPE_CHECKING:
    from livetune.v1 import job_pb2

__all__ = ["OPTIONS", "REGISTER_SECONDS", "TICK_SECONDS", "Conversation", "Identity"]

log = logging.getLogger("livetune")

TICK_SECONDS = 1.0
"""How often the daemon is told where the program is."""
REGISTER_SECONDS = 10.0
"""How long a registration may take."""
BACKOFF_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts: a job follows a daemon that is back within the longer one."""
REFUSED_SECONDS = 5.0
"""Pause after the daemon refused this process: somebody must do something first."""

OPTIONS: list[tuple[str, Any]] = [
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]
"""What a job's channel is made with."""


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


class Conversation:
    """One job's conversation with the daemon, over all its attempts. Belongs to the one thread or task that talks.

    Args:
        identity: Who we are.
        endpoint: Where the daemon is; None to look for it anew at every attempt.

    Raises:
        EndpointError: The endpoint can't be read.

    Attributes:
        over: There is nothing more to say: the end is recorded, or the driver was stopped.
    """

    def __init__(self, identity: Identity, endpoint: str | None) -> None:
        self._identity = identity
        self._targets = None if endpoint is None else [parse_endpoint(endpoint)]
        self.over = False
        self._target = ""
        self._token = ""
        self._port = 0
        self._told = ""
        self._refused = False
        self._next_pause = BACKOFF_SECONDS[0]

    def targets(self) -> list[str]:
        """Where to look for the daemon at this attempt, in order.

        Raises:
            EndpointError: ``LIVETUNE_ENDPOINT`` can't be read.
        """
        return self._targets or candidates(os.environ)

    def registration(self) -> job_pb2.RegisterRequest:
        """The first request of an attempt: who this process is."""
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

    def registered(self, answer: job_pb2.RegisterResponse, target: str) -> m.Event:
        """Take the answer to a registration, and where it came from; a stream may be opened now."""
        from livetune import wire

        self._refused = False
        self._token, self._port, self._target = answer.job_token, answer.port, target
        return wire.registered_from_response(answer)

    def heard(self, response: job_pb2.SessionResponse) -> m.Event | None:
        """Take a message of the stream. Returns None for one that this SDK does not know."""
        from livetune import wire

        event = wire.event_from_response(response)
        if isinstance(event, m.Opened):
            self._tell(logging.INFO, f"connected to {self._target}, port {self._port}")
        elif isinstance(event, m.EndRecorded):
            self.over = True
        return event

    def request(self, message: m.Message) -> job_pb2.SessionRequest:
        """Turn a message of the session into what goes over the stream."""
        from livetune import wire

        identity = self._identity
        return wire.request_from_message(
            message,
            job=identity.job,
            instance_id=identity.instance_id,
            rank=identity.rank,
            token=self._token,
            latest_only=identity.latest_only,
        )

    def ended(self, error: Exception | None) -> m.Disconnected:
        """Take how an attempt ended, and say once what is wrong.

        Args:
            error: What it ended with; None after an end that was recorded.
        """
        refusal = None
        if error is None or self.over:
            return m.Disconnected()
        text = _text(error)
        if type(error).__module__.startswith("grpc"):
            from livetune.status import refusal_of

            refusal = refusal_of(error)  # type: ignore[arg-type] # an error of grpc's, which is not loaded for its type
            text = refusal.message
        reason = "" if refusal is None else refusal.reason
        self._refused = reason in ("JOB_EXISTS", "JOB_ENDED", "LIMIT_EXCEEDED", "PORTS_EXHAUSTED", "INVALID_NAME")
        if self._refused:
            self._tell(logging.WARNING, f"the daemon refuses this process, it trains on untuned: {text}")
        elif reason != "STORE_REPLACED":
            self._tell(logging.WARNING, f"no daemon, training on with the last values until there is one ({text})")
        return m.Disconnected(reason == "STORE_REPLACED")

    def pause(self, lasted: float) -> float:
        """Say how long to wait before the next attempt, in seconds.

        Args:
            lasted: Seconds that the last one took: after one that held, the pauses begin anew.
        """
        first, longest = BACKOFF_SECONDS
        if lasted > longest:
            self._next_pause = first
        pause, self._next_pause = self._next_pause, min(2 * self._next_pause, longest)
        return REFUSED_SECONDS if self._refused else pause * random.uniform(0.5, 1.0)  # noqa: S311

    def _tell(self, level: int, text: str) -> None:
        # One line for each change of state, however many attempts it takes.
        state = text.partition(" (")[0] if level != logging.INFO else text
        if state != self._told:
            self._told = state
            log.log(level, "job %s: %s", self._identity.job, text)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, (LiveTuneError, OSError)) else f"{type(error).__name__}: {error}"
