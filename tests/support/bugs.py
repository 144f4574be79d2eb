"""A daemon with one planted bug, named by LIVETUNE_PLANTED: the controls of the checkers.

Each bug is a small patch of a public function or method, so that it outlives changes of what is inside.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from random import Random
from typing import Any, TypeAlias

from livetune.v1 import control_pb2
from livetuned.daemon.cli import main
from livetuned.domain import decide
from livetuned.domain.job import Job
from livetuned.domain.records import Changed, Draft, Record
from livetuned.service.hub import Cursor, Hub
from livetuned.store.sqlite import SqliteStore
from livetuned.transport.control import ControlService

_random = Random(os.environ.get("LIVETUNE_SEED", "0"))
_Set: TypeAlias = Callable[[ControlService, control_pb2.SetVariablesRequest, Any], Any]
_Watch: TypeAlias = Callable[[AsyncIterator[control_pb2.WatchResponse]], AsyncIterator[control_pb2.WatchResponse]]


def _strikes(probability: float) -> bool:
    return _random.random() < probability


def _patched_set(patched: _Set) -> None:
    ControlService.SetVariables = patched  # type: ignore[method-assign, assignment]


_set_variables = ControlService.SetVariables
_decide = decide.set_variables


def lost_update() -> None:
    """Now and then a change is decided on the job as it was before the last change."""
    seen: dict[str, list[Job]] = {}

    def decided(job: Job, *arguments: Any, **options: Any) -> Changed:
        before = seen.setdefault(job.name, [])
        if not before or before[-1] is not job:
            before.append(job)
        stale = before[-2] if len(before) > 1 and _strikes(0.1) else job
        return _decide(stale, *arguments, **options)

    decide.set_variables = decided


def stale_read() -> None:
    """Now and then a read is answered with what an earlier one was."""
    get_job, shown = ControlService.GetJob, dict[str, control_pb2.GetJobResponse]()

    async def read(
        self: ControlService, request: control_pb2.GetJobRequest, context: Any
    ) -> control_pb2.GetJobResponse:
        if request.name in shown and _strikes(0.1):
            return shown[request.name]
        shown[request.name] = await get_job(self, request, context)
        return shown[request.name]

    ControlService.GetJob = read  # type: ignore[method-assign]


def acknowledged_then_lost() -> None:
    """A change is answered before it is committed."""
    import ack_before_commit

    ack_before_commit.plant()


def duplicate_revision() -> None:
    """Now and then a change is answered with the revision of the one before."""
    last = [0]

    async def changed(self: ControlService, request: control_pb2.SetVariablesRequest, context: Any) -> Any:
        answer = await _set_variables(self, request, context)
        if last[0] and _strikes(0.06):
            answer.change.revision = last[0]
        last[0] = answer.change.revision
        return answer

    _patched_set(changed)


def ignored_guard() -> None:
    """Compare-and-set does not compare."""

    def decided(job: Job, *arguments: Any, **options: Any) -> Changed:
        return _decide(job, *arguments, **{**options, "if_revision": None})

    decide.set_variables = decided


def half_applied() -> None:
    """Of a change of several variables only the first is made, although the answer names all."""

    def decided(job: Job, updates: Sequence[decide.Update], **options: Any) -> Changed:
        return _decide(job, updates[:1], **options)

    async def changed(self: ControlService, request: control_pb2.SetVariablesRequest, context: Any) -> Any:
        answer = await _set_variables(self, request, context)
        for update in request.updates[len(answer.change.assignments) :]:
            answer.change.assignments.add(variable_id=update.variable_id, new_value=update.value)
        return answer

    decide.set_variables = decided
    _patched_set(changed)


def reordered_revisions() -> None:
    """Changes that are committed together get their revisions in another order than they were decided in."""
    append = SqliteStore.append

    async def reordered(self: SqliteStore, drafts: Sequence[Draft]) -> list[Record]:
        if not all(isinstance(draft.payload, Changed) for draft in drafts):
            return await append(self, drafts)
        return (await append(self, drafts[::-1]))[::-1]

    SqliteStore.append = reordered  # type: ignore[method-assign]


class _Gone:
    """Stands for the context of a call that has ended: gRPC's own must not be asked any more."""

    def __init__(self, context: Any) -> None:
        self._metadata, self._peer = context.invocation_metadata(), context.peer()

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> Any:
        return self._peer


