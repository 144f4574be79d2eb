"""A small HTTP server for metrics and health: GET only, few connections, short time-outs, loopback Host only."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass

import h11

from livetuned.domain import limits
from livetuned.transport.addresses import AddressError, TcpAddress

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""How long a client may take over one request, and an idle connection may stay open, in seconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a GET."""

    status: int
    content_type: str
    body: bytes


Pages = dict[str, Callable[[], Page]]
"""What answers a GET, by path."""

_PLAIN = "text/plain; charset=utf-8"


def text(status: int, words: str) -> Page:
    """Returns a page of plain text."""
    return Page(status, _PLAIN, words.encode() + b"\n")


class HttpServer:
    """Serves pages on one loopback address.

    Args:
        pages: What is served.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._open = 0

    async def listen(self, address: TcpAddress) -> TcpAddress:
        """Serves on the address and returns it, with the port filled in if it was 0.

        Raises:
            AddressError: It can't be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._connection, address.host, address.port, limit=limits.HTTP_HEADER_BYTES
            )
        except OSError as error:
            raise AddressError(f"metrics address {address} can't be listened on: {error.strerror}") from error
        return TcpAddress(address.host, self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Closes the listener. Does nothing if there is none."""
        if self._server is not None:
            self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= limits.HTTP_CONNECTIONS:
                await self._serve(reader, writer)
        except (asyncio.TimeoutError, TimeoutError, ConnectionError):
            pass  # a client that is slow or gone gets no answer, and nobody waits for it
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.HTTP_HEADER_BYTES)
        while True:
            try:
                request = await asyncio.wait_for(_request(connection, reader), REQUEST_SECONDS)
            except h11.RemoteProtocolError as error:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    refusal = text(error.error_status_hint, "not an HTTP request")
                    with contextlib.suppress(h11.LocalProtocolError):  # to a HEAD with a body there is no right answer
                        writer.write(_response(connection, refusal, close=True))
                        await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
                return
            if request is None:
                return
            page = self._answer(request)
            writer.write(_response(connection, page, body=request.method != b"HEAD"))
            await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _answer(self, request: h11.Request) -> Page:
        hosts = [value for name, value in request.headers if name == b"host"]
        if len(hosts) != 1 or not _is_loopback(hosts[0].decode("latin-1")):
            # A page in somebody's browser must not reach us by a name that was made to point here.
            return text(421, "the Host header must name a loopback address")
        if request.method not in (b"GET", b"HEAD"):
            return text(405, "only GET is answered")
        path = request.target.split(b"?", 1)[0].decode("latin-1")
        page = self._pages.get(path)
        return text(404, "no such page; there is " + ", ".join(sorted(self._pages))) if page is None else page()


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(4_096))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.Data):
            raise h11.RemoteProtocolError("a request here has no body", error_status_hint=413)
        else:
            return None


def _response(connection: h11.Connection, page: Page, *, body: bool = True, close: bool = False) -> bytes:
    headers = [
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.body))),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
        *([("Connection", "close")] if close else []),
    ]
    parts: list[h11.Event] = [h11.Response(status_code=page.status, headers=headers)]
    if body:
        parts.append(h11.Data(data=page.body))
    return b"".join(connection.send(part) or b"" for part in (*parts, h11.EndOfMessage()))


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or (host.startswith("[") and "]:" in host) else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
