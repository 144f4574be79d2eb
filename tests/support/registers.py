"""The model of the linearizability checker: registers with revisions, and what each operation does to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from support.operations import Kind, Operation, Seen, Value

Revision: TypeAlias = "int | tuple[int, float]"
"""Known, or known to lie strictly between two."""
Cell: TypeAlias = "tuple[Value | None, Revision, Value | None, int]"
"""Value, revision, the value before, and the set of variables (as bits) that its change set: 0 for a declaration."""
State: TypeAlias = "tuple[Cell, ...]"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An operation, its names turned into places of the state."""

    source: Operation
    call: float
    end: float
    touches: int
    """The variables it depends on, as bits."""
    sets: int
    """The variables it sets, as bits; 0 for an undo without an answer."""
    floor: int
    """The highest revision that was answered before it was called."""
    writes: tuple[tuple[int, Value], ...]
    old: tuple[tuple[int, Value], ...]
    seen: tuple[tuple[int, Value, int], ...]
    guards: tuple[tuple[int, int], ...]


def touched(operation: Operation, variables: Seen) -> Iterable[str]:
    """Returns the names of the variables that it depends on: all of its job where that can't be told."""
    if operation.kind is Kind.READ:
        return operation.seen
    if operation.if_job_revision is not None or not operation.values:
        return variables
    return operation.values


def step_of(operation: Operation, place: Mapping[str, int], variables: Seen, floor: int) -> Step:
    """Turns an operation into a step.

    Args:
        operation: The operation.
        place: The places of the variables that are judged together.
        variables: All variables of its job.
        floor: The highest revision that was answered before it was called.
    """
    return Step(
        operation,
        operation.call,
        operation.end,
        sum(1 << place[name] for name in touched(operation, variables) if name in place),
        sum(1 << place[name] for name in operation.values),
        floor,
        tuple((place[name], value) for name, value in operation.values.items()),
        tuple((place[name], value) for name, value in operation.old.items()),
        tuple((place[name], value, revision) for name, (value, revision) in operation.seen.items()),
        tuple((place[name], guard) for name, guard in operation.guards.items()),
    )


def after(state: State, step: Step, revision: Revision) -> State | None:
    """Returns the state after a change, None if it would not do there what it was answered."""
    source = step.source
    if source.kind is Kind.UNDO:
        group = group_at(state, source.undoes)
        if group is None:
            return None
        writes: tuple[tuple[int, Value | None], ...] = tuple((place, state[place][2]) for place in places(group))
        if step.writes and sorted(step.writes) != sorted(writes):
            return None
    else:
        writes = step.writes
        if any(not _may_be_at_most(state[place][1], guard) for place, guard in step.guards):
            return None
        limit = source.if_job_revision
        if limit is not None and any(not _may_be_at_most(cell[1], limit) for cell in state):
            return None
    if any(state[place][0] != value for place, value in step.old):
        return None
    cells = list(state)
    bits = sum(1 << place for place, _ in writes)
    for place, new in writes:
        cells[place] = (new, revision, state[place][0], bits)
    return tuple(cells)


def misfit(state: State, step: Step, following: float) -> str:
    """Returns why a read, or a refusal, does not fit a state; ``""`` if it does.

    Args:
        state: The state.
        step: The read, or what was refused.
        following: The revision of the next change to come, infinite if there is none.
    """
    source = step.source
    if source.kind is Kind.READ:
        for place, value, revision in step.seen:
            cell = state[place]
            if cell[0] != value or cell[1] != revision:
                return f"{cell[0]}@{shown(cell[1])} is where it saw {value}@{revision}"
        if source.revision and following <= source.revision:
            return f"revision {following} is not in it"
        if source.revision and any(_is_above(cell[1], source.revision) for cell in state):
            return f"it shows what came after revision {source.revision}"
        return ""
    if source.kind is Kind.UNDO:
        return "" if group_at(state, source.undoes) is None else "nothing was changed since"
    limit = source.if_job_revision
    if limit is not None and any(_may_be_above(cell[1], limit) for cell in state):
        return ""
    if any(_may_be_above(state[place][1], guard) for place, guard in step.guards):
        return ""
    return "its condition holds"


def places(bits: int) -> Iterator[int]:
    """Yields the places that a set of bits holds."""
    return (place for place in range(bits.bit_length()) if bits >> place & 1)


def group_at(state: State, revision: int) -> int | None:
    """Returns the variables that the change of a revision set, None if one of them was changed since."""
    group = next((cell[3] for cell in state if cell[1] == revision), 0)
    return group if group and all(state[place][1] == revision for place in places(group)) else None


def lowest(revision: Revision) -> int:
    """Returns the revision, or what it is surely higher than."""
    return revision if isinstance(revision, int) else revision[0]


def shown(revision: Revision) -> str:
    """Returns the revision as a person reads it."""
    return str(revision) if isinstance(revision, int) else f"({revision[0]}..{revision[1]})"


def _may_be_at_most(revision: Revision, limit: int) -> bool:
    return revision <= limit if isinstance(revision, int) else revision[0] + 1 <= limit


def _may_be_above(revision: Revision, limit: int) -> bool:
    return revision > limit if isinstance(revision, int) else revision[1] - 1 > limit


def _is_above(revision: Revision, limit: int) -> bool:
    return revision > limit if isinstance(revision, int) else revision[0] >= limit
