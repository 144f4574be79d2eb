"""Streams whose client does not read: found once a second, and ended, so that nothing is kept for them for ever."""

from __future__ import annotations

import asyncio

from livetuned.domain import limits
from livetuned.service import clock


class Stream:
    """One stream on its way to a client. Owned by the task that writes it."""

    __slots__ = ("_task", "since", "stalled")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self.since = 0.0
        """Monotonic time since when a message waits to be taken, 0.0 while none does."""
        self.stalled = False
        """It was given up."""

    def give_up(self) -> None:
        """Ends the wait."""
        self.stalled = True
        self._task.cancel()


class Stalls:
    """All streams of one daemon.

    Args:
        seconds: How long one message may wait.

    Attributes:
        seconds: The same.
    """

    def __init__(self, seconds: float = limits.WATCH_STALL_SECONDS) -> None:
        self.seconds = seconds
        self._streams: set[Stream] = set()

    def enter(self) -> Stream:
        """Adds a stream that the current task writes."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is written by a task")
        stream = Stream(task)
        self._streams.add(stream)
        return stream

    def leave(self, stream: Stream) -> None:
        """Removes a stream."""
        self._streams.discard(stream)

    def sweep(self) -> None:
        """Gives up the streams whose message waits too long."""
        now = clock.monotonic()
        for stream in list(self._streams):
            if stream.since and now - stream.since > self.seconds:
                stream.since = 0.0
                stream.give_up()

    async def run(self) -> None:
        """Sweeps once a second, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.sweep()
