"""A watch on the wire: where it begins, snapshots where events alone won't do, bookmarks, one message for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator

from livetune.v1 import control_pb2, types_pb2
from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job
from livetuned.domain.records import Record
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.store.interface import CompactedError
from livetuned.transport import codec


class Events:
    """Records as messages that every watcher gets: written once, sent to many.

    Args:
        capacity: How many are kept.
    """

    def __init__(self, capacity: int = limits.HUB_RECORDS) -> None:
        self._capacity = capacity
        self._known: OrderedDict[int, bytes] = OrderedDict()

    def message(self, record: Record, store_id: str) -> bytes:
        """Returns a record as a serialised `WatchResponse`."""
        known = self._known.get(record.revision)
        if known is None:
            response = control_pb2.WatchResponse(store_id=store_id, event=codec.event_to_wire(record))
            known = self._known[record.revision] = response.SerializeToString()
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return known


async def watch(
    engine: Engine,
    hub: Hub,
    events: Events,
    job: str,
    request: control_pb2.WatchRequest,
    to_wire: Callable[[Job], types_pb2.Job],
) -> AsyncIterator[control_pb2.WatchResponse | bytes]:
    """Yields what a watch shows: a bookmark or a snapshot, then events, and bookmarks while nothing happens.

    Args:
        engine: Whose state and records.
        hub: Who tells of new ones.
        events: Their messages.
        job: Only of this job, ``""`` for all.
        request: Where it begins.
        to_wire: Writes a job for a snapshot.

    Raises:
        DomainError: INVALID_REQUEST for a revision that this store never had; LIMIT_EXCEEDED.
        StoreDamagedError: A stored record can't be read.
    """
    store_id = engine.store_id
    after, cause = begin(engine, hub, request)
    with hub.watching():
        while True:
            if cause != control_pb2.SNAPSHOT_CAUSE_UNSPECIFIED:
                after, responses = snapshot(engine, hub, job, cause, to_wire)
                for response in responses:
                    yield response
            cursor = hub.cursor(after, job)
            yield bookmark(store_id, after)
            told = after
            try:
                while True:
                    records = await cursor.next_or_tick()
                    for record in records:
                        yield events.message(record, store_id)
                    if not records and cursor.position > told:
                        yield bookmark(store_id, cursor.position)
                    told = cursor.position
            except CompactedError:
                cause = control_pb2.SNAPSHOT_CAUSE_COMPACTED


def bookmark(store_id: str, revision: int) -> control_pb2.WatchResponse:
    """Returns the message that everything up to a revision was delivered."""
    return control_pb2.WatchResponse(store_id=store_id, bookmark=control_pb2.Bookmark(revision=revision))


def snapshot(
    engine: Engine,
    hub: Hub,
    job: str,
    cause: control_pb2.SnapshotCause.ValueType,
    to_wire: Callable[[Job], types_pb2.Job],
) -> tuple[int, Iterator[control_pb2.WatchResponse]]:
    """Returns the revision of a snapshot, and its messages but for the bookmark that ends it.

    All of it as of one revision: jobs are immutable, and the ones to show are chosen now.
    """
    jobs = [known for known in engine.jobs() if job in ("", known.name)]
    store_id = engine.store_id

    def responses() -> Iterator[control_pb2.WatchResponse]:
        first = control_pb2.SnapshotBegin(cause=cause)
        yield control_pb2.WatchResponse(store_id=store_id, snapshot_begin=first)
        for known in jobs:
            yield control_pb2.WatchResponse(store_id=store_id, snapshot_job=to_wire(known))

    return hub.revision, responses()


def begin(
    engine: Engine, hub: Hub, request: control_pb2.WatchRequest
) -> tuple[int, control_pb2.SnapshotCause.ValueType]:
    """Returns after which revision a watch begins, and why it needs a snapshot first; UNSPECIFIED if it does not.

    Raises:
        DomainError: INVALID_REQUEST for a revision that this store never had.
    """
    after = request.after_revision if request.HasField("after_revision") else hub.revision
    if after < 0 or (after > hub.revision and not request.store_id):
        raise DomainError(
            Reason.INVALID_REQUEST,
            f"revision {after} is not one of this store: the last one is {hub.revision}",
            rule=f"0 <= revision <= {hub.revision}",
            value=str(after),
        )
    if (request.store_id and request.store_id != engine.store_id) or after > hub.revision:
        return after, control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED
    if request.snapshot:
        return after, control_pb2.SNAPSHOT_CAUSE_REQUESTED
    if after < engine.compacted:
        return after, control_pb2.SNAPSHOT_CAUSE_COMPACTED
    return after, control_pb2.SNAPSHOT_CAUSE_UNSPECIFIED
