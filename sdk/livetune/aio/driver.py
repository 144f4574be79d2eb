"""Owns the driver that talks to the daemon on an event loop. What is said, and when, is `livetune.conversation`'s."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import Any, TypeVar

from livetune import messages as m
from livetune.conversation import OPTIONS, REGISTER_SECONDS, TICK_SECONDS, Conversation, Identity
from livetune.endpoints import PROBE_SECONDS, address, unreachable
from livetune.loading import load_grpc

__all__ = ["TaskDriver", "within"]

T = TypeVar("T")


class TaskDriver:
    """Runs one job's conversation with the daemon in the task that awaits `run`: a `livetune.driver.Driver`.

    It belongs to the event loop on which it is made; `send` and `stop` may be called on any thread.

    Args:
        identity: Who we are.
        endpoint: Where the daemon is; None to look for it anew at every attempt.
        deliver: Takes an event; called on the loop. The actions that follow come back through `send`.
        step: Tells where the program is.

    Attributes:
        trying: False during the pauses between attempts.
        closing: The end was said: there is no attempt after this one, and nothing to complain of.
    """

    def __init__(
        self, identity: Identity, endpoint: str | None, deliver: Callable[[m.Event], None], step: Callable[[], int]
    ) -> None:
        self._conversation = Conversation(identity, endpoint)
        self._deliver = deliver
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._out: deque[m.Message] = deque()
        self._awake = asyncio.Event()
        """There may be something to write, or no more."""
        self.trying = True
        self.closing = False

    def start(self) -> None:
        """Load gRPC: while the program begins, not between two of its steps."""
        load_grpc(_begin_grpc)

    def send(self, message: m.Message) -> None:
        """Put a message on the stream, if there is one; the session repeats what matters on the next. Never blocks."""
        self._out.append(message)  # at once, so that messages of several threads keep their order
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to send
            self._loop.call_soon_threadsafe(self._awake.set)

    def stop(self, _seconds: float = 0.0) -> bool:
        """Make this attempt the last. Whoever runs it breaks it off by a cancellation."""
        self._conversation.over = True
        return True

    async def run(self) -> None:
        """Talk until there is nothing more to say. It breaks off at once when it is cancelled."""
        while True:
            begun = self._loop.time()
            await self.attempt()
            if self._conversation.over or self.closing:
                return
            self.trying = False
            await asyncio.sleep(self._conversation.pause(self._loop.time() - begun))
            self.trying = True

    async def attempt(self) -> None:
        """Register and hold one stream until it ends. Whatever goes wrong is explained, not raised."""
        conversation = self._conversation
        error: Exception | None = None
        try:
            if not conversation.over:
                await self._converse()
        except Exception as broken:  # noqa: BLE001 - the program's loop goes on
            error = None if self.closing else broken
        finally:
            self._deliver(conversation.ended(error))

    async def _converse(self) -> None:
        import grpc.aio

        from livetune.v1 import job_pb2_grpc

        conversation = self._conversation
        target = await _resolve(conversation.targets())
        self._out.clear()
        async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
            stub: Any = job_pb2_grpc.JobServiceStub(channel)  # its types know no stream without an iterator
            answer = await stub.Register(conversation.registration(), timeout=REGISTER_SECONDS)
            self._deliver(conversation.registered(answer, target))
            await self._hold(stub.Session())

    async def _hold(self, call: Any) -> None:
        """Carry messages both ways until the end is recorded, or raise what ended the stream before."""
        tasks = [asyncio.create_task(self._read(call)), asyncio.create_task(self._write(call))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # What gRPC itself cancels looks like a cancellation of ours, so that it stays inside these two.
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _read(self, call: Any) -> None:
        import grpc.aio

        while (response := await call.read()) is not grpc.aio.EOF:
            event = self._conversation.heard(response)
            if event is not None:
                self._deliver(event)
            if self._conversation.over:
                self._awake.set()
                return
        raise ConnectionError("the daemon closed the stream")

    async def _write(self, call: Any) -> None:
        """Write what is to be sent; about once a second without anything, tell where we are."""
        import grpc.aio

        conversation = self._conversation
        next_tick = self._loop.time() + TICK_SECONDS
        while True:
            self._awake.clear()
            try:
                while self._out:
                    await call.write(conversation.request(self._out.popleft()))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the stream has ended: whoever reads it learns why
            if conversation.over:
                return
            timer = self._loop.call_at(next_tick, self._awake.set)
            try:
                await self._awake.wait()
            finally:
                timer.cancel()
            if self._loop.time() >= next_tick:
                next_tick = self._loop.time() + TICK_SECONDS
                self._deliver(m.Tick(self._step()))


async def within(seconds: float | None, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine for so long at most, as `asyncio.wait_for` does.

    That one, until Python 3.12, loses a cancellation that comes as its coroutine ends: a program would wait for ever
    until a task of ours ends.

    Raises:
        asyncio.TimeoutError: It took longer.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


def _begin_grpc() -> None:
    import_module("grpc.aio").init_grpc_aio()


async def _resolve(targets: Sequence[str]) -> str:
    """Pick the first target that accepts a connection, as `livetune.endpoints.resolve` does; without blocking.

    Raises:
        DaemonUnreachableError: None does.
    """
    refusals: dict[str, OSError] = {}
    for target in targets:
        try:
            await within(PROBE_SECONDS, _probe(target))
        except asyncio.TimeoutError:
            refusals[target] = TimeoutError("timed out")
        except OSError as error:
            refusals[target] = error
        else:
            return target
    raise unreachable(refusals)


async def _probe(target: str) -> None:
    loop, place = asyncio.get_running_loop(), address(target)
    transport: asyncio.BaseTransport
    if isinstance(place, str):
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, place)
    else:
        transport, _ = await loop.create_connection(asyncio.Protocol, *place)
    transport.close()
