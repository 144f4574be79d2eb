"""Requests to change something, from the wire to wishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from livetune.v1 import control_pb2
from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.records import Record
from livetuned.service.changes import Changes, Made, Wish
from livetuned.transport import codec, errors
from livetuned.transport.scope import scoped_job

_Context = grpc.aio.ServicerContext[Any, Any]

ACTOR_KEY = "livetune-actor"
"""Metadata in which a client says who asks. Believed as it is: only this user's programs reach the daemon."""


def actor_of(context: _Context) -> str:
    """Returns who asks, as the client says."""
    for key, value in context.invocation_metadata() or ():
        if key == ACTOR_KEY:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""


def caller_of(context: _Context) -> str:
    """Returns who is held to the rate: who asks, or where from if he does not say."""
    return actor_of(context) or context.peer() or "unknown"


class Changing:
    """Makes changes that are asked for on the wire.

    Args:
        changes: Who makes them.
        scope: The only job they may be of, ``""`` for any.
    """

    def __init__(self, changes: Changes, scope: str) -> None:
        self._changes = changes
        self._scope = scope

    async def set(self, request: control_pb2.SetVariablesRequest, actor: str, caller: str) -> Made:
        """Changes variables, all or none."""
        return await self._changes.make(caller, *self._set(request, actor))

    async def fire(self, request: control_pb2.FireTriggersRequest, actor: str, caller: str) -> Made:
        """Fires triggers, all or none."""
        return await self._changes.make(caller, *self._fire(request, actor))

    async def undo(self, request: control_pb2.UndoChangeRequest, actor: str, caller: str) -> Made:
        """Undoes a change."""
        name = scoped_job(self._scope, request.job)
        wish = await self._changes.undo_wish(
            name,
            request.revision,
            force=request.force,
            actor=actor,
            reason=request.reason,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )
        return await self._changes.make(caller, name, wish)

    async def cancel(self, request: control_pb2.CancelChangeRequest, actor: str) -> Record:
        """Cancels a change that waits for its step, and returns what had been scheduled."""
        name = scoped_job(self._scope, request.job)
        return await self._changes.cancel(name, request.revision, actor=actor, reason=request.reason)

    def _set(self, request: control_pb2.SetVariablesRequest, actor: str) -> tuple[str, Wish]:
        updates = [codec.update_from_wire(update) for update in request.updates]
        if_revision = request.if_revision if request.HasField("if_revision") else None
        if_job_revision = request.if_job_revision if request.HasField("if_job_revision") else None
        request_id = request.request_id
        wish = Wish(
            lambda job: decide.set_variables(
                job,
                updates,
                if_revision=if_revision,
                if_job_revision=if_job_revision,
                actor=actor,
                reason=request.reason,
                request_id=request_id,
            ),
            lambda made: decide.check_same_set(made, updates),
            codec.when_from_wire(request),
            request_id,
            request.validate_only,
        )
        return scoped_job(self._scope, request.job), wish

    def _fire(self, request: control_pb2.FireTriggersRequest, actor: str) -> tuple[str, Wish]:
        names = list(request.trigger_ids)
        when = codec.when_from_wire(request)
        if request.merge and when is not None:
            raise DomainError(
                Reason.INVALID_REQUEST, "a firing at a step is not merged with one that waits now",
                rule="merge, or a step",
            )  # fmt: skip
        wish = Wish(
            lambda job: decide.fire_triggers(
                job,
                names,
                merge=request.merge,
                actor=actor,
                reason=request.reason,
                request_id=request.request_id,
            ),
            lambda made: decide.check_same_firing(made, names),
            when,
            request.request_id,
            request.validate_only,
            tuple(names),
        )
        return scoped_job(self._scope, request.job), wish

    async def stream(
        self, requests: AsyncIterator[control_pb2.StreamChangesRequest], actor: str, caller: str, store_id: str
    ) -> AsyncIterator[control_pb2.StreamChangesResponse]:
        """Makes the changes of a stream and yields their answers as they come; what is there at once in one message."""
        answers = _Answers()
        reader = asyncio.create_task(self._read(requests, answers, actor, caller))
        reader.add_done_callback(answers.end)
        try:
            while ready := await answers.ready():
                yield control_pb2.StreamChangesResponse(answers=ready, store_id=store_id)
            await reader  # what ended it
        finally:
            answers.closed = True
            reader.cancel()

    async def _read(
        self, requests: AsyncIterator[control_pb2.StreamChangesRequest], answers: _Answers, actor: str, caller: str
    ) -> None:
        async for request in requests:
            if len(request.changes) > limits.CHANGES_IN_FLIGHT:
                raise limit_exceeded("changes_in_flight", limits.CHANGES_IN_FLIGHT, "one message of a stream")
            alone = len(request.changes) == 1
            for change in request.changes:
                if answers.full:
                    await answers.room()
                self._begin(change, answers, actor, caller, alone=alone)
            if alone:
                await asyncio.sleep(0)  # what was answered at once goes out before the next message is waited for
        await answers.all_told()

    def _begin(
        self, change: control_pb2.StreamedChange, answers: _Answers, actor: str, caller: str, *, alone: bool
    ) -> None:
        told = answers.begin(change.tag)
        kind = change.WhichOneof("request")
        try:
            if kind == "set":
                self._changes.begin(caller, *self._set(change.set, actor), told, alone=alone)
            elif kind == "fire":
                self._changes.begin(caller, *self._fire(change.fire, actor), told, alone=alone)
            elif kind == "undo":
                answers.keep(asyncio.create_task(_settle(self.undo(change.undo, actor, caller), told)))
            else:
                raise DomainError(
                    Reason.INVALID_REQUEST, "a change asks for nothing", rule="set, fire or undo", tag=str(change.tag)
                )
        except DomainError as error:
            told.set_exception(error)


