"""Owns following the log: a watch that survives the daemon's death, and waiting until changes are applied."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltctl.applying import Applying
from ltctl.client import CALL_SECONDS, Client, metadata
from ltctl.exits import CommandError, Exit, ReaderLeftError
from ltctl.text import note

if TYPE_CHECKING:
    from livetune.v1 import control_pb2, types_pb2

_PAUSE_SECONDS = 0.2
_RARELY_SECONDS = 1.0


@dataclass
class Place:
    """Where a watch is, so that it can go on there after a break."""

    job: str
    after_revision: int | None = None
    """None before the first answer, to begin with what comes."""
    store_id: str = ""
    snapshot: bool = False
    """Whether it is to begin with a snapshot."""

    def pass_by(self, response: control_pb2.WatchResponse) -> None:
        """Move past what was received."""
        kind = response.WhichOneof("item")
        # Within a snapshot the place stays what it was: if it is cut off, the next answer must be a snapshot as well.
        if kind == "event":
            self.after_revision, self.store_id = response.event.revision, response.store_id
        elif kind == "bookmark":
            self.after_revision, self.store_id = response.bookmark.revision, response.store_id
            self.snapshot = False


def follow(
    client: Client, place: Place, deadline: float | None = None, *, known: bool = False
) -> Iterator[control_pb2.WatchResponse]:
    """Yield what a watch says from a place on, for ever or until a deadline, over restarts of the daemon.

    Args:
        client: The connection.
        place: Where to begin; moved along.
        deadline: When to end, by the monotonic clock. Without one it waits even for a job that the daemon forgot.
        known: Whether the daemon has answered before. If not, and it does not answer now, that is an error.

    Raises:
        CommandError: The watch is refused; no daemon answers and none is known.
        ReaderLeftError: The client was abandoned.
    """
    told, connected_once = "", known
    while deadline is None or time.monotonic() < deadline:
        why, pause = "the daemon is gone; going on when it is back", _PAUSE_SECONDS
        try:
            for response in _follow_once(client, place, deadline):
                connected_once, told = True, ""
                yield response
        except CommandError as error:
            if client.abandoned:
                raise ReaderLeftError from None
            if error.reason == "WATCH_TOO_SLOW":
                why = ""  # it was us, and nothing is missed
            elif error.reason == "JOB_NOT_FOUND" and connected_once and deadline is None:
                # After its store was replaced the daemon knows no job until its program has found it again.
                why, pause = "the daemon does not know the job any more; going on when it is back", _RARELY_SECONDS
            elif error.code is not Exit.UNREACHABLE or not connected_once:
                raise
            if deadline is not None and time.monotonic() >= deadline:
                return
        if why not in ("", told):
            note(f"ltctl: {why}")
            told = why
        client.close()
        time.sleep(pause)


def _follow_once(client: Client, place: Place, deadline: float | None) -> Iterator[control_pb2.WatchResponse]:
    from livetune.v1 import control_pb2

    request = control_pb2.WatchRequest(
        job=place.job, after_revision=place.after_revision, store_id=place.store_id, snapshot=place.snapshot
    )
    seconds = None if deadline is None else max(0.01, deadline - time.monotonic())
    with client.errors_as_exits():
        responses = client.stub().Watch(request, metadata=metadata(), timeout=seconds)
        try:
            if client.abandoned:
                raise ReaderLeftError
            for response in responses:
                place.pass_by(response)
                yield response
        finally:
            responses.cancel()


def wait_applied(client: Client, job: str, applying: Applying, store_id: str, seconds: float) -> None:
    """Follow a job until every connected rank has acknowledged what is waited for, or the time is up.

    Args:
        client: The connection.
        job: The job's resource name.
        applying: What is waited for; told what became of it.
        store_id: The store that its revisions come from.
        seconds: How long.

    Raises:
        CommandError: The watch is refused; the job ended or was removed before it applied all of it; the daemon's store
            was replaced, so that nobody can know.
    """
    from livetune.v1 import control_pb2

    place = Place(job, min(applying.wanted.values()), store_id)
    state: types_pb2.Job | None = None
    in_snapshot = False
    for response in _while_known(follow(client, place, time.monotonic() + seconds, known=True), applying):
        kind = response.WhichOneof("item")
        if kind == "snapshot_begin":
            if response.snapshot_begin.cause == control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED:
                message = f"{applying.accepted}, but the daemon has another store now: what became of it can't be known"
                raise CommandError(Exit.ERROR, message)
            in_snapshot, state = True, None
        elif kind == "snapshot_job":
            state = response.snapshot_job
        elif kind == "bookmark" and in_snapshot:
            # What we waited for may have come to pass among the events that are not kept any more.
            in_snapshot = False
            kept = [_change(client, job, revision) for revision in sorted(set(applying.wanted.values()))]
            applying.conclude([change for change in kept if change is not None], state)
        elif kind == "event":
            applying.take_event(response.event)
        if applying.done:
            return


def _while_known(
    responses: Iterator[control_pb2.WatchResponse], applying: Applying
) -> Iterator[control_pb2.WatchResponse]:
    try:
        yield from responses
    except CommandError as error:
        if error.reason == "JOB_NOT_FOUND":
            raise applying.too_late("was removed") from error
        raise


def _change(client: Client, job: str, revision: int) -> types_pb2.Change | None:
    from livetune.v1 import control_pb2

    request = control_pb2.ListChangesRequest(
        job=job, page_size=1, before_revision=revision + 1, after_revision=revision - 1
    )
    answer = client.persistently(lambda stub: stub.ListChanges(request, metadata=metadata(), timeout=CALL_SECONDS))
    return next(iter(answer.changes), None)
