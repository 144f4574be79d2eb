"""Designated job ports: which job has which, from the configured range."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.service import clock

Serve = Callable[[int, str], Awaitable[Callable[[], Awaitable[None]]]]
"""Serves a job's API on a port and returns what stops it. Raises OSError if the port can't be had."""


class Ports:
    """Assigns ports to jobs and keeps them served.

    Fresh ports are given in turn around the range, and a port that was released is not given to another job for a
    while: whoever still speaks to it must not change a stranger's job.

    Args:
        first: First port of the range.
        last: Last port of the range.
        serve: Serves a job on a port.
        quarantine: How long a released port waits, in seconds.
        now: Monotonic time in seconds.
    """

    def __init__(
        self,
        first: int,
        last: int,
        serve: Serve,
        quarantine: float = limits.PORT_QUARANTINE_SECONDS,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._first, self._last = first, last
        self._serve = serve
        self._quarantine = quarantine
        self._now = now
        self._held: dict[str, int] = {}
        self._stops: dict[int, Callable[[], Awaitable[None]]] = {}
        self._stopping: dict[int, asyncio.Future[None]] = {}
        """By port: what ends when it is served no more."""
        self._resting: dict[int, tuple[str, float]] = {}
        """By port: the job that released it, and when others may have it."""
        self._next = first

    def __len__(self) -> int:
        return len(self._held)

    def port(self, job: str) -> int:
        """Returns the port a job is served on, 0 for none."""
        return self._held.get(job, 0)

    async def acquire(self, job: str, preferred: int = 0) -> int:
        """Serves a job on a port and returns it: the one it has, else the preferred one, else the next free one.

        Args:
            job: The job's name.
            preferred: The port it had before, 0 for none.

        Raises:
            DomainError: PORTS_EXHAUSTED.
        """
        if job in self._held:
            return self._held[job]
        resting = 0
        for port in self._candidates(preferred):
            if port in self._stops:
                continue
            if self._rests(port, job):
                resting += 1
                continue
            self._stops[port] = _reserved  # nobody else takes it while the server starts
            self._held[job] = port
            if port in self._stopping:
                await self._stopping[port]
            try:
                self._stops[port] = await self._serve(port, job)
            except OSError:
                del self._stops[port], self._held[job]
                continue
            self._resting.pop(port, None)
            if port != preferred:
                self._next = port + 1 if port < self._last else self._first
            return port
        span = f"{self._first}-{self._last}"
        waits = f"; {resting} were released less than {self._quarantine:g} s ago and are free soon" if resting else ""
        raise DomainError(
            Reason.PORTS_EXHAUSTED,
            f"no port is free for job '{job}': all of {span} are taken by jobs or by other programs{waits}",
            job=job,
            rule=f"ports {span}",
        )

    def _rests(self, port: int, job: str) -> bool:
        owner, until = self._resting.get(port, ("", 0.0))
        return owner != job and self._now() < until

    def _candidates(self, preferred: int) -> Iterator[int]:
        if preferred:
            yield preferred
        size = self._last - self._first + 1
        start = self._next - self._first
        for offset in range(size):
            port = self._first + (start + offset) % size
            if port != preferred:
                yield port

    def rest(self, job: str, port: int) -> None:
        """Keeps a port that a job had from other jobs for a while."""
        self._resting[port] = (job, self._now() + self._quarantine)

    def release(self, job: str) -> None:
        """Stops serving a job, soon: the call that asks may be one on that very port. Does nothing if it has none."""
        port = self._held.pop(job, 0)
        if port:
            self.rest(job, port)
            stop = asyncio.ensure_future(self._stops.pop(port)())
            self._stopping[port] = stop
            stop.add_done_callback(lambda _: self._stopping.pop(port, None))


async def _reserved() -> None:
    """Stands for a server that is still starting."""
