"""Requests to change something, from the wire to wishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from livetune.v1 import control_pb2
from livetuned.domain import decide, limits
from livetuned.domain.errors import limit_exceeded
from livetuned.service.changes import Changes, Made, Wish, not_one_of
from livetuned.transport import codec, errors
from livetuned.transport.scope import scoped_job

_Context = grpc.aio.ServicerContext[Any, Any]
_Answers = asyncio.Queue[control_pb2.StreamedAnswer | None]

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
        updates = [codec.update_from_wire(update) for update in request.updates]
        if_revision = request.if_revision if request.HasField("if_revision") else None
        if_job_revision = request.if_job_revision if request.HasField("if_job_revision") else None
        wish = Wish(
            lambda job: decide.set_variables(
                job,
                updates,
                if_revision=if_revision,
                if_job_revision=if_job_revision,
                actor=actor,
                reason=request.reason,
                request_id=request.request_id,
            ),
            lambda made: decide.check_same_set(made, updates),
            request.request_id,
            request.validate_only,
        )
        return await self._changes.make(caller, scoped_job(self._scope, request.job), wish)

    async def fire(self, request: control_pb2.FireTriggersRequest, actor: str, caller: str) -> Made:
        """Fires triggers, all or none."""
        names = list(request.trigger_ids)
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
            request.request_id,
            request.validate_only,
        )
        return await self._changes.make(caller, scoped_job(self._scope, request.job), wish)

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

    async def stream(
        self, requests: AsyncIterator[control_pb2.StreamChangesRequest], actor: str, caller: str, store_id: str
    ) -> AsyncIterator[control_pb2.StreamChangesResponse]:
        """Makes the changes of a stream and yields their answers as they come; what is there at once in one message."""
        answers: _Answers = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, answers, actor, caller))
        try:
            ended = False
            while not ended:
                ready = [await answers.get()]
                while not answers.empty():
                    ready.append(answers.get_nowait())
                ended = None in ready
                found = [answer for answer in ready if answer is not None]
                if found:
                    yield control_pb2.StreamChangesResponse(answers=found, store_id=store_id)
            await reader  # what ended it
        finally:
            reader.cancel()

    async def _read(
        self,
        requests: AsyncIterator[control_pb2.StreamChangesRequest],
        answers: _Answers,
        actor: str,
        caller: str,
    ) -> None:
        room = asyncio.Semaphore(limits.CHANGES_IN_FLIGHT)
        under_way: set[asyncio.Task[None]] = set()
        try:
            async for request in requests:
                if len(request.changes) > limits.CHANGES_IN_FLIGHT:
                    raise limit_exceeded("changes_in_flight", limits.CHANGES_IN_FLIGHT, "one message of a stream")
                for change in request.changes:
                    await room.acquire()
                    # Started in the order of the requests, each hands in its decision before it waits: order stands.
                    task = asyncio.create_task(self._answer(change, answers, room, actor, caller))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            if under_way:
                await asyncio.wait(under_way)
        finally:
            for task in under_way:
                task.cancel()
            answers.put_nowait(None)

    async def _answer(
        self,
        change: control_pb2.StreamedChange,
        answers: _Answers,
        room: asyncio.Semaphore,
        actor: str,
        caller: str,
    ) -> None:
        answer = control_pb2.StreamedAnswer(tag=change.tag)
        try:
            made = await self._one(change, actor, caller)
            answer.change.CopyFrom(codec.change_message(made.record))
            answer.connected_ranks.extend(made.connected_ranks)
        except Exception as error:  # noqa: BLE001 - one answer of many: the boundary is here
            answer.error.CopyFrom(errors.status_of(error))
        finally:
            room.release()
        answers.put_nowait(answer)

    async def _one(self, change: control_pb2.StreamedChange, actor: str, caller: str) -> Made:
        kind = change.WhichOneof("request")
        if kind == "set":
            return await self.set(change.set, actor, caller)
        if kind == "fire":
            return await self.fire(change.fire, actor, caller)
        if kind == "undo":
            return await self.undo(change.undo, actor, caller)
        raise not_one_of(self._scope or "any")
