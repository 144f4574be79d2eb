"""How the daemon ends: its exit codes, and waiting for a signal or a failure."""

from __future__ import annotations

import asyncio
import signal
from enum import IntEnum


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
