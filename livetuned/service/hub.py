"""Tells watchers what was committed. A watcher is a cursor into the log, never a queue: a slow one costs nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from livetuned.domain import limits
from livetuned.domain.errors import limit_exceeded
from livetuned.domain.records import Record
from livetuned.store.interface import Store

_PAGE = 500
_WOKEN_AT_ONCE = 50
"""How many watchers are woken in one turn of the event loop, a count."""

_Bells = dict[asyncio.Future[None], None]
"""Who waits, in the order in which they came."""


def _ring(bells: _Bells) -> None:
    for bell in bells:
        if not bell.done():
            bell.set_result(None)


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
        self._waiting: dict[str, _Bells] = {}
        self._urgent: dict[str, _Bells] = {}
        self._to_wake: deque[_Bells] = deque()
        self._waking = False
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
        scopes = {"", *(record.job for record in records)}
        for scope in scopes:
            _ring(self._urgent.pop(scope, {}))
        self._wake(scopes)

    def _wake(self, scopes: Iterable[str]) -> None:
        """Wakes who waits, a few in each turn of the event loop: others get their turns in between."""
        for scope in scopes:
            if scope in self._waiting:
                self._to_wake.append(self._waiting.pop(scope))
        if self._to_wake and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _wake_some(self) -> None:
        room = _WOKEN_AT_ONCE
        while self._to_wake and room:
            bells = self._to_wake[0]
            some = dict.fromkeys(islice(bells, room))
            for bell in some:
                del bells[bell]
            room -= len(some)
            _ring(some)
            if not bells:
                self._to_wake.popleft()
        self._waking = bool(self._to_wake)
        if self._waking:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def tick(self) -> None:
        """Wakes everybody who waits: for bookmarks."""
        self._wake(list(self._waiting))

    async def run(self) -> None:
        """Ticks now and then, until cancelled."""
        while True:
            await asyncio.sleep(limits.BOOKMARK_SECONDS)
            self.tick()

    def cursor(self, after: int, job: str = "", *, urgent: bool = False) -> Cursor:
        """Returns a cursor that yields what comes after a revision, of one job or (``""``) of all.

        With `urgent` it is told before those who only watch, and not of ticks.
        """
        return Cursor(self, after, job, urgent=urgent)

    async def wait(self, job: str, *, urgent: bool = False) -> None:
        """Returns when the next record of the scope was published, or (unless `urgent`) at the next tick."""
        bell = asyncio.get_running_loop().create_future()
        all_waiting = self._urgent if urgent else self._waiting
        waiting = all_waiting.setdefault(job, {})
        waiting[bell] = None
        try:
            await bell
        except asyncio.CancelledError:
            waiting.pop(bell, None)
            if not waiting and all_waiting.get(job) is waiting:
                del all_waiting[job]
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

    def __init__(self, hub: Hub, after: int, job: str, *, urgent: bool = False) -> None:
        self._hub = hub
        self._job = job
        self._urgent = urgent
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
        await self._hub.wait(self._job, urgent=self._urgent)
        return await self._available()

    async def _available(self) -> list[Record]:
        while self.position < self._hub.revision:
            records, self.position = await self._hub.after(self.position, self._job)
            if records:
                return records
        return []
