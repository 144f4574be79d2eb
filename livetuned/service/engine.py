"""The one writer: decides on the newest state, commits, and only then lets anybody see it.

Requests that wait together share one commit. The state that readers see is a fold over what the store says is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.history import ChangeFilter
from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Applied, Draft, Payload, Record
from livetuned.domain.state import State
from livetuned.service import clock
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.snapshots import Snapshots
from livetuned.store.interface import Store, StoreDamagedError, StoreError, StoreFailedError, StoreFullError

log = logging.getLogger(__name__)

Decide = Callable[[Job | None], Payload | None]
"""Decides on a job's state: the payload to record, or None for nothing to record. Pure; may raise `DomainError`."""

_REST_SECONDS = 0.0001
"""A commit that follows the last one so soon is a sign of load: then changes are let meet, in seconds."""
_VERIFY_RECORDS = 500
"""How many old records are checked in one turn, a count: commits wait for it."""
_VERIFY_PAUSE_SECONDS = 0.02
"""Pause between those turns, in seconds."""


class Request(Protocol):
    """A decision that is to be made, and who is told what became of it. All of it is called on the event loop."""

    @property
    def job(self) -> str:
        """The job's name."""

    def decide(self, job: Job | None, /) -> Payload | None:
        """Decides, as a `Decide`."""

    def done(self) -> bool:
        """Tells whether nobody wants the answer any more: a decision not made yet is then dropped."""

    def set_result(self, result: Record | None, /) -> None:
        """Takes the record, durable and visible; None if there was nothing to record. Must not raise."""

    def set_exception(self, exception: Exception, /) -> None:
        """Takes what `Engine.submit` would raise. Must not raise."""


class _Submitted(asyncio.Future["Record | None"]):
    """A request that a coroutine waits for."""

    def __init__(self, job: str, decide: Decide) -> None:
        super().__init__()
        self.job = job
        self.decide = decide


_Granted: TypeAlias = tuple[Request, "bool | DomainError"]
"""A request that waits for the commit, and whether there is something to record; or the refusal."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A part of the history."""

    changes: list[Record]
    """In the order of revisions."""
    applies: dict[int, list[Record]]
    """By the changes' revisions: the acknowledgements, in order."""
    before: int
    """Where the page before this one ends; 0 if there is none."""


