"""What concurrent clients did and what they were told: the history that the checkers judge."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

Value: TypeAlias = "float | int | bool | str"
Seen: TypeAlias = "Mapping[str, tuple[Value, int]]"
"""Values by name of the variable, each with the revision of the record that set it."""


class Kind(Enum):
    """What a client asked for."""

    SET = "set"
    UNDO = "undo"
    READ = "read"


class Outcome(Enum):
    """What a client was told."""

    DONE = "done"
    REFUSED = "refused"
    """A condition did not hold, so nothing happened."""
    UNKNOWN = "unknown"
    """No answer: it happened once, at any time after the call, or not at all."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client. Times are in seconds of one monotonic clock that all clients share."""

    client: int
    kind: Kind
    job: str
    call: float
    end: float = math.inf
    """When it was answered; infinite for an operation without an answer."""
    outcome: Outcome = Outcome.UNKNOWN
    values: Mapping[str, Value] = field(default_factory=dict)
    """SET: what was asked for. UNDO that was done: what was restored."""
    guards: Mapping[str, int] = field(default_factory=dict)
    """SET: only if the variable was not changed after the revision."""
    if_job_revision: int | None = None
    """SET: only if no variable of the job was changed after the revision."""
    undoes: int = 0
    """UNDO: revision of the change to undo: one that the client was answered with or has read."""
    revision: int = 0
    """DONE: the change's revision; of a READ the store's revision that it shows, 0 if it tells none."""
    old: Mapping[str, Value] = field(default_factory=dict)
    """A change that was done: the values that it says it replaced."""
    seen: Seen = field(default_factory=dict)
    """READ: what it showed."""
    tag: str = ""
    """The client's own name for the operation, which the change carries in the store's history."""

    @property
    def is_change(self) -> bool:
        """Whether it may move the state."""
        return self.kind is not Kind.READ and self.outcome is not Outcome.REFUSED

    def __str__(self) -> str:
        if self.kind is Kind.READ:
            asked = f"read of {self.job}"
        elif self.kind is Kind.UNDO:
            asked = f"undo of {self.undoes} in {self.job}"
        else:
            asked = f"set {self.job} " + " ".join(f"{name}={value}" for name, value in self.values.items())
        asked += "".join(f" if {name}<={guard}" for name, guard in self.guards.items())
        if self.if_job_revision is not None:
            asked += f" if job<={self.if_job_revision}"
        if self.outcome is Outcome.UNKNOWN:
            told = "no answer"
        elif self.outcome is Outcome.REFUSED:
            told = "refused"
        elif self.kind is Kind.READ:
            told = f"revision {self.revision}: " + " ".join(
                f"{name}={value}@{revision}" for name, (value, revision) in self.seen.items()
            )
        else:
            told = f"revision {self.revision}"
            if self.old:
                told += ", was " + " ".join(f"{name}={value}" for name, value in self.old.items())
        return f"client {self.client} [{self.call:.6f} .. {self.end:.6f}] {asked} -> {told}"


def until(operations: Sequence[Operation], time: float) -> list[Operation]:
    """Returns the history as it was known at a time: what was not answered by then is unknown."""
    return [
        item
        if item.end <= time
        else replace(
            item, end=math.inf, outcome=Outcome.UNKNOWN, revision=0, old={}, seen={},
            values=item.values if item.kind is Kind.SET else {},
        )
        for item in operations
        if item.call <= time
    ]  # fmt: skip


class Floors:
    """The highest revision that was answered before a time.

    Args:
        operations: The history.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        done = sorted((item.end, item.revision) for item in operations if item.end < math.inf)
        self._ends = [end for end, _ in done]
        self._highest = list(itertools.accumulate((revision for _, revision in done), max, initial=0))

    def before(self, time: float) -> int:
        """Returns it, 0 for none."""
        return self._highest[bisect.bisect_left(self._ends, time)]


def check_revisions(operations: Iterable[Operation]) -> list[str]:
    """Checks that each revision is one change, everywhere the same, and that revisions agree with real time.

    Over all jobs: a store has one order. An operation that was answered before another one was called has the lower
    revision; what a read shows is not older than what was answered before it, nor newer than what was called after it.

    Returns:
        The violations, in words.
    """
    history = list(operations)
    return [*_check_unique(history), *_check_same(history), *_check_real_time(history)]


def _check_unique(operations: list[Operation]) -> list[str]:
    by_revision: dict[int, Operation] = {}
    wrong = []
    for item in operations:
        if item.is_change and item.outcome is Outcome.DONE:
            other = by_revision.setdefault(item.revision, item)
            if other is not item:
                wrong.append(f"revision {item.revision} was given to two changes: {other}; {item}")
    return wrong


def _check_same(operations: list[Operation]) -> list[str]:
    changes = {
        item.revision: item for item in operations if item.is_change and item.outcome is Outcome.DONE
    }  # fmt: skip
    known: dict[tuple[int, str], tuple[Value, Operation]] = {}
    wrong = []
    for item in operations:
        if item.outcome is not Outcome.DONE:
            continue
        if item.is_change:
            facts = [(item.revision, name, value) for name, value in item.values.items()]
        else:
            facts = [(revision, name, value) for name, (value, revision) in item.seen.items()]
        for revision, name, value in facts:
            change = changes.get(revision)
            if change is not None and (change.job != item.job or name not in change.values):
                wrong.append(f"revision {revision} did not set {name} of {item.job}: {change}; but {item}")
                continue
            # Two jobs never share a revision, but each job's declaration counts for all its variables.
            before, by = known.setdefault((revision, f"{item.job}/{name}"), (value, item))
            if before != value:
                wrong.append(f"{name}@{revision} was {before} and is {value}: {by}; {item}")
    return wrong


def _check_real_time(operations: list[Operation]) -> list[str]:
    wrong = []
    done = [item for item in operations if item.outcome is Outcome.DONE and item.revision]
    by_end = sorted(done, key=lambda item: item.end)
    ends = [item.end for item in by_end]
    newest: list[Operation] = []
    for item in by_end:
        newest.append(item if not newest or item.revision > newest[-1].revision else newest[-1])
    for item in done:
        place = bisect.bisect_left(ends, item.call)
        if place == 0:
            continue
        before = newest[place - 1]
        if item.revision < before.revision or (item.is_change and item.revision == before.revision):
            wrong.append(
                f"revision {item.revision} came after revision {before.revision} had been answered: {before}; {item}"
            )
    return wrong
