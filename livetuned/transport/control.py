"""ControlService: what people and tools ask, each method a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.history import ChangeFilter
from livetuned.domain.job import Job
from livetuned.domain.lapse import lapsed
from livetuned.domain.records import Applied, Changed, Record
from livetuned.service.changes import Changes
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.sessions import Sessions
from livetuned.transport import codec
from livetuned.transport.changing import Changing, actor_of, caller_of
from livetuned.transport.classic import ClassicProtocol
from livetuned.transport.many import Many
from livetuned.transport.scope import scoped_job
from livetuned.transport.stalls import Stalls
from livetuned.transport.watching import Events, watch

_SERIES_AT_ONCE = 20
"""How many series are put into an answer before others have their turn, a count."""

_Context = grpc.aio.ServicerContext[Any, Any]


class Count:
    """How many streams of changes are open."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one while it is open.

        Raises:
            DomainError: LIMIT_EXCEEDED.
        """
        if self._open >= limits.CHANGE_STREAMS:
            raise limit_exceeded("change_streams", limits.CHANGE_STREAMS, "one stream of changes more")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that the methods call."""

    engine: Engine
    hub: Hub
    sessions: Sessions
    metrics: Metrics
    changes: Changes
    events: Events
    change_streams: Count
    stalls: Stalls
    classic: ClassicProtocol | None = None
    """The classic protocol, None if it is off."""


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """The service, for all jobs or scoped to one.

    Args:
        service: The parts to call.
        scope: The only job it speaks of, ``""`` for all.
    """

    def __init__(self, service: Service, scope: str = "") -> None:
        self._s = service
        self._scope = scope
        self._changing = Changing(service.changes, scope)

    def _job(self, resource: str) -> Job:
        name = scoped_job(self._scope, resource)
        job = self._s.engine.job(name)
        if job is None:
            known = [self._scope] if self._scope else [other.name for other in self._s.engine.jobs()]
            raise decide.job_not_found(name, known)
        return job

    def _to_wire(self, job: Job, *, full: bool) -> types_pb2.Job:
        sessions, classic = self._s.sessions, self._s.classic
        return codec.job_to_wire(
            job,
            sessions.status(job),
            sessions.step(job),
            sessions.connected(job.name),
            full=full,
            classic_port=0 if classic is None else classic.port(job.name),
        )

    async def ListJobs(  # noqa: N802 - the name in the contract
        self, request: control_pb2.ListJobsRequest, context: _Context
    ) -> control_pb2.ListJobsResponse:
        """Lists the jobs, live ones first, then the newest first."""
        jobs = [job for job in self._s.engine.jobs() if self._scope in ("", job.name)]
        if request.live_only:
            jobs = [job for job in jobs if job.ended is None]
        jobs.sort(key=lambda job: (job.ended is not None, -job.registered_us, job.name))
        return control_pb2.ListJobsResponse(
            jobs=[self._to_wire(job, full=False) for job in jobs],
            store_id=self._s.engine.store_id,
            revision=self._s.engine.revision,
        )

    async def GetJob(  # noqa: N802
        self, request: control_pb2.GetJobRequest, context: _Context
    ) -> control_pb2.GetJobResponse:
        """Describes one job."""
        return control_pb2.GetJobResponse(
            job=self._whole(self._job(request.name)),
            store_id=self._s.engine.store_id,
            revision=self._s.engine.revision,
        )

    async def SetVariables(  # noqa: N802
        self, request: control_pb2.SetVariablesRequest, context: _Context
    ) -> control_pb2.SetVariablesResponse:
        """Changes variables, all or none."""
        made = await self._changing.set(request, actor_of(context), caller_of(context))
        return control_pb2.SetVariablesResponse(
            change=codec.change_message(made.record),
            store_id=self._s.engine.store_id,
            connected_ranks=made.connected_ranks,
        )

    async def FireTriggers(  # noqa: N802
        self, request: control_pb2.FireTriggersRequest, context: _Context
    ) -> control_pb2.FireTriggersResponse:
        """Fires triggers, all or none."""
        made = await self._changing.fire(request, actor_of(context), caller_of(context))
        return control_pb2.FireTriggersResponse(
            change=codec.change_message(made.record),
            store_id=self._s.engine.store_id,
            connected_ranks=made.connected_ranks,
        )

    async def UndoChange(  # noqa: N802
        self, request: control_pb2.UndoChangeRequest, context: _Context
    ) -> control_pb2.UndoChangeResponse:
        """Undoes a change."""
        made = await self._changing.undo(request, actor_of(context), caller_of(context))
        return control_pb2.UndoChangeResponse(
            change=codec.change_message(made.record),
            store_id=self._s.engine.store_id,
            connected_ranks=made.connected_ranks,
        )

    async def CancelChange(  # noqa: N802
        self, request: control_pb2.CancelChangeRequest, context: _Context
    ) -> control_pb2.CancelChangeResponse:
        """Cancels a change that waits for its step."""
        waited = await self._changing.cancel(request, actor_of(context))
        return control_pb2.CancelChangeResponse(change=codec.change_message(waited), store_id=self._s.engine.store_id)

    async def StreamChanges(  # noqa: N802
        self, request_iterator: AsyncIterator[control_pb2.StreamChangesRequest], context: _Context
    ) -> AsyncIterator[control_pb2.StreamChangesResponse]:
        """Makes many changes over one stream."""
        actor, caller, store_id = actor_of(context), caller_of(context), self._s.engine.store_id
        with self._s.change_streams.one():
            async for response in self._changing.stream(request_iterator, actor, caller, store_id):
                yield response

    async def GetMetrics(  # noqa: N802
        self, request: control_pb2.GetMetricsRequest, context: _Context
    ) -> control_pb2.GetMetricsResponse:
        """Describes what a job's program logged."""
        job = self._job(request.job).name
        if min(request.max_points, request.rank, request.after_step) < 0:
            raise DomainError(
                Reason.INVALID_REQUEST, "max_points, rank and after_step must not be negative", rule=">= 0"
            )
        if request.max_points > limits.POINTS_PER_SERIES:
            raise limit_exceeded(
                "points_per_series", limits.POINTS_PER_SERIES, f"{request.max_points:,} points of each series"
            )
        logged = self._s.sessions.logged
        series = logged.series(job, frozenset(request.names), request.rank if request.HasField("rank") else None)
        most = min(request.max_points or 100, max(1, limits.POINTS_IN_ANSWER // max(1, len(series))))
        after_step = request.after_step if request.HasField("after_step") else None
        response = control_pb2.GetMetricsResponse(dropped=logged.dropped(job))
        for number, ((name, rank), one) in enumerate(series):
            if number % _SERIES_AT_ONCE == _SERIES_AT_ONCE - 1:
                await asyncio.sleep(0)  # a large answer takes its time: changes must not wait for it
            response.series.append(codec.series_to_wire(name, rank, one, most, after_step))
        return response

    async def RemoveJob(  # noqa: N802
        self, request: control_pb2.RemoveJobRequest, context: _Context
    ) -> control_pb2.RemoveJobResponse:
        """Ends a job that is lost, or forgets one that has ended."""
        job = self._job(request.name)
        actor = actor_of(context)
        ended = job.ended is not None
        if ended:
            await self._s.sessions.remove(job.name, actor, request.reason)
        else:
            why = f": {request.reason}" if request.reason else ""
            await self._s.sessions.give_up(job.name, f"given up by {actor or 'unknown'}{why}")
        return control_pb2.RemoveJobResponse(
            state=types_pb2.JOB_STATE_UNSPECIFIED if ended else types_pb2.JOB_STATE_FAILED,
            store_id=self._s.engine.store_id,
        )

    async def ListChanges(  # noqa: N802
        self, request: control_pb2.ListChangesRequest, context: _Context
    ) -> control_pb2.ListChangesResponse:
        """Lists a page of the changes of a job with what became of them."""
        job = self._job(request.job).name if request.job or self._scope else ""
        if min(request.page_size, request.before_revision, request.after_revision) < 0:
            raise DomainError(
                Reason.INVALID_REQUEST,
                "page_size, before_revision and after_revision must not be negative",
                rule=">= 0",
            )
        if request.page_size > limits.HISTORY_PAGE:
            raise limit_exceeded("history_page", limits.HISTORY_PAGE, f"page of {request.page_size:,} changes")
        engine = self._s.engine
        page = await engine.history(
            job,
            request.before_revision or engine.revision + 1,
            request.page_size or 100,
            ChangeFilter(
                after=request.after_revision,
                target=request.target_id,
                actor=request.actor,
                since_us=codec.time_from_wire(request.since_time) if request.HasField("since_time") else None,
                until_us=codec.time_from_wire(request.until_time) if request.HasField("until_time") else None,
            ),
        )
        return control_pb2.ListChangesResponse(
            changes=[
                _past_change(engine.job(record.job), record, page.applies[record.revision]) for record in page.changes
            ],
            store_id=engine.store_id,
            previous_before_revision=page.before,
            compacted_revision=engine.compacted,
        )

    async def Watch(  # type: ignore[override] # noqa: N802 - bytes go through unchanged: see the interceptor
        self, request: control_pb2.WatchRequest, context: _Context
    ) -> AsyncIterator[control_pb2.WatchResponse | bytes]:
        """Follows the log from a revision on."""
        service, job = self._s, self._watched(request.job)
        async for response in watch(service.engine, service.hub, service.events, job, request, self._whole):
            yield response

    async def WatchMany(  # noqa: N802
        self, request_iterator: AsyncIterator[control_pb2.WatchManyRequest], context: _Context
    ) -> AsyncIterator[control_pb2.WatchManyResponse]:
        """Follows the log for many watches."""
        many = Many(self._s.engine, self._s.hub, self._s.events, self._watched, self._whole)
        async for response in many.run(request_iterator):
            yield response

    def _watched(self, resource: str) -> str:
        return self._job(resource).name if resource or self._scope else ""

    def _whole(self, job: Job) -> types_pb2.Job:
        return self._to_wire(job, full=True)


def _past_change(job: Job | None, record: Record, applies: list[Record]) -> types_pb2.Change:
    changed = record.payload
    if not isinstance(changed, Changed):
        raise TypeError(f"record {record.revision} is no change")
    acknowledged = {
        outcome.target for apply in applies if isinstance(apply.payload, Applied) for outcome in apply.payload.outcomes
    }
    return codec.past_change_to_wire(record, applies, lapsed(job, record.revision, changed, acknowledged))
