"""Tells watchers what was committed. A watcher is a cursor into the log, never a queue: a slow one costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from livetuned.domain import limits
from livetuned.domain.errors import limit_exceeded
from livetuned.domain.records import Record
from livetuned.store.interface import Store

_PAGE = 500


class Hub:
    """The newest records in memory, and a bell for each scope.

    Args:
        store: Where older records are read from.
        capacity: How many records are kept in memory at least.
    """

    def __init__(self, store: Store, capacity: int = limits.HUB_RECORDS) -> None:
        self._store = store
        self._capacity = capacity
        self._recent: list[Record] = []
        self._revision = 0
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        self._watchers = 0

    @property
    def watchers(self) -> int:
        """Number of watches open."""
        return self._watchers

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts a watch while it is open.

        Raises:
            DomainError: LIMIT_EXCEEDED.
        """
        if self._watchers >= limits.WATCHERS:
            raise limit_exceeded("watchers", limits.WATCHERS, "one watch more")
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    @property
    def revision(self) -> int:
        """Revision of the last record published."""
        return self._revision

    def begin(self, revision: int) -> None:
        """Says which revision the first record published will follow."""
        self._revision = revision

    def publish(self, records: Sequence[Record]) -> None:
        """Makes durable records visible and wakes who waits for them."""
        if not records:
            return
        self._recent += records
        if len(self._recent) > 2 * self._capacity:
            del self._recent[: -self._capacity]
        self._revision = records[-1].revision
        for scope in {"", *(record.job for record in records)}:
            self._wake(scope)

    def _wake(self, scope: str) -> None:
        for waiting in self._waiting.pop(scope, ()):
            if not waiting.done():
                waiting.set_result(None)

    def tick(self) -> None:
        """Wakes everybody who waits: for bookmarks."""
        for scope in list(self._waiting):
            self._wake(scope)

    async def run(self) -> None:
        """Ticks now and then, until cancelled."""
        while True:
            await asyncio.sleep(limits.BOOKMARK_SECONDS)
            self.tick()

    def cursor(self, after: int, job: str = "") -> Cursor:
        """Returns a cursor that yields what comes after a revision, of one job or (``""``) of all."""
        return Cursor(self, after, job)

    async def wait(self, job: str) -> None:
        """Returns when the next record of the scope was published, or at the next tick."""
        bell = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(job, {})
        waiting[bell] = None
        try:
            await bell
        except asyncio.CancelledError:
            waiting.pop(bell, None)
            if not waiting and self._waiting.get(job) is waiting:
                del self._waiting[job]
            raise

    async def after(self, revision: int, job: str) -> tuple[list[Record], int]:
        """Returns a page of the scope's records after a revision, and the revision up to which it is complete.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """
        oldest = self._recent[0].revision if self._recent else self._revision + 1
        if revision + 1 < oldest:
            published = self._revision
            page = await self._store.read(revision, _PAGE, job)
            full = len(page) == _PAGE
            # What is beyond the last record published may be on disk already; it is not visible yet.
            page = [record for record in page if record.revision <= self._revision]
            last = page[-1].revision if page else revision
            return page, last if full else max(last, published)
        newer = self._recent[revision + 1 - oldest :]
        return [record for record in newer if record.job == job] if job else newer, self._revision


class Cursor:
    """A watcher's place in the log.

    Attributes:
        position: Everything of the scope up to this revision was yielded.
    """

    def __init__(self, hub: Hub, after: int, job: str) -> None:
        self._hub = hub
        self._job = job
        self.position = after

    async def next(self) -> list[Record]:
        """Returns the next records of the scope, in order, waiting until there is at least one.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """
        while not (records := await self.next_or_tick()):
            pass
        return records

    async def next_or_tick(self) -> list[Record]:
        """Returns the next records of the scope, as `next`, or nothing if there is none at the hub's next tick.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """
        if records := await self._available():
            return records
        await self._hub.wait(self._job)
        return await self._available()

    async def _available(self) -> list[Record]:
        while self.position < self._hub.revision:
            records, self.position = await self._hub.after(self.position, self._job)
            if records:
                return records
        return []