def applied_twice() -> None:
    """A change whose caller did not wait for the answer is made, and made again a little later."""
    tasks = set[asyncio.Task[None]]()

    async def changed(self: ControlService, request: control_pb2.SetVariablesRequest, context: Any) -> Any:
        gone = _Gone(context)

        async def twice() -> None:
            for _ in range(2):
                await _set_variables(self, request, gone)  # type: ignore[arg-type]
                await asyncio.sleep(0.03)

        try:
            if _strikes(0.2):
                await asyncio.sleep(0.02)
            return await _set_variables(self, request, context)
        except asyncio.CancelledError:
            tasks.add(asyncio.create_task(twice()))
            raise

    _patched_set(changed)


def resumed_off_by_one() -> None:
    """A watch begins one revision too late."""
    cursor = Hub.cursor

    def late(self: Hub, after: int, *arguments: Any, **options: Any) -> Cursor:
        return cursor(self, after + 1, *arguments, **options)

    Hub.cursor = late  # type: ignore[method-assign]


def _patched_watch(spoil: _Watch) -> None:
    watch = ControlService.Watch

    async def watched(self: ControlService, request: Any, context: Any) -> AsyncIterator[Any]:
        async def read() -> AsyncIterator[control_pb2.WatchResponse]:
            async for response in watch(self, request, context):
                whole = control_pb2.WatchResponse.FromString(response) if isinstance(response, bytes) else response
                yield whole

        async for response in spoil(read()):
            yield response

    ControlService.Watch = watched  # type: ignore[method-assign]


def _spoiled_events(
    probability: float, spoil: Callable[[control_pb2.WatchResponse], Iterable[control_pb2.WatchResponse]]
) -> None:
    async def spoiled(responses: AsyncIterator[control_pb2.WatchResponse]) -> AsyncIterator[control_pb2.WatchResponse]:
        async for response in responses:
            if response.HasField("event") and _strikes(probability):
                for other in spoil(response):
                    yield other
            else:
                yield response

    _patched_watch(spoiled)


def dropped_event() -> None:
    """Now and then an event is not delivered."""
    _spoiled_events(0.02, lambda response: [])


def repeated_event() -> None:
    """Now and then an event is delivered twice."""
    _spoiled_events(0.02, lambda response: [response, response])


def early_bookmark() -> None:
    """Now and then a bookmark comes before an event that it covers."""

    def spoil(response: control_pb2.WatchResponse) -> list[control_pb2.WatchResponse]:
        bookmark = control_pb2.Bookmark(revision=response.event.revision)
        return [control_pb2.WatchResponse(store_id=response.store_id, bookmark=bookmark), response]

    _spoiled_events(0.02, spoil)


def split_transaction() -> None:
    """Of a change of several variables comes only the first, then the stream ends: who resumes never sees the rest."""

    async def spoiled(responses: AsyncIterator[control_pb2.WatchResponse]) -> AsyncIterator[control_pb2.WatchResponse]:
        async for response in responses:
            if len(response.event.change.assignments) > 1 and _strikes(0.1):
                del response.event.change.assignments[1:]
                yield response
                return
            yield response

    _patched_watch(spoiled)


def wrong_order() -> None:
    """Now and then an event comes after the one that follows it."""

    async def spoiled(responses: AsyncIterator[control_pb2.WatchResponse]) -> AsyncIterator[control_pb2.WatchResponse]:
        held: control_pb2.WatchResponse | None = None
        async for response in responses:
            if response.HasField("event") and held is None and _strikes(0.05):
                held = response
                continue
            yield response
            if held is not None:
                yield held
                held = None

    _patched_watch(spoiled)


BUGS = {
    bug.__name__: bug
    for bug in (
        lost_update, stale_read, acknowledged_then_lost, duplicate_revision, ignored_guard, half_applied,
        reordered_revisions, applied_twice,
        resumed_off_by_one, dropped_event, repeated_event, early_bookmark, split_transaction, wrong_order,
    )
}  # fmt: skip

if __name__ == "__main__":
    BUGS[os.environ["LIVETUNE_PLANTED"]]()
    main(prog_name="livetuned")
