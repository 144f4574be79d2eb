"""Owns talking to the daemon: which endpoint, who asks, time-outs, and what a failed call means for the command."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from livetune.endpoints import CHANNEL_OPTIONS, candidates, parse_endpoint, resolve
from livetune.errors import DaemonUnreachableError, EndpointError
from ltctl.exits import BY_STATUS, CommandError, Exit
from ltctl.text import safe

if TYPE_CHECKING:
    import grpc

    from livetune.v1 import control_pb2_grpc

T = TypeVar("T")

_MESSAGE_BYTES = 256 * 2**20
"""The largest answer taken: a page of the history, 1,000 changes of one value of 64 KiB each, old, new and applied."""
_CHANNEL_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _MESSAGE_BYTES))

CALL_SECONDS = 10.0
"""How long one call may take."""
RETRY_SECONDS = 3.0
"""How long a call that is harmless to repeat is repeated while the daemon is away."""
_PAUSE_SECONDS = 0.1


class Client:
    """A connection to one daemon, made when it is first needed and made again when it broke.

    Args:
        endpoint: What `--endpoint` said, or None.
        port: What `--port` said, or None: a job's designated port.
    """

    def __init__(self, endpoint: str | None, port: int | None) -> None:
        self._endpoint = endpoint
        self._port = port
        self._channel: grpc.Channel | None = None
        self._connected_to = ""
        self.abandoned = False
        """Whether nobody waits for answers any more: see `abandon`."""

    @property
    def scoped(self) -> bool:
        """Whether a job's own port is spoken to, so that no job need be named."""
        return self._port is not None

    @property
    def _hint(self) -> str:
        return "is the job still running?" if self.scoped else "start one with: livetuned serve"

    def _target(self) -> str:
        if self._port is not None:
            return resolve([f"127.0.0.1:{self._port}"])
        if self._endpoint is not None:
            return resolve([parse_endpoint(self._endpoint)])
        return resolve(candidates(os.environ))

    def stub(self) -> control_pb2_grpc.ControlServiceStub:
        """Connect if need be.

        Raises:
            CommandError: No daemon answers, or the endpoint can't be read.
        """
        # gRPC is loaded here and nowhere earlier: it costs more than the rest of the command together.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        from livetune.v1 import control_pb2_grpc

        if self._channel is None:
            try:
                target = self._target()
            except EndpointError as error:
                raise CommandError(Exit.USAGE, str(error)) from error
            except DaemonUnreachableError as error:
                raise CommandError(Exit.UNREACHABLE, f"{error}; {self._hint}") from error
            self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
            self._connected_to = target
        return control_pb2_grpc.ControlServiceStub(self._channel)

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def abandon(self) -> None:
        """End what is under way, from another thread: nobody waits for it any more."""
        self.abandoned = True  # before the close: who connects anew meanwhile finds it set
        self.close()

    def call(self, work: Callable[[control_pb2_grpc.ControlServiceStub], T]) -> T:
        """Make a call and return its answer.

        Raises:
            CommandError: It was refused, with the exit code of its status.
        """
        with self.errors_as_exits():
            return work(self.stub())

    def persistently(self, work: Callable[[control_pb2_grpc.ControlServiceStub], T]) -> T:
        """Make a call that is harmless to repeat, again while the daemon is away for a moment.

        Raises:
            CommandError: It was refused, or the daemon stayed away.
        """
        deadline = time.monotonic() + RETRY_SECONDS
        was_there = False
        while True:
            try:
                stub = self.stub()
                was_there = True
                with self.errors_as_exits():
                    return work(stub)
            except CommandError as error:
                # A daemon that was never there is not waited for: the person is told at once.
                if error.code is not Exit.UNREACHABLE or not was_there or time.monotonic() > deadline:
                    raise
                self.close()
                time.sleep(_PAUSE_SECONDS)

    @contextmanager
    def errors_as_exits(self) -> Iterator[None]:
        """Turn a failed call into the command's end.

        Raises:
            CommandError: In place of a gRPC error.
        """
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            from livetune.status import refusal_of

            refusal = refusal_of(error)
            code = BY_STATUS.get(refusal.code, Exit.ERROR)
            message = safe(refusal.message)
            if code is Exit.UNREACHABLE and not refusal.reason:
                # gRPC's own words say neither who was asked nor what to do.
                where = f"no answer from a livetuned daemon at {self._connected_to}"
                message = f"{where} ({message}); {self._hint}"
            nearest = refusal.metadata.get("nearest", "")
            if nearest and nearest not in refusal.message:
                message += f"; did you mean '{safe(nearest)}'?"
            raise CommandError(code, message, refusal.reason) from error


def metadata() -> tuple[tuple[str, str], ...]:
    """Return what goes along with each call: who asks."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    actor = f"{user}@{socket.gethostname()}"
    # gRPC refuses the whole call for one character that a header can't hold.
    return (("livetune-actor", "".join(character if " " <= character <= "~" else "?" for character in actor)),)


def new_request_id() -> str:
    """Return a name for one change, which makes repeating the request harmless."""
    return uuid.uuid4().hex
