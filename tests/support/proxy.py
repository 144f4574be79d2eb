"""A TCP proxy that treats its connections badly: it pauses, delays, slices, swallows, half-closes, resets and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_READ_BYTES = 65_536


class Proxy:
    """Listens on a loopback port and carries bytes to a Unix socket and back. Its methods may be called from any thread.

    Args:
        socket_path: Where the connections go.

    Attributes:
        target: The gRPC target of the listener.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._slice = _READ_BYTES
        self._swallowing = self._refusing = False
        self._connections: set[_Connection] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_READ_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._path, limit=_READ_BYTES)
        except OSError:  # the daemon is away: so is what is behind the proxy
            _reset(writer)
            return
        connection = _Connection(writer, far_writer)
        self._connections.add(connection)
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        finally:
            self._connections.discard(connection)
            await connection.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # a connection that breaks has nothing to say here
            while data := await reader.read(self._slice):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flowing.wait()
                if not self._swallowing:
                    writer.write(data)
                    await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    def _do(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            try:
                work()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(10)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def pause(self) -> None:
        """Carries nothing more in either direction, and takes nothing more: what is sent waits with its sender."""
        self._do(self._flowing.clear)

    def resume(self) -> None:
        """Carries on."""
        self._do(self._flowing.set)

    def slow(self, delay: float = 0.0, slice_bytes: int = _READ_BYTES) -> None:
        """Carries at most so many bytes at a time and waits before each, in seconds. Without arguments: as fast as it can."""
        self._delay, self._slice = delay, slice_bytes

    def swallow(self, on: bool = True) -> None:
        """Takes what is sent and carries nothing, as a network that drops packets."""
        self._swallowing = on

    def refuse(self, on: bool = True) -> None:
        """Takes no new connection."""
        self._refusing = on

    def half_close(self) -> None:
        """Says to both ends of each connection that nothing more comes, while they may still send."""
        self._do(lambda: [connection.half_close() for connection in self._connections] and None)

    def reset(self) -> None:
        """Breaks all connections at once, without a word."""
        self._do(lambda: [connection.reset() for connection in self._connections] and None)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Breaks everything and ends."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class _Connection:
    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._ends = (near, far)

    def half_close(self) -> None:
        for writer in self._ends:
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    def reset(self) -> None:
        for writer in self._ends:
            _reset(writer)

    async def close(self) -> None:
        for writer in self._ends:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        # Lingering for no time makes close() a reset instead of a goodbye.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def proxy(socket_path: Path) -> Iterator[Proxy]:
    """A proxy while it is needed."""
    made = Proxy(socket_path)
    try:
        yield made
    finally:
        made.close()
