"""How the daemon ends: its exit codes, and waiting for a signal or a failure."""

from __future__ import annotations

import asyncio
import logging
import signal
from enum import IntEnum
from typing import Any

log = logging.getLogger("livetuned")


class ExitCode(IntEnum):
    """Why `livetuned` ended. systemd and people read these; they are stable."""

    OK = 0
    """Stopped by SIGTERM or SIGINT."""
    ERROR = 1
    """An error that has no code of its own."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    ADDRESS = 3
    """An address or port can't be had."""
    STORE_LOCKED = 4
    """Another daemon holds the store."""
    STORE_UNUSABLE = 5
    """The store can't be opened or is damaged; restarting will not help."""
    STORE_FAILED = 6
    """A commit failed while running; opening the store anew tells what is true."""
    UNREACHABLE = 7
    """No daemon answers that could be backed up."""


_ACCEPT_SECONDS = 10.0
"""How often it is said that connections can't be accepted, in seconds."""


def quieten(loop: asyncio.AbstractEventLoop) -> None:
    """Keeps what strangers can cause out of the log, but for a line once in a while.

    That there is no descriptor for a new connection is said every ten seconds, and not with each attempt. gRPC's own
    logger prints the bytes that it could not decode.
    """
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    said = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if "accept() out of system resource" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif loop.time() - said > _ACCEPT_SECONDS:
            said = loop.time()
            log.error("new connections can't be accepted: %s; those that are open go on", context.get("exception"))

    loop.set_exception_handler(handle)


class Stop:
    """Waits for SIGTERM, SIGINT, or a failure. The signals count from the moment this is made.

    Args:
        failed: Set with the error when the daemon can't go on.
    """

    def __init__(self, failed: asyncio.Future[BaseException]) -> None:
        self._failed = failed
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        failed.add_done_callback(lambda _: self._stop.set())

    async def wait(self) -> BaseException | None:
        """Returns when the daemon is told to stop, or with the error when it can't go on."""
        await self._stop.wait()
        return self._failed.result() if self._failed.done() else None