class Engine:
    """Serialises all decisions and owns the state. Belongs to one event loop.

    Args:
        store: Where decisions become durable.
        hub: Who tells the watchers.
        metrics: Commit times and revision.
        snapshot_lag: How many of the newest records may be part of no snapshot.

    Attributes:
        failed: Set with the error when the store failed for good: the daemon must exit.
        damaged: Why a part of the history can't be served, ``""`` while nothing is known to be damaged.
    """

    def __init__(self, store: Store, hub: Hub, metrics: Metrics, snapshot_lag: int = limits.SNAPSHOT_LAG) -> None:
        self._store = store
        self._hub = hub
        self._metrics = metrics
        self._lag = snapshot_lag
        self._state = State()
        self._snapshots = Snapshots(store, self._state, snapshot_lag)
        self._queue: deque[Request] = deque()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._visible: asyncio.Future[None] | None = None
        self._ahead: dict[int, tuple[Payload, Job | None]] = {}
        """By revision: the payload just decided, and the job after it, so that it need not be worked out again when the
        very same payload has become durable under the very revision."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = self._busy = False
        self._last_commit = 0.0
        self._holds = 0
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.damaged = ""

    @property
    def store_id(self) -> str:
        """Identity of the store."""
        return self._store.store_id

    @property
    def revision(self) -> int:
        """Revision of the last record that is visible."""
        return self._state.revision

    @property
    def compacted(self) -> int:
        """Records up to this revision are not kept any more."""
        return self._store.compacted

    @property
    def covered(self) -> int:
        """Records up to this revision are part of snapshots."""
        return self._snapshots.covered

    def job(self, name: str) -> Job | None:
        """Returns a job's state, or None."""
        return self._state.jobs.get(name)

    def jobs(self) -> list[Job]:
        """Returns the state of all jobs."""
        return list(self._state.jobs.values())

    async def start(self) -> None:
        """Loads the snapshots, folds the log after them, and then takes requests.

        Raises:
            StoreDamagedError: A snapshot can't be read, or the log does not fold.
        """
        loaded = await self._store.load()
        self._state = State(loaded.jobs, loaded.covered)
        self._snapshots = Snapshots(self._store, self._state, self._lag)
        self._hub.begin(loaded.covered)
        self._spawn(self._follow(), "engine.follow")
        await self._until_visible(self._store.head)
        if self.failed.done():
            raise self.failed.result()
        self._spawn(self._write(), "engine.write")
        self._spawn(self._save(), "engine.save")
        self._spawn(self._verify(), "engine.verify")

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        # None of them ends by an error that was foreseen. A daemon that accepts requests and never answers is the worst
        # of what may follow: it ends, and what is on disk is verified when it is started again.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s ended unexpectedly", task.get_name(), exc_info=error)
            self._fail(error)

    async def submit(self, job: str, decide: Decide) -> Record | None:
        """Decides on the newest state of a job, commits, and returns when the record is durable and visible.

        Returns:
            The record, or None if there was nothing to record.

        Raises:
            DomainError: What `decide` raised; STORE_FULL; SHUTTING_DOWN; LIMIT_EXCEEDED when too many requests wait.
        """
        request = _Submitted(job, decide)
        self.hand_in(request)
        return await request

    def hand_in(self, request: Request, *, alone: bool = False) -> None:
        """Hands in a decision, as `submit`; it may be made and answered before this returns.

        Args:
            request: The decision, and who is told.
            alone: The caller has nothing else to hand in now: nothing is won by waiting for company.

        Raises:
            DomainError: SHUTTING_DOWN; LIMIT_EXCEEDED when too many requests wait.
        """
        if self._stopping:
            raise DomainError(Reason.SHUTTING_DOWN, "the daemon is stopping")
        if len(self._queue) >= limits.QUEUE:
            raise limit_exceeded("queue", limits.QUEUE, "too many requests wait for the store")
        if alone and not self._busy and not self._queue and self._rested():
            self._at_once([request])
            return
        self._queue.append(request)
        self._idle.clear()
        self._work.set()

    def _rested(self) -> bool:
        """Tells whether changes come one by one: under load they must meet in the queue, to share a commit."""
        return self._store.quick and clock.monotonic() - self._last_commit > _REST_SECONDS and not self._stopping

    async def stop(self) -> None:
        """Commits what was submitted, refuses what comes later, and ends."""
        self._stopping = True
        if not self.failed.done() and self._tasks:
            await self._idle.wait()
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while self._queue:
            _refuse([(self._queue.popleft(), False)], Reason.SHUTTING_DOWN, "the daemon is stopping")
        self._idle.set()

    async def change(self, job: Job, revision: int) -> list[Record]:
        """Returns the change of a job with a revision, alone in a list, or nothing.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """
        found = await self._store.changes(job.name, revision + 1, 1) if revision > 0 else []
        return [record for record in found if record.revision == revision]

    async def history(self, job: str, before: int, limit: int, wanted: ChangeFilter) -> HistoryPage:
        """Returns the newest changes older than a revision that are wanted, with what was acknowledged of each.

        One call looks at a bounded number of changes: a page may hold fewer than `limit` and have one before it.

        Args:
            job: The job's name, ``""`` for all jobs.
            before: Only changes with a lower revision.
            limit: At most this many.
            wanted: Which ones.

        Raises:
            StoreDamagedError: A stored record can't be read, or is missing.
        """
        found: list[Record] = []
        end, looked_at = min(before, self.revision + 1), 0
        state = self._state.jobs.get(job)
        newest = 0 if state is None or state.changed >= end else state.changed
        chunk_size = 1_000 if wanted.selective else limit + 1
        while True:
            chunk = await self._store.changes(job, end, chunk_size)
            if newest > self.compacted and (not chunk or chunk[-1].revision != newest):
                raise StoreDamagedError(f"change {newest} of job {job!r} is missing")
            newest = 0
            matching = [record for record in chunk if wanted.wants(record)]
            room = limit - len(found)
            found = matching[-room:] + found
            looked_at += len(chunk)
            exhausted = len(chunk) < chunk_size or chunk[0].revision <= wanted.after
            if len(matching) > room or exhausted:
                before = found[0].revision if len(matching) > room else 0
                break
            end = chunk[0].revision
            if looked_at >= limits.HISTORY_SCAN or len(found) == limit:
                before = end
                break
        return HistoryPage(found, await self._applies(found), before)

    async def _applies(self, changes: Sequence[Record]) -> dict[int, list[Record]]:
        applies: dict[int, list[Record]] = {change.revision: [] for change in changes}
        for job in {change.job for change in changes}:
            own = [change.revision for change in changes if change.job == job]
            for record in await self._store.applies(job, own[0], own[-1]):
                if isinstance(record.payload, Applied) and record.payload.change_revision in applies:
                    applies[record.payload.change_revision].append(record)
        return applies

    async def read(self, after: int, limit: int) -> list[Record]:
        """Returns records after a revision, in order.

        Raises:
            CompactedError: The records that follow are not kept any more.
            StoreDamagedError: A stored record can't be read.
        """
        return await self._store.read(after, limit)

    @contextmanager
    def nothing_compacted(self) -> Iterator[None]:
        """Keeps the log as it is while somebody copies it."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    async def compact(self, through: int) -> None:
        """Drops the records up to a revision, as far as snapshots cover them, unless somebody copies the log.

        Raises:
            StoreFullError: No room to do it.
        """
        if not self._holds:
            await self._store.compact(min(through, self._snapshots.covered))

    async def _follow(self) -> None:
        try:
            await self._store.follow(self._state.revision, self._take)
        except StoreError as error:
            self._fail(error)

    def _take(self, records: list[Record]) -> None:
        """Moves the view by what became durable."""
        if self.failed.done():
            return
        try:
            for record in records:
                payload, after = self._ahead.pop(record.revision, (None, None))
                if payload is record.payload:
                    self._state.move(record, after)
                    self._snapshots.seen(record)
                elif self._state.fold(record):
                    self._snapshots.seen(record)
        except (ValueError, KeyError) as error:
            self._fail(StoreDamagedError(f"the log does not fold: {error}"))
            return
        self._hub.publish(records)
        self._metrics.revision.set(self._state.revision)
        self._ring()

    def _ring(self) -> None:
        visible, self._visible = self._visible, None
        if visible is not None and not visible.done():
            visible.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)
        self._stopping = True
        self._refuse_waiting()
        self._ring()

    async def _until_visible(self, revision: int) -> None:
        # One waits at a time: the start, then the writer.
        while self._state.revision < revision and not self.failed.done():
            self._visible = asyncio.get_running_loop().create_future()
            await self._visible

    async def _save(self) -> None:
        try:
            await self._snapshots.run()
        except StoreFailedError as error:
            self._fail(error)

    async def _verify(self) -> None:
        """Checks what was not checked when the store was opened, a little at a time."""
        position, last = self._store.compacted, self._store.verified
        try:
            while position < last:
                position = await self._store.verify(position, min(_VERIFY_RECORDS, last - position))
                await asyncio.sleep(_VERIFY_PAUSE_SECONDS)
        except StoreDamagedError as error:
            # The state is right: it comes from snapshots and records that were checked. History is refused where it is
            # damaged, by each read.
            self.damaged = str(error)
            self._metrics.store_damaged.set(1)
            log.critical("%s: a part of the history is damaged; stop the daemon and run `livetuned doctor`", error)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), limits.BATCH))]
            if not self._queue:
                self._work.clear()
            if len(batch) == 1 and self._rested():
                self._at_once(batch)
            else:
                self._busy = True
                drafts, granted = self._decide(batch)
                try:
                    records = await self._commit(drafts) if drafts else []
                except (StoreFullError, StoreFailedError) as error:
                    self._not_stored(granted, error)
                else:
                    _tell(granted, records)
                self._busy = False
            if self.failed.done():
                return
            if not self._queue:
                self._idle.set()

    def _at_once(self, batch: Sequence[Request]) -> None:
        """Decides and commits without waiting."""
        drafts, granted = self._decide(batch)
        begun = clock.monotonic()
        try:
            records = self._store.append_now(drafts) if drafts else []
        except (StoreFullError, StoreFailedError) as error:
            self._not_stored(granted, error)
        else:
            self._measure(begun, len(drafts))
            _tell(granted, records)

    def _not_stored(self, granted: Sequence[_Granted], error: Exception) -> None:
        if isinstance(error, StoreFullError):
            log.warning("store full, writes are refused, reads go on: %s", error)
            _refuse(granted, Reason.STORE_FULL, "the daemon's disk is full: nothing was changed")
        else:
            _refuse(granted, Reason.SHUTTING_DOWN, "the daemon's store failed: unknown whether it was changed")
            self._fail(error)

    def _decide(self, batch: Sequence[Request]) -> tuple[list[Draft], list[_Granted]]:
        # Within a batch each decision sees the ones before it, although none is committed yet: if the commit fails, all
        # of them are refused and nothing of this overlay is left.
        overlay: dict[str, Job | None] = {}
        self._ahead.clear()
        drafts: list[Draft] = []
        granted: list[_Granted] = []
        now = clock.wall_us()
        for request in batch:
            if request.done():
                continue
            job = overlay[request.job] if request.job in overlay else self._state.jobs.get(request.job)
            try:
                payload = request.decide(job)
                if payload is not None:
                    provisional = Record(self._state.revision + len(drafts) + 1, now, request.job, payload)
                    after = overlay[request.job] = evolve(job, provisional)
                    self._ahead[provisional.revision] = payload, after
                    drafts.append(Draft(now, request.job, payload))
            except DomainError as error:
                if request.job in overlay:
                    # It may rest on a decision of this very batch, of which nobody may know before it is committed.
                    granted.append((request, error))
                else:
                    request.set_exception(error)
            except Exception as error:
                log.exception("decision on job %s failed", request.job)
                request.set_exception(error)
            else:
                # Also what needs no record waits for the commit: it may rest on a decision of this very batch.
                granted.append((request, payload is not None))
        return drafts, granted

    async def _commit(self, drafts: Sequence[Draft]) -> list[Record]:
        begun = clock.monotonic()
        records = await self._store.append(drafts)
        self._measure(begun, len(drafts))
        await self._until_visible(records[-1].revision)
        return records

    def _measure(self, begun: float, records: int) -> None:
        self._last_commit = clock.monotonic()
        if records:
            self._metrics.commit_seconds.observe(self._last_commit - begun)
            self._metrics.commit_records.observe(records)


def _tell(granted: Sequence[_Granted], records: Sequence[Record]) -> None:
    there = iter(records)
    for request, outcome in granted:
        record = next(there) if outcome is True else None
        if request.done():
            continue
        if isinstance(outcome, DomainError):
            request.set_exception(outcome)
        else:
            request.set_result(record)


def _refuse(granted: Sequence[_Granted], reason: Reason, message: str) -> None:
    for request, _ in granted:
        if not request.done():
            request.set_exception(DomainError(reason, message))
