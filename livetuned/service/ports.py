"""Designated job ports: which job has which, from the configured range."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from livetuned.domain.errors import DomainError, Reason

Serve = Callable[[int, str], Awaitable[Callable[[], Awaitable[None]]]]
"""Serves a job's API on a port and returns what stops it. Raises OSError if the port can't be had."""


class Ports:
    """Assigns ports to jobs and keeps them served.

    Fresh ports are given in turn around the range, so that a port released is not soon another job's.

    Args:
        first: First port of the range.
        last: Last port of the range.
        serve: Serves a job on a port.
    """

    def __init__(self, first: int, last: int, serve: Serve) -> None:
        self._first, self._last = first, last
        self._serve = serve
        self._held: dict[str, int] = {}
        self._stops: dict[int, Callable[[], Awaitable[None]]] = {}
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
            preferred: The port it had before a restart of the daemon, 0 for none.

        Raises:
            DomainError: PORTS_EXHAUSTED.
        """
        if job in self._held:
            return self._held[job]
        for port in self._candidates(preferred):
            if port in self._stops:
                continue
            self._stops[port] = _reserved  # nobody else takes it while the server starts
            self._held[job] = port
            try:
                self._stops[port] = await self._serve(port, job)
            except OSError:
                del self._stops[port], self._held[job]
                continue
            if port != preferred:
                self._next = port + 1 if port < self._last else self._first
            return port
        span = f"{self._first}-{self._last}"
        raise DomainError(
            Reason.PORTS_EXHAUSTED,
            f"no port is free for job '{job}': all of {span} are taken by jobs or by other programs",
            job=job,
            rule=f"ports {span}",
        )

    def _candidates(self, preferred: int) -> Iterator[int]:
        if preferred:
            yield preferred
        size = self._last - self._first + 1
        start = self._next - self._first
        for offset in range(size):
            yield self._first + (start + offset) % size

    async def release(self, job: str) -> None:
        """Stops serving a job. Does nothing if it has no port."""
        port = self._held.pop(job, 0)
        if port:
            await self._stops.pop(port)()


async def _reserved() -> None:
    """Stands for a server that is still starting."""
