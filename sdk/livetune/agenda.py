"""Owns the changes that wait: what one of them is made of, and those of them that wait for their step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from livetune import messages as m
from livetune.specs import Scalar

__all__ = ["Agenda", "Waiting"]


@dataclass
class Waiting:
    """A change that waits for the safe point."""

    assignments: dict[str, Scalar | None] = field(default_factory=dict)
    firings: list[str] = field(default_factory=list)
    reason: str = ""
    actor: str = ""
    report: bool = True
    """False for a value taken over that no change had set: there is nothing to acknowledge."""
    from_answer: bool = False
    """A part of it came as the answer to a declaration; other parts may come with the answers still to come."""
    step: int = 0
    """It waits for the first safe point that is not before this step; 0 for the next one."""
    scheduled: bool = False
    """The daemon has not made a change of it yet: it knows it by the revision at which it was scheduled."""
    strange: bool = False
    """It comes from a checkpoint, of another run: the daemon does not know it."""

    @classmethod
    def of(cls, change: m.ScheduledChange, *, strange: bool = False) -> Waiting:
        """Make one of a change that waits for its step."""
        return cls(
            assignments=dict(change.assignments),
            firings=list(change.firings),
            reason=change.reason,
            actor=change.actor,
            step=change.step,
            scheduled=True,
            strange=strange,
        )

    def as_message(self, revision: int) -> m.ScheduledChange:
        """Return it as it is kept in a checkpoint."""
        return m.ScheduledChange(
            revision, self.step, tuple(self.assignments.items()), tuple(self.firings), self.reason, self.actor
        )


class Agenda:
    """The changes that wait for their step, by the revisions at which they were scheduled. Sans IO.

    One of them leaves when its step has come, when it is cancelled, or when the daemon has made a change of it because
    another rank was there first. From its step on, until the daemon says which revision the change has got, it is
    *unsettled*: only the daemon knows what comes before it and what after.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Waiting] = {}
        self._ahead: dict[int, int] = {}
        """Steps of those that a checkpoint of this run has still waiting, and the daemon has not."""
        self._unsettled: set[int] = set()
        self._place: tuple[str, int] | None = None
        """Store and run that the revisions belong to."""
        self._registered = False
        self._open = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[m.ScheduledChange]:
        return (waiting.as_message(revision) for revision, waiting in self._entries.items())

    def steps(self) -> list[int]:
        """Return the steps that they wait for."""
        return [waiting.step for waiting in self._entries.values()]

    @property
    def unsettled(self) -> bool:
        """Whether the order of what comes from the daemon is in doubt for a moment. Without a daemon nothing comes."""
        return self._open and bool(self._unsettled)

    def is_unsettled(self, revision: int) -> bool:
        """Whether the daemon has not told yet which revision the change has got."""
        return revision in self._unsettled

    def due(self, step: int) -> list[tuple[int, Waiting]]:
        """Return those whose step has come. One that the daemon is just being told of is not among them."""
        return [
            (revision, waiting)
            for revision, waiting in sorted(self._entries.items())
            if waiting.step <= step and not (waiting.strange and self._open)
        ]

    def done(self, revision: int) -> None:
        """One of them takes effect: the daemon will make a change of it, if it knows it."""
        if not self._entries.pop(revision).strange:
            self._unsettled.add(revision)

    def settled(self, revision: int) -> bool:
        """The daemon has told the revision of a change. Says whether this process had done it."""
        if revision in self._unsettled:
            self._unsettled.remove(revision)
            return True
        return False

    def put(self, received: m.ScheduledReceived) -> None:
        """Take one that the daemon sent, or sent again."""
        revision = received.change.revision
        self._entries.pop(received.restores, None)
        if revision not in self._unsettled:
            self._entries[revision] = Waiting.of(received.change)

    def take(self, revision: int) -> int:
        """The daemon made a change of it before its step came here, or cancelled it; returns that step, 0 for none."""
        waiting = self._entries.pop(revision, None)
        return self.ahead(revision) if waiting is None else waiting.step

    def ahead(self, revision: int) -> int:
        """Return the step at which a checkpoint has one of them, although the daemon has made it; 0 for none."""
        return self._ahead.get(revision, 0)

    def restore(self, changes: tuple[m.ScheduledChange, ...], store_id: str, run: int) -> list[m.ScheduledChange]:
        """Take over what a checkpoint of a run has.

        Returns:
            What the daemon must be told of.
        """
        if not self._registered:
            self._place = store_id, run
        strange = self._place != (store_id, run)
        if self._open and not strange:
            self._ahead.update((change.revision, change.step) for change in changes)
            return []
        self._entries.update((change.revision, Waiting.of(change, strange=strange)) for change in changes)
        return list(changes) if self._open else []

    def registered(self, store_id: str, run: int) -> bool:
        """The daemon says where the process is. Says whether changes are forgotten, with a store that was replaced."""
        before, self._place = self._place, (store_id, run)
        first, self._registered = not self._registered, True
        if before in (None, self._place):
            return False
        self._unsettled.clear()
        self._ahead.clear()
        if first:
            for waiting in self._entries.values():
                waiting.strange = True
            return False
        known = [revision for revision, waiting in self._entries.items() if not waiting.strange]
        for revision in known:
            del self._entries[revision]
        return bool(known)

    def opened(self, revisions: tuple[int, ...]) -> list[m.ScheduledChange]:
        """The daemon says what waits in this run.

        Returns:
            What it must be told of.
        """
        self._open = True
        for revision, waiting in list(self._entries.items()):
            if revision not in revisions and not waiting.strange:
                self._ahead[revision] = waiting.step
                del self._entries[revision]
        return [waiting.as_message(revision) for revision, waiting in self._entries.items() if waiting.strange]

    def closed(self) -> None:
        """The daemon has gone."""
        self._open = False
