"""The one writer: decides on the newest state, commits, and only then lets anybody see it.

Requests that wait together share one commit. The state that readers see is a fold over what the store says is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Applied, Draft, Payload, Record
from livetuned.domain.state import State
from livetuned.service import clock
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.store.interface import Store, StoreDamagedError, StoreFailedError, StoreFullError

log = logging.getLogger(__name__)

Decide = Callable[[Job | None], Payload | None]
"""Decides on a job's state: the payload to record, or None for nothing to record. Pure; may raise `DomainError`."""


@dataclass(slots=True)
class _Request:
    job: str
    decide: Decide
    answer: asyncio.Future[Record | None]


_Granted: TypeAlias = tuple[_Request, bool]
"""A request that was granted, and whether there is something to record."""


class Engine:
    """Serialises all decisions and owns the state. Belongs to one event loop.

    Args:
        store: Where decisions become durable.
        hub: Who tells the watchers.
        metrics: Commit times and revision.

    Attributes:
        failed: Set with the error when the store failed for good: the daemon must exit.
    """

    def __init__(self, store: Store, hub: Hub, metrics: Metrics) -> None:
        self._store = store
        self._hub = hub
        self._metrics = metrics
        self._state = State()
        self._queue: asyncio.Queue[_Request] = asyncio.Queue(limits.QUEUE)
        self._moved = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @property
    def store_id(self) -> str:
        """Identity of the store."""
        return self._store.store_id

    @property
    def revision(self) -> int:
        """Revision of the last record that is visible."""
        return self._state.revision

    def job(self, name: str) -> Job | None:
        """Returns a job's state, or None."""
        return self._state.jobs.get(name)

    def jobs(self) -> list[Job]:
        """Returns the state of all jobs."""
        return list(self._state.jobs.values())

    async def start(self) -> None:
        """Folds the whole log and then takes requests.

        Raises:
            StoreDamagedError: The log does not fold.
        """
        self._tasks.append(asyncio.create_task(self._follow(), name="engine.follow"))
        await self._until_visible(self._store.head)
        if self.failed.done():
            raise self.failed.result()
        self._tasks.append(asyncio.create_task(self._write(), name="engine.write"))

    async def submit(self, job: str, decide: Decide) -> Record | None:
        """Decides on the newest state of a job, commits, and returns when the record is durable and visible.

        Returns:
            The record, or None if there was nothing to record.

        Raises:
            DomainError: What `decide` raised; STORE_FULL; SHUTTING_DOWN; LIMIT_EXCEEDED when too many requests wait.
        """
        if self._stopping:
            raise DomainError(Reason.SHUTTING_DOWN, "the daemon is stopping")
        answer: asyncio.Future[Record | None] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(_Request(job, decide, answer))
        except asyncio.QueueFull:
            raise limit_exceeded("queue", limits.QUEUE, "too many requests wait for the store") from None
        return await answer

    async def stop(self) -> None:
        """Commits what was submitted, refuses what comes later, and ends."""
        self._stopping = True
        if not self.failed.done():
            await self._queue.join()
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            _refuse([(self._queue.get_nowait(), False)], Reason.SHUTTING_DOWN, "the daemon is stopping")

    async def history(self, job: str, before: int, limit: int) -> tuple[list[Record], dict[int, list[Record]]]:
        """Returns the newest changes of a job older than a revision, in order, with what was acknowledged of each.

        Args:
            job: The job's name.
            before: Only changes with a lower revision.
            limit: At most this many.

        Returns:
            The changes, and by their revision the acknowledgements in order.

        Raises:
            StoreDamagedError: A stored record can't be read.
        """
        changes = await self._store.changes(job, before, limit)
        applies: dict[int, list[Record]] = {change.revision: [] for change in changes}
        if changes:
            for record in await self._store.applies(job, changes[0].revision, changes[-1].revision):
                if isinstance(record.payload, Applied):
                    applies[record.payload.change_revision].append(record)
        return changes, applies

    async def _follow(self) -> None:
        try:
            async for records in self._store.follow(0):
                for record in records:
                    self._state.fold(record)
                self._hub.publish(records)
                self._metrics.revision.set(self._state.revision)
                async with self._moved:
                    self._moved.notify_all()
        except (StoreDamagedError, ValueError, KeyError) as error:
            await self._fail(StoreDamagedError(f"the log does not fold: {error}"))

    async def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)
        async with self._moved:
            self._moved.notify_all()

    async def _until_visible(self, revision: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._state.revision >= revision or self.failed.done())

    async def _write(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < limits.BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            drafts, granted = self._decide(batch)
            try:
                records = iter(await self._commit(drafts) if drafts else ())
            except StoreFullError as error:
                log.warning("store full, writes are refused, reads go on: %s", error)
                _refuse(granted, Reason.STORE_FULL, "the daemon's disk is full: nothing was changed")
            except StoreFailedError as error:
                _refuse(granted, Reason.SHUTTING_DOWN, "the daemon's store failed: unknown whether it was changed")
                await self._fail(error)
                self._stopping = True
                self._refuse_waiting()
                return
            else:
                for request, drafted in granted:
                    if not request.answer.done():
                        request.answer.set_result(next(records) if drafted else None)
                    elif drafted:
                        next(records)
            for _ in batch:
                self._queue.task_done()

    def _decide(self, batch: Sequence[_Request]) -> tuple[list[Draft], list[_Granted]]:
        # Within a batch each decision sees the ones before it, although none is committed yet: if the commit fails, all
        # of them are refused and nothing of this overlay is left.
        overlay: dict[str, Job | None] = {}
        drafts: list[Draft] = []
        granted: list[_Granted] = []
        now = clock.wall_us()
        for request in batch:
            if request.answer.done():
                continue
            job = overlay[request.job] if request.job in overlay else self._state.jobs.get(request.job)
            try:
                payload = request.decide(job)
                if payload is not None:
                    provisional = Record(self._state.revision + len(drafts) + 1, now, request.job, payload)
                    overlay[request.job] = evolve(job, provisional)
                    drafts.append(Draft(now, request.job, payload))
            except DomainError as error:
                request.answer.set_exception(error)
            except Exception as error:
                log.exception("decision on job %s failed", request.job)
                request.answer.set_exception(error)
            else:
                # Also what needs no record waits for the commit: it may rest on a decision of this very batch.
                granted.append((request, payload is not None))
        return drafts, granted

    async def _commit(self, drafts: Sequence[Draft]) -> list[Record]:
        begun = clock.monotonic()
        records = await self._store.append(drafts)
        self._metrics.commit_seconds.observe(clock.monotonic() - begun)
        self._metrics.commit_records.observe(len(drafts))
        await self._until_visible(records[-1].revision)
        return records


def _refuse(granted: Sequence[_Granted], reason: Reason, message: str) -> None:
    for request, _ in granted:
        if not request.answer.done():
            request.answer.set_exception(DomainError(reason, message))
