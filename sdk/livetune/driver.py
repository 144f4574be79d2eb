"""Owns the thread that talks to the daemon: it connects, registers, carries messages both ways, and begins again.

The training thread never waits for it. What is said, and when, is `livetune.conversation`'s business; `livetune.aio`
has a driver of its own for event loops.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from livetune import messages as m
from livetune.conversation import OPTIONS, REGISTER_SECONDS, TICK_SECONDS, Conversation, Identity
from livetune.endpoints import resolve
from livetune.loading import load_grpc

if TYPE_CHECKING:
    from livetune.v1 import job_pb2

__all__ = ["Driver", "ThreadDriver"]


class Driver(Protocol):
    """Carries one job's conversation with the daemon."""

    trying: bool
    """False during the pauses between attempts."""

    def start(self) -> None:
        """Begin. Returns at once."""

    def send(self, message: m.Message) -> None:
        """Put a message on the stream, if there is one; the session repeats what matters on the next. Never blocks."""

    def stop(self, seconds: float) -> bool:
        """End the conversation; may wait until nothing of it is left, at most so long.

        Returns:
            Whether it did not have to wait longer.
        """


def _begin_grpc() -> None:
    import grpc

    grpc.insecure_channel("unix:/").close()


class ThreadDriver:
    """Runs one job's conversation with the daemon in a thread of its own: a `Driver`.

    Args:
        identity: Who we are.
        endpoint: Where the daemon is; None to look for it anew at every attempt.
        deliver: Takes an event; called on the driver's threads. The actions that follow come back through `send`.
        step: Tells where the program is.
    """

    def __init__(
        self, identity: Identity, endpoint: str | None, deliver: Callable[[m.Event], None], step: Callable[[], int]
    ) -> None:
        self._conversation = Conversation(identity, endpoint)
        self._deliver = deliver
        self._step = step
        self._out: queue.SimpleQueue[m.Message | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._call: Any = None  # the open stream; grpc's call objects have no common type
        self.trying = True
        self._thread = threading.Thread(target=self._run, name=f"livetune-{identity.job}", daemon=True)

    def start(self) -> None:
        """Load gRPC, which takes a tenth of a second the first time, and start the thread."""
        with suppress(Exception):  # the thread tells what is wrong
            load_grpc(_begin_grpc)
        self._thread.start()

    def send(self, message: m.Message) -> None:
        """Put a message on the stream, if there is one; the session repeats what matters on the next. Never blocks."""
        self._out.put(message)

    def stop(self, seconds: float) -> bool:
        """End the conversation and wait for the thread, at most so long. Returns whether it has ended."""
        self._conversation.over = True
        self._stopped.set()
        self._out.put(None)
        call = self._call  # the thread may clear it at any moment
        if call is not None:
            call.cancel()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        conversation = self._conversation
        while not conversation.over:
            begun = time.monotonic()
            self.trying = True
            error = None
            try:
                self._converse()
            except Exception as broken:  # noqa: BLE001 - whatever goes wrong here, training goes on
                error = broken
            self.trying = False
            self._deliver(conversation.ended(error))
            if not conversation.over:
                self._stopped.wait(conversation.pause(time.monotonic() - begun))

    def _converse(self) -> None:
        """Register and hold one stream until it ends."""
        conversation = self._conversation
        target = resolve(conversation.targets())
        import grpc

        from livetune.v1 import job_pb2_grpc

        self._out = queue.SimpleQueue()
        with grpc.insecure_channel(target, options=OPTIONS) as channel:
            stub = job_pb2_grpc.JobServiceStub(channel)
            answer = stub.Register(conversation.registration(), timeout=REGISTER_SECONDS)
            self._deliver(conversation.registered(answer, target))
            self._call = stub.Session(self._requests())
            if conversation.over:  # stop() may have come too early to see the call
                self._call.cancel()
            try:
                for response in self._call:
                    event = conversation.heard(response)
                    if event is not None:
                        self._deliver(event)
                    if conversation.over:
                        return
                raise ConnectionError("the daemon closed the stream")
            finally:
                self._call = None
                self._out.put(None)

    def _requests(self) -> Iterator[job_pb2.SessionRequest]:
        """Yield what is to be sent, on gRPC's thread; about once a second without anything, tell where we are."""
        out = self._out
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
            yield self._conversation.request(message)
