"""Many watches over one stream: one cursor over the log for all, each event sent once with the ids it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from livetune.v1 import control_pb2, types_pb2
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.store.interface import CompactedError
from livetuned.transport import errors
from livetuned.transport.watching import Events, begin, bookmark, snapshot

_UNSENT = 64
"""Messages that may wait for a slow client, a count; a full queue holds back this stream only."""


@dataclass(slots=True)
class _Watch:
    job: str
    """Its scope, ``""`` for all jobs."""
    after: int
    """Everything up to this revision was put on its way."""
    open: ExitStack = field(default_factory=ExitStack)
    """What ends with it."""


class Many:
    """The watches of one stream.

    Args:
        engine: Whose state and records.
        hub: Who tells of new ones.
        events: Their messages.
        scope: Returns the job that a request names, ``""`` for all; raises if it may not be watched.
        to_wire: Writes a job for a snapshot.
    """

    def __init__(
        self,
        engine: Engine,
        hub: Hub,
        events: Events,
        scope: Callable[[str], str],
        to_wire: Callable[[Job], types_pb2.Job],
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._events = events
        self._scope = scope
        self._to_wire = to_wire
        self._watches: dict[int, _Watch] = {}
        self._by_job: dict[str, dict[int, _Watch]] = {}
        self._cursor = hub.cursor(hub.revision)
        self._unsent: asyncio.Queue[control_pb2.WatchManyResponse | None] = asyncio.Queue(_UNSENT)

    async def run(
        self, requests: AsyncIterator[control_pb2.WatchManyRequest]
    ) -> AsyncIterator[control_pb2.WatchManyResponse]:
        """Yields what the watches show, until no more requests come.

        Raises:
            DomainError: WATCH_TOO_SLOW if the stream is so far behind that what it has not seen is not kept any more.
            StoreDamagedError: A stored record can't be read.
        """
        tasks = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._tell())]
        for task in tasks:
            task.add_done_callback(lambda _: self._end())
        try:
            while (response := await self._unsent.get()) is not None:
                yield response
            for task in tasks:
                if task.done():
                    await task  # what ended it
        finally:
            for task in tasks:
                task.cancel()
            for watch in self._watches.values():
                watch.open.close()

    def _end(self) -> None:
        if self._unsent.full():
            self._unsent.get_nowait()  # the stream ends: what is lost is resumed after
        self._unsent.put_nowait(None)

    async def _read(self, requests: AsyncIterator[control_pb2.WatchManyRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("request") == "end":
                await self._stop(request.end.watch_id)
            else:
                await self._begin(request.begin)

    async def _begin(self, message: control_pb2.WatchBegin) -> None:
        number = message.watch_id
        try:
            if number in self._watches:
                raise DomainError(
                    Reason.INVALID_REQUEST,
                    f"watch {number} is open on this stream already",
                    rule="an id of its own for each watch",
                    value=str(number),
                )
            job = self._scope(message.watch.job)
            after, cause = begin(self._engine, self._hub, message.watch)
            watch = _Watch(job, after)
            watch.open.enter_context(self._hub.watching())
        except DomainError as error:
            await self._unsent.put(control_pb2.WatchManyResponse(watch_ids=[number], error=errors.status_of(error)))
            return
        self._watches[number] = watch
        if cause != control_pb2.SNAPSHOT_CAUSE_UNSPECIFIED:
            watch.after, responses = snapshot(self._engine, self._hub, job, cause, self._to_wire)
            for response in responses:
                await self._put(number, response)
        await self._put(number, bookmark(self._engine.store_id, watch.after))
        await self._catch_up(number, watch)

    async def _catch_up(self, number: int, watch: _Watch) -> None:
        """Sends what the common cursor has passed already, then lets the watch join it."""
        while watch.after < self._cursor.position:
            records, watch.after = await self._hub.after(watch.after, watch.job)
            for record in records:
                response = control_pb2.WatchManyResponse(watch_ids=[number])
                response.response.MergeFromString(self._events.message(record, self._engine.store_id))
                await self._unsent.put(response)
        # Nothing is awaited between the last look and this line: no record is left out.
        self._by_job.setdefault(watch.job, {})[number] = watch

    async def _stop(self, number: int) -> None:
        watch = self._watches.pop(number, None)
        if watch is None:
            error = DomainError(Reason.INVALID_REQUEST, f"watch {number} is not open on this stream", value=str(number))
            await self._unsent.put(control_pb2.WatchManyResponse(watch_ids=[number], error=errors.status_of(error)))
            return
        watch.open.close()
        of_job = self._by_job.get(watch.job, {})
        of_job.pop(number, None)
        if not of_job:
            self._by_job.pop(watch.job, None)
        await self._unsent.put(control_pb2.WatchManyResponse(watch_ids=[number], ended=control_pb2.WatchEnded()))

    async def _put(self, number: int, response: control_pb2.WatchResponse) -> None:
        await self._unsent.put(control_pb2.WatchManyResponse(watch_ids=[number], response=response))

    async def _tell(self) -> None:
        store_id, told = self._engine.store_id, self._cursor.position
        while True:
            try:
                records = await self._cursor.next_or_tick()
            except CompactedError:
                raise DomainError(
                    Reason.WATCH_TOO_SLOW, "what this stream has not seen is not kept any more: begin its watches anew"
                ) from None
            for record in records:
                ids = [
                    number
                    for job in {"", record.job}
                    for number, watch in self._by_job.get(job, {}).items()
                    if watch.after < record.revision
                ]
                if ids:
                    response = control_pb2.WatchManyResponse(watch_ids=ids)
                    response.response.MergeFromString(self._events.message(record, store_id))
                    await self._unsent.put(response)
            position = self._cursor.position
            if not records and position > told:
                ids = [
                    number
                    for of_job in self._by_job.values()
                    for number, watch in of_job.items()
                    if watch.after <= position
                ]
                await self._unsent.put(
                    control_pb2.WatchManyResponse(watch_ids=ids, response=bookmark(store_id, position))
                )
                told = position
