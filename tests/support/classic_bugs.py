"""A daemon whose classic protocol has a planted bug, for the controls of the fuzz: named by the variable PLANTED."""

from __future__ import annotations

import asyncio
import os

from livetuned.daemon.cli import main
from livetuned.transport import classic
from livetuned.transport.classic_parser import Asked, Event, Parser, Told


def _hang() -> None:
    """Waits for ever for a client that says nothing."""

    patient = classic._read

    async def read(reader: asyncio.StreamReader, seconds: float) -> bytes | None:
        return await patient(reader, seconds if seconds < 2 else 1_000)

    classic._read = read


def _raise() -> None:
    """Takes for granted that what comes is UTF-8."""

    def text(self: Parser, data: bytes) -> Event:
        return Told(data.decode()) if self.opening == classic.UPDATE else Asked(data.decode())

    Parser._text = text  # type: ignore[method-assign]


def _framed() -> None:
    """Takes one read for one message, as the original does."""
    feed = Parser.feed

    def framed(self: Parser, data: bytes) -> list[Event]:
        events = feed(self, data)
        return events + self.end() if self.buffered else events

    Parser.feed = framed  # type: ignore[method-assign]


def _leak() -> None:
    """Forgets to close."""

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        kept.append(writer)

    kept: list[asyncio.StreamWriter] = []
    classic._close = close


{"hang": _hang, "raise": _raise, "framed": _framed, "leak": _leak}[os.environ["PLANTED"]]()
main(prog_name="livetuned")
