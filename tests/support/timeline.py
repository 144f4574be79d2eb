"""What is known of a history before the search for an order begins: the timeline of its revisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from support.operations import Floors, Kind, Operation, Outcome, Seen, Value
from support.registers import Revision, State, Step, step_of


class Timeline:
    """The operations on some variables, in parts: what changes and was answered, what was not answered, what is still.

    Args:
        operations: Operations of one job that touch the variables.
        names: The variables.
        initial: All variables of the job, as they were before.

    Attributes:
        initial: The state at the beginning.
        unique: Whether no two changes were answered with one revision.
        unknown: Changes without an answer.
        orphans: Revisions that were seen and that no change was answered with, with what is known of them.
        revisions: All revisions that are known, in order.
        changes: The change of each; None for an orphan.
        still: What was answered and leaves the state as it is, by the time of the call.
        change_ends: For each place of the timeline the first answer from there on.
        still_ends: The same for what is still.
        writers: The unknown by what they write.
        rooted: The unknown that depend on more than what they write: they can't be moved past changes of the rest.
        undoing: The unknown that undo a change.
        undone: The revisions that somebody undoes, or may have undone.
        expected: For each place of the timeline the values that the changes from there on say they replaced.
        held: By variable and revision the highest revision of which a read showed that it was still so.
    """

    def __init__(self, operations: Sequence[Operation], names: Sequence[str], initial: Seen) -> None:
        self.initial: State = tuple((*initial[name], None, 0) for name in names)
        floors = Floors(operations)
        numbers = {name: number for number, name in enumerate(names)}
        steps = [step_of(item, numbers, initial, floors.before(item.call)) for item in operations]
        changes = {item.source.revision: item for item in steps if item.source.is_change and item.end < math.inf}
        self.unique = len(changes) == sum(item.source.is_change and item.end < math.inf for item in steps)
        steps = [_undo_of(step, changes.get(step.source.undoes)) for step in steps]
        self.unknown = [item for item in steps if item.source.is_change and item.end == math.inf]
        self.orphans = _orphans(steps, changes, self.initial)
        self.revisions = sorted([*changes, *self.orphans])
        self.changes = [changes.get(revision) for revision in self.revisions]
        self.still = sorted((item for item in steps if not item.source.is_change and item.end < math.inf), key=_call)
        self.change_ends = _minima([math.inf if item is None else item.end for item in self.changes])
        self.still_ends = _minima([item.end for item in self.still])
        self.writers: dict[tuple[int, Value], list[int]] = {}
        for number, step in enumerate(self.unknown):
            for pair in step.writes:
                self.writers.setdefault(pair, []).append(number)
        self._sets: dict[int, int] = {}
        self.expected = self._expected()
        self.held: dict[tuple[int, Revision], int] = {}
        for step in steps:
            for place, _, revision in step.seen:
                self.held[place, revision] = max(self.held.get((place, revision), 0), step.source.revision)
        self.undone = {step.source.undoes for step in steps if step.source.outcome is not Outcome.REFUSED}
        self.undoing = [number for number, step in enumerate(self.unknown) if step.source.kind is Kind.UNDO]
        self.rooted = [number for number, step in enumerate(self.unknown) if step.touches != step.sets]

    def _expected(self) -> list[Mapping[int, Value]]:
        expected: list[Mapping[int, Value]] = [{}]
        for revision, step in zip(reversed(self.revisions), reversed(self.changes), strict=True):
            sets = self._may_set(revision) if step is None else step.sets
            later = {place: value for place, value in expected[-1].items() if not sets >> place & 1}
            # What an orphan replaced is not known.
            expected.append(later if step is None else {**later, **dict(step.old)})
        return expected[::-1]

    def _may_set(self, orphan: int) -> int:
        """All that the changes without an answer set that may be this one."""
        if orphan not in self._sets:
            facts, bits = self.orphans[orphan].items(), 0
            for step in self.unknown:
                undone = step.source.undoes
                if step.sets:
                    bits |= step.sets if facts <= set(step.writes) else 0
                elif undone in self.orphans and undone < orphan:  # what else is not known can't be undone
                    bits |= self._may_set(undone)
            self._sets[orphan] = bits
        return self._sets[orphan]


def _orphans(steps: list[Step], changes: Mapping[int, Step], initial: State) -> dict[int, dict[int, Value]]:
    """Revisions that were seen and that no change was answered with, with what is known of them."""
    declared = {revision for _, revision, _, _ in initial}
    orphans: dict[int, dict[int, Value]] = {}
    for step in steps:
        for place, value, revision in step.seen:
            if revision not in changes and revision not in declared:
                orphans.setdefault(revision, {})[place] = value
        undoes = step.source.undoes
        if undoes and step.source.outcome is Outcome.DONE and undoes not in changes:
            orphans.setdefault(undoes, {}).update(step.old)
    return orphans


def _undo_of(step: Step, undone: Step | None) -> Step:
    """Returns an undo that was not done, or not answered, with what is known of it by the change that it undoes."""
    if step.source.outcome is Outcome.DONE or undone is None or len(undone.old) != len(undone.writes):
        return step
    if step.source.outcome is Outcome.REFUSED:
        return replace(step, touches=undone.sets)
    return replace(step, touches=undone.sets, sets=undone.sets, writes=undone.old)


def _call(step: Step) -> float:
    return step.call


def _minima(ends: list[float]) -> list[float]:
    """For each place the least value from there to the end, and infinity after it."""
    minima = [math.inf]
    for end in reversed(ends):
        minima.append(min(end, minima[-1]))
    return minima[::-1]
