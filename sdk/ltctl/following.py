"""Owns following the log: a watch that survives the daemon's death, and waiting until a change is applied."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ltctl.client import Client, metadata
from ltctl.exits import CommandError, Exit
from ltctl.text import note

if TYPE_CHECKING:
    from livetune.v1 import control_pb2, types_pb2

_PAUSE_SECONDS = 0.2


@dataclass
class Place:
    """Where a watch is, so that it can go on there after a break."""

    job: str
    after_revision: int | None = None
    """None before the first answer, to begin with what comes."""
    store_id: str = ""


def follow(
    client: Client, place: Place, deadline: float | None = None, *, known: bool = False
) -> Iterator[control_pb2.Event]:
    """Yield events from a place on, for ever or until a deadline (monotonic), over restarts of the daemon.

    Args:
        client: The connection.
        place: Where to begin; moved along.
        deadline: When to end, by the monotonic clock.
        known: Whether the daemon has answered before. If not, and it does not answer now, that is an error.

    Raises:
        CommandError: The watch is refused; the daemon's store was replaced; no daemon answers and none is known.
    """
    told, connected_once = False, known
    while deadline is None or time.monotonic() < deadline:
        try:
            for event in _follow_once(client, place, deadline):
                connected_once, told = True, False
                if event is not None:
                    yield event
        except CommandError as error:
            if error.code is not Exit.UNREACHABLE or not connected_once:
                raise
            if deadline is not None and time.monotonic() >= deadline:
                return
        if not told:
            note("ltctl: the daemon is gone; going on when it is back")
            told = True
        client.close()
        time.sleep(_PAUSE_SECONDS)


def _follow_once(client: Client, place: Place, deadline: float | None) -> Iterator[control_pb2.Event | None]:
    from livetune.v1 import control_pb2

    request = control_pb2.WatchRequest(job=place.job, after_revision=place.after_revision, store_id=place.store_id)
    seconds = None if deadline is None else max(0.01, deadline - time.monotonic())
    with client.errors_as_exits():
        responses = client.stub().Watch(request, metadata=metadata(), timeout=seconds)
        try:
            for response in responses:
                place.store_id = response.store_id
                if response.WhichOneof("item") == "bookmark":
                    place.after_revision = response.bookmark.revision
                    yield None  # connected
                elif response.WhichOneof("item") == "event":
                    place.after_revision = response.event.revision
                    yield response.event
        finally:
            responses.cancel()


@dataclass
class Applying:
    """What became of a change so far: for each name, by rank, the step and the outcome."""

    names: Sequence[str]
    ranks: Sequence[int]
    """The ranks that were connected when it was committed; empty if the job was away."""
    steps: dict[str, dict[int, int]] = field(default_factory=dict)
    outcomes: dict[str, dict[int, types_pb2.Outcome]] = field(default_factory=dict)

    def take(self, apply: types_pb2.Apply) -> None:
        """Note an acknowledgement."""
        for outcome in apply.outcomes:
            name = outcome.variable_id or outcome.trigger_id
            self.steps.setdefault(name, {})[apply.rank] = apply.step
            self.outcomes.setdefault(name, {})[apply.rank] = outcome

    def complete(self, name: str) -> bool:
        """Say whether every rank that is waited for has answered for a name; any rank, if the job was away."""
        answered = self.outcomes.get(name, {})
        return all(rank in answered for rank in self.ranks) if self.ranks else bool(answered)

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for."""
        return all(self.complete(name) for name in self.names)


def wait_applied(
    client: Client, change: types_pb2.Change, store_id: str, ranks: Sequence[int], names: Sequence[str], seconds: float
) -> Applying:
    """Follow a change until every connected rank has acknowledged it, or the time is up.

    Raises:
        CommandError: The watch is refused, or the job ended before it applied the change.
    """
    applying = Applying(names, ranks)
    place = Place(change.job, change.revision, store_id)
    for event in follow(client, place, time.monotonic() + seconds, known=True):
        kind = event.WhichOneof("kind")
        if kind == "apply" and event.apply.change_revision == change.revision:
            applying.take(event.apply)
            if applying.done:
                break
        elif kind == "ended":
            raise CommandError(
                Exit.NOT_APPLIED, f"accepted as revision {change.revision}, but the job ended before it applied it"
            )
    return applying
