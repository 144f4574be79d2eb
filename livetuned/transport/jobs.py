"""JobService: what training processes ask. A session is one task that reads and one that tells what was committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from livetune.v1 import job_pb2, job_pb2_grpc
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.records import Cancelled, Changed, Record, Scheduled
from livetuned.service import sessions
from livetuned.service.hub import Cursor
from livetuned.store.interface import CompactedError
from livetuned.transport import codec
from livetuned.transport.control import Service
from livetuned.transport.scope import scoped_job

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Responses = asyncio.Queue[job_pb2.SessionResponse | Exception | None]

_Reports = asyncio.Queue[job_pb2.ApplyReport]

_FULL_SECONDS = 1.0
"""Pause before an acknowledgement is recorded again for which the disk had no room, in seconds."""

_UNSENT = 64
"""Responses that may wait for a slow process, a count. A full queue holds back its own reader and cursor only."""


class JobService(job_pb2_grpc.JobServiceServicer):
    """The service, for all jobs or scoped to one.

    Args:
        service: The parts to call.
        scope: The only job it speaks of, ``""`` for all.
    """

    def __init__(self, service: Service, scope: str = "") -> None:
        self._s = service
        self._scope = scope

    async def Register(  # noqa: N802 - the name in the contract
        self, request: job_pb2.RegisterRequest, context: _Context
    ) -> job_pb2.RegisterResponse:
        """Registers a process as a rank of a job."""
        registration = await self._s.sessions.register(
            scoped_job(self._scope, request.job),
            rank=request.rank,
            world_size=request.world_size or 1,
            instance_id=request.instance_id,
            process=codec.process_from_wire(request.process),
            token=request.job_token,
            leads=request.leads,
        )
        return job_pb2.RegisterResponse(
            store_id=self._s.engine.store_id,
            run=registration.job.run,
            port=registration.job.port,
            revision=registration.revision,
            job_token=registration.token,
        )

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[job_pb2.SessionRequest], context: _Context
    ) -> AsyncIterator[job_pb2.SessionResponse]:
        """Holds the conversation with one process; its lease lasts as long."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "open":
            raise DomainError(Reason.INVALID_REQUEST, "a session begins with `open`", rule="open first")
        opening = first.open
        engine = self._s.engine
        after = opening.after_revision
        if not 0 <= after <= engine.revision:
            raise DomainError(
                Reason.STORE_REPLACED,
                f"revision {after} is not one of this store",
                rule=f"<= {engine.revision}",
            )
        session = self._s.sessions.open(
            scoped_job(self._scope, opening.job),
            opening.rank,
            opening.instance_id,
            opening.job_token,
            opening.declared_store_id,
            takes_scheduled=opening.takes_scheduled,
        )
        if opening.latest_only or session.adopt or after < engine.compacted:
            # The answers to the declarations carry every value and firing that counts. What another store once asked of
            # the process must not move it, not even until its declarations are answered.
            after = engine.revision
        responses: _Responses = asyncio.Queue(_UNSENT)
        reports: _Reports = asyncio.Queue(_UNSENT)
        tasks = [
            asyncio.create_task(_or_error(self._listen(session, request_iterator, responses, reports), responses)),
            asyncio.create_task(_or_error(self._record(session, reports, responses), responses)),
            asyncio.create_task(
                _or_error(
                    self._tell(session, self._s.hub.cursor(after, session.job, urgent=True), responses), responses
                )
            ),
        ]
        try:
            job = engine.job(session.job)
            waiting = list(job.waiting()) if job is not None and session.takes_scheduled else []
            yield job_pb2.SessionResponse(
                opened=job_pb2.SessionOpened(
                    store_id=engine.store_id,
                    revision=engine.revision,
                    takes_metrics=True,
                    scheduled_revisions=[revision for revision, _ in waiting],
                )
            )
            for revision, state in waiting:
                record = Record(revision, state.time_us, session.job, state.scheduled)
                yield job_pb2.SessionResponse(scheduled=codec.change_message(record))
            while (response := await responses.get()) is not None:
                if isinstance(response, Exception):
                    raise response
                yield response
        finally:
            for task in tasks:
                task.cancel()
            self._s.sessions.close(session)

    async def _listen(
        self,
        session: sessions.Session,
        requests: AsyncIterator[job_pb2.SessionRequest],
        responses: _Responses,
        reports: _Reports,
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "declare":
                await responses.put(await self._declare(session, request.declare))
            elif kind == "apply":
                session.step = max(session.step, request.apply.step)
                await reports.put(request.apply)
            elif kind == "progress":
                session.step = max(session.step, request.progress.step)
            elif kind == "metrics":
                logged = request.metrics
                samples, count = codec.samples_from_wire(logged), len(logged.samples)
                self._s.sessions.logged.take(session.source, samples, count, logged.refused)
            elif kind == "reschedule":
                kept = codec.kept_from_wire(request.reschedule)
                if not await self._s.sessions.reschedule(session, kept):
                    cancelled = job_pb2.ScheduledCancelled(scheduled_revision=kept.revision)
                    await responses.put(job_pb2.SessionResponse(scheduled_cancelled=cancelled))
            elif kind == "end":
                ending = request.end
                await reports.join()
                await self._s.sessions.end(session, failed=ending.failed, message=ending.message, step=ending.step)
                await responses.put(job_pb2.SessionResponse(end_recorded=job_pb2.EndRecorded()))
                break
            elif kind is not None:  # what a newer program says, and this daemon does not know, is passed over
                raise DomainError(Reason.INVALID_REQUEST, f"`{kind}` has no place in an open session", rule="open once")
        await responses.put(None)

    async def _declare(self, session: sessions.Session, message: job_pb2.Declare) -> job_pb2.SessionResponse:
        errors: dict[str, DomainError] = {}
        declarations = []
        for item in message.variables:
            try:
                declarations.append(codec.declaration_from_wire(item, self._s.engine.store_id))
            except DomainError as error:
                errors[item.spec.variable_id] = error
        triggers = [codec.trigger_from_wire(item) for item in message.triggers]
        job, refused = await self._s.sessions.declare(session, declarations, triggers)
        for name, refusal in refused.items():
            log.warning("job %s: declaration of %r refused: %s", session.job, name[:200], refusal.message)
        return job_pb2.SessionResponse(
            declared=codec.declare_result(
                job,
                [item.spec.variable_id for item in message.variables],
                [item.trigger_id for item in message.triggers],
                {**refused, **errors},
            )
        )

    async def _record(self, session: sessions.Session, reports: _Reports, responses: _Responses) -> None:
        """Records what the process acknowledges, in order. A full disk holds it up, and not the rest of the session."""
        while True:
            report = await reports.get()
            while not await self._apply(session, report, responses):  # noqa: ASYNC110 - none
                await asyncio.sleep(_FULL_SECONDS)
            reports.task_done()

    async def _apply(self, session: sessions.Session, report: job_pb2.ApplyReport, responses: _Responses) -> bool:
        """Records one acknowledgement; False if there is no room for it now."""
        revision = report.change_revision
        try:
            outcomes = [codec.outcome_from_wire(item) for item in report.outcomes]
            if scheduled := report.scheduled_revision:
                revision = await self._s.sessions.report_due(session, scheduled, report.step, outcomes)
            else:
                await self._s.sessions.report_apply(session, revision, report.step, outcomes)
        except DomainError as error:
            if error.reason is Reason.STORE_FULL:
                return False
            if error.reason in (Reason.NOT_REGISTERED, Reason.SHUTTING_DOWN):
                raise
            # A report that can't be kept would be repeated for ever if it ended the stream: it is noted, no more.
            log.warning("job %s: acknowledgement of %d not kept: %s", session.job, revision or scheduled, error)
        await responses.put(
            job_pb2.SessionResponse(
                apply_recorded=job_pb2.ApplyRecorded(
                    change_revision=revision,
                    trigger_id=next((item.trigger_id for item in report.outcomes if item.trigger_id), ""),
                    scheduled_revision=report.scheduled_revision,
                )
            )
        )
        return True

    async def _tell(self, session: sessions.Session, cursor: Cursor, responses: _Responses) -> None:
        while True:
            try:
                records = await cursor.next()
            except CompactedError:
                raise DomainError(
                    Reason.WATCH_TOO_SLOW,
                    "the process is so far behind that the changes it has not seen are not kept any more",
                ) from None
            for record in records:
                response = self._response(session, record)
                if response is not None:
                    await responses.put(response)

    def _response(self, session: sessions.Session, record: Record) -> job_pb2.SessionResponse | None:
        payload = record.payload
        if isinstance(payload, Changed):
            return job_pb2.SessionResponse(change=codec.change_message(record))
        if not session.takes_scheduled:
            return None
        if isinstance(payload, Cancelled):
            cancelled = job_pb2.ScheduledCancelled(scheduled_revision=payload.scheduled)
            return job_pb2.SessionResponse(scheduled_cancelled=cancelled)
        job = self._s.engine.job(session.job)
        if isinstance(payload, Scheduled) and job is not None and record.revision in dict(job.waiting()):
            # Not one that was cancelled meanwhile: its step may have come.
            return job_pb2.SessionResponse(scheduled=codec.change_message(record))
        return None


async def _or_error(work: Coroutine[None, None, None], responses: _Responses) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - it ends the stream, and is mapped to a status there
        await responses.put(error)