async def _settle(work: Coroutine[None, None, Made], told: _Told) -> None:
    try:
        told.set_result(await work)
    except Exception as error:  # noqa: BLE001 - one answer of many: the boundary is here
        told.set_exception(error)


class _Told:
    """One change of a stream, until it is answered."""

    __slots__ = ("_answers", "_tag")

    def __init__(self, answers: _Answers, tag: int) -> None:
        self._answers = answers
        self._tag = tag

    def done(self) -> bool:
        return self._answers.closed

    def set_result(self, made: Made) -> None:
        answer = control_pb2.StreamedAnswer()
        answer.tag = self._tag
        answer.connected_ranks.extend(made.connected_ranks)
        codec.write_change(made.record, answer.change)
        self._answers.put(answer)

    def set_exception(self, error: Exception) -> None:
        self._answers.put(control_pb2.StreamedAnswer(tag=self._tag, error=errors.status_of(error)))


class _Answers:
    """The answers of one stream on their way to the client."""

    def __init__(self) -> None:
        self.closed = False
        """The stream is over: nobody wants the answers any more."""
        self._waiting = 0
        self._ready: list[control_pb2.StreamedAnswer] = []
        self._there = asyncio.Event()
        self._fewer = asyncio.Event()
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, tag: int) -> _Told:
        """Adds a change that is to be answered."""
        self._waiting += 1
        return _Told(self, tag)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put(self, answer: control_pb2.StreamedAnswer) -> None:
        """Takes an answer."""
        self._waiting -= 1
        self._ready.append(answer)
        self._there.set()
        self._fewer.set()

    def end(self, _: object) -> None:
        """Says that no more answers come."""
        self._ended = True
        self._there.set()

    async def ready(self) -> list[control_pb2.StreamedAnswer]:
        """Returns the answers that are there, waiting for at least one; none when no more come."""
        while not self._ready and not self._ended:
            self._there.clear()
            await self._there.wait()
        found, self._ready = self._ready, []
        self._fewer.set()
        return found

    @property
    def full(self) -> bool:
        """Tells whether no other change may be begun now."""
        return self._waiting + len(self._ready) >= limits.CHANGES_IN_FLIGHT

    async def room(self) -> None:
        """Waits until another change may be begun."""
        while self.full:
            self._fewer.clear()
            await self._fewer.wait()

    async def all_told(self) -> None:
        """Waits until every change is answered."""
        while self._waiting:
            self._fewer.clear()
            await self._fewer.wait()
