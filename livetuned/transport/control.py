"""ControlService: what people and tools ask, each method a few lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job
from livetuned.domain.lapse import lapsed
from livetuned.domain.names import parse_job_resource
from livetuned.domain.records import Applied, Changed, Record
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.sessions import Sessions
from livetuned.transport import codec
from livetuned.transport.classic import ClassicProtocol

_Context = grpc.aio.ServicerContext[Any, Any]

ACTOR_KEY = "livetune-actor"
"""Metadata in which a client says who asks. Believed as it is: only this user's programs reach the daemon."""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that the methods call."""

    engine: Engine
    hub: Hub
    sessions: Sessions
    metrics: Metrics
    classic: ClassicProtocol | None = None
    """The classic protocol, None if it is off."""


def scoped_job(scope: str, resource: str) -> str:
    """Returns the job that a request speaks of.

    Args:
        scope: The job whose port the request came in by, ``""`` for none.
        resource: What the request names: ``jobs/{job}``, or nothing on a job's port.

    Raises:
        DomainError: INVALID_REQUEST, INVALID_NAME, or JOB_NOT_FOUND for another job than the port's.
    """
    if not resource:
        if not scope:
            raise DomainError(Reason.INVALID_REQUEST, "the request names no job", rule="jobs/JOB")
        return scope
    job = parse_job_resource(resource)
    if scope and job != scope:
        raise DomainError(
            Reason.JOB_NOT_FOUND,
            f"job '{job}' is not served here: this is the port of job '{scope}'",
            job=job,
        )
    return job


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """The service, for all jobs or scoped to one.

    Args:
        service: The parts to call.
        scope: The only job it speaks of, ``""`` for all.
    """

    def __init__(self, service: Service, scope: str = "") -> None:
        self._s = service
        self._scope = scope

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
            job=self._to_wire(self._job(request.name), full=True),
            store_id=self._s.engine.store_id,
            revision=self._s.engine.revision,
        )

    async def SetVariables(  # noqa: N802
        self, request: control_pb2.SetVariablesRequest, context: _Context
    ) -> control_pb2.SetVariablesResponse:
        """Changes variables, all or none."""
        updates = [codec.update_from_wire(update) for update in request.updates]
        if_revision = request.if_revision if request.HasField("if_revision") else None
        record, ranks = await self._change(
            request.job,
            request.request_id,
            lambda job: decide.set_variables(
                job,
                updates,
                if_revision=if_revision,
                actor=_actor(context),
                reason=request.reason,
                request_id=request.request_id,
            ),
        )
        return control_pb2.SetVariablesResponse(
            change=_change(record), store_id=self._s.engine.store_id, connected_ranks=ranks
        )

    async def FireTriggers(  # noqa: N802
        self, request: control_pb2.FireTriggersRequest, context: _Context
    ) -> control_pb2.FireTriggersResponse:
        """Fires triggers, all or none."""
        record, ranks = await self._change(
            request.job,
            request.request_id,
            lambda job: decide.fire_triggers(
                job,
                list(request.trigger_ids),
                actor=_actor(context),
                reason=request.reason,
                request_id=request.request_id,
            ),
        )
        return control_pb2.FireTriggersResponse(
            change=_change(record), store_id=self._s.engine.store_id, connected_ranks=ranks
        )

    async def _change(
        self, resource: str, request_id: str, decision: Callable[[Job], Changed]
    ) -> tuple[Record, list[int]]:
        counter = self._s.metrics.changes
        try:
            name = self._job(resource).name

            def once(job: Job | None) -> Changed | None:
                if job is None:
                    raise decide.job_not_found(name, [])
                return None if request_id and request_id in job.requests else decision(job)

            record = await self._s.engine.submit(name, once)
        except DomainError as error:
            counter.labels(error.reason.name.lower()).inc()
            raise
        if record is None:
            counter.labels("repeated").inc()
            revision = self._job(resource).requests[request_id]
            (record,), _ = await self._s.engine.history(name, revision + 1, 1)
        else:
            counter.labels("accepted").inc()
            self._s.sessions.committed(record.revision)
        return record, [session.rank for session in self._s.sessions.connected(name)]

    async def ListChanges(  # noqa: N802
        self, request: control_pb2.ListChangesRequest, context: _Context
    ) -> control_pb2.ListChangesResponse:
        """Lists a page of the changes of a job with what became of them."""
        job = self._job(request.job)
        if request.page_size < 0 or request.before_revision < 0:
            raise DomainError(Reason.INVALID_REQUEST, "page_size and before_revision must not be negative", rule=">= 0")
        if request.page_size > limits.HISTORY_PAGE:
            raise limit_exceeded("history_page", limits.HISTORY_PAGE, f"page of {request.page_size:,} changes")
        limit = request.page_size or 100
        before = request.before_revision or self._s.engine.revision + 1
        # One more than asked for tells whether there is a page before this one.
        changes, applies = await self._s.engine.history(job.name, before, limit + 1)
        page = changes[-limit:]
        return control_pb2.ListChangesResponse(
            changes=[_past_change(job, record, applies[record.revision]) for record in page],
            store_id=self._s.engine.store_id,
            previous_before_revision=page[0].revision if len(changes) > limit else 0,
        )

    async def Watch(  # noqa: N802
        self, request: control_pb2.WatchRequest, context: _Context
    ) -> AsyncIterator[control_pb2.WatchResponse]:
        """Follows the log from a revision on."""
        engine, hub = self._s.engine, self._s.hub
        job = self._job(request.job).name if request.job or self._scope else ""
        if request.store_id and request.store_id != engine.store_id:
            raise DomainError(
                Reason.STORE_REPLACED,
                "the daemon's store is another one than the revision comes from: list again, then watch from there",
                value=request.store_id[:100],
                rule=engine.store_id,
            )
        after = request.after_revision if request.HasField("after_revision") else hub.revision
        if not 0 <= after <= hub.revision:
            raise DomainError(
                Reason.INVALID_REQUEST, f"revision {after} is not one of this store: the last one is {hub.revision}",
                rule=f"0 <= revision <= {hub.revision}", value=str(after),
            )  # fmt: skip
        with hub.watching():
            cursor = hub.cursor(after, job)
            yield control_pb2.WatchResponse(store_id=engine.store_id, bookmark=control_pb2.Bookmark(revision=after))
            while True:
                for record in await cursor.next():
                    yield control_pb2.WatchResponse(store_id=engine.store_id, event=codec.event_to_wire(record))


def _change(record: Record) -> types_pb2.Change:
    return codec.change_to_wire(record, _changed(record))


def _past_change(job: Job, record: Record, applies: list[Record]) -> types_pb2.Change:
    acknowledged = {
        outcome.target for apply in applies if isinstance(apply.payload, Applied) for outcome in apply.payload.outcomes
    }
    changed = _changed(record)
    return codec.change_to_wire(record, changed, applies, lapsed(job, record.revision, changed, acknowledged))


def _changed(record: Record) -> Changed:
    if not isinstance(record.payload, Changed):
        raise TypeError(f"record {record.revision} is no change")
    return record.payload


def _actor(context: _Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == ACTOR_KEY:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""
