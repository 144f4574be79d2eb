"""Is there one order that explains what all clients saw? Wing and Gong's search with Lowe's memo, made for revisions.

A history is linearizable if every operation can be given one moment between its call and its answer so that, one after
the other, they do what they were answered. The model is a register per variable with revision, previous value and the
change it was part of (which an undo needs). Variables that were never touched together are judged apart.

Revisions make the search short. Changes whose revision is known can only follow one another in the order of revisions. A
revision that some client saw and no change was answered with belongs to an operation without an answer. What leaves the
state as it is (reads, refusals) is placed as soon as it fits: later is never better. So the search branches only over
operations without an answer. How many changes that nobody heard of fit between two revisions is not counted.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from support.operations import Kind, Operation, Seen, Value, until
from support.registers import State, Step, after, group_at, lowest, misfit, places, shown, touched
from support.timeline import Timeline

_STATES = 20_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a history is linearizable, and if not, why."""

    ok: bool
    words: str = ""
    decided: bool = True
    """False if the search was given up: `ok` is False then."""


def check(operations: Sequence[Operation], initial: Mapping[str, Seen], *, states: int = _STATES) -> Verdict:
    """Judges a history.

    Args:
        operations: What clients did, in any order. Changes that were done carry the old values they were answered with.
        initial: By job: all its variables with the value and revision that they had before the first call.
        states: How many states to look at, per group of variables and beyond the number of operations, before giving up.

    Returns:
        The verdict; of an illegal history with the shortest part of it, from its beginning, that is illegal already.
    """
    for job, variables in initial.items():
        of_job = [item for item in operations if item.job == job]
        for names in _groups(of_job, variables):
            within = set(names)
            mine = [item for item in of_job if not within.isdisjoint(touched(item, variables))]
            search = _Search(mine, names, variables)
            verdict = search.run(states)
            if not verdict.ok:
                return _shortest(mine, names, variables, states, search, verdict) if verdict.decided else verdict
    return Verdict(True)


def _shortest(
    operations: list[Operation], names: Sequence[str], initial: Seen, states: int, search: _Search, verdict: Verdict
) -> Verdict:
    # A history that begins illegally never becomes legal again, so the end of the shortest can be found by halving. It is
    # near what the search could not get over: most likely the first answer that it could not put in order.
    ends = sorted(item.end for item in operations if item.end < math.inf)
    low, high, step = 0, len(ends) - 1, 1
    place = bisect.bisect_left(ends, search.stuck)
    while low < high:
        place = min(max(place, low), high - 1)
        shorter = _Search(until(operations, ends[place]), names, initial).run(states)
        if shorter.ok or not shorter.decided:
            low = place + 1
            place = (low + high) // 2
        else:
            high, verdict = place, shorter
            place = max(place - step, (low + high) // 2)
            step *= 2
    return verdict


def _groups(operations: list[Operation], variables: Seen) -> list[list[str]]:
    group = {name: [name] for name in variables}
    for operation in operations:
        names = list(touched(operation, variables))
        for name in names[1:]:
            first, second = group[names[0]], group[name]
            if first is not second:
                first += second
                for other in second:
                    group[other] = first
    return list({id(members): members for members in group.values()}.values())


@dataclass(slots=True, eq=False)
class _Frame:
    """A place in the search: what has been put in order, and the state after it."""

    state: State
    changes: int = 0
    """How many changes of the timeline are in order."""
    arrived: int = 0
    """How many of the operations that move nothing, by time of call, were looked at."""
    open: tuple[int, ...] = ()
    """Those of them that do not fit yet."""
    used: int = 0
    """The operations without an answer that are in order, as bits."""
    due: tuple[int, ...] = ()
    """The variables of changes that nobody saw: the next change must depend on each, or it could as well come before."""
    parent: _Frame | None = None
    placed: list[Step] = field(default_factory=list)
    following: Iterator[_Frame] = field(default_factory=lambda: iter(()))

    def key(self) -> tuple[object, ...]:
        return self.state, self.changes, self.arrived, self.open, self.used, self.due


class _Search:
    def __init__(self, operations: Sequence[Operation], names: Sequence[str], initial: Seen) -> None:
        self.names = list(names)
        self.known = Timeline(operations, names, initial)
        self.stuck = math.inf
        """The first answer that it could not put in order."""

    def run(self, states: int) -> Verdict:
        verdict, deepest = self._run(states)
        self.stuck = self._horizon(deepest)
        return verdict

    def _run(self, states: int) -> tuple[Verdict, _Frame]:
        start = _Frame(self.known.initial)
        if not self.known.unique:
            return Verdict(False, "two changes were answered with one revision"), start
        declared = max(lowest(revision) for _, revision, _, _ in self.known.initial)
        if self.known.revisions and self.known.revisions[0] <= declared:
            return Verdict(False, f"revision {self.known.revisions[0]} is older than the beginning's {declared}"), start
        budget = states + len(self.known.changes)
        known: set[tuple[object, ...]] = set()
        stack = [self._settled(start)]
        deepest, depth = stack[0], -1
        while stack:
            frame = stack[-1]
            reached = frame.changes + frame.arrived - len(frame.open)
            if reached > depth:
                deepest, depth = frame, reached
            if reached == len(self.known.changes) + len(self.known.still):
                return Verdict(True), frame
            following = next(frame.following, None)
            if following is None:
                stack.pop()
                continue
            if self._is_dead(following):
                continue
            following = self._settled(following)
            key = following.key()
            if key not in known:
                known.add(key)
                stack.append(following)
                if len(known) > budget:
                    words = f"given up after {budget} states: {self._explain(deepest)}"
                    return Verdict(False, words, decided=False), deepest
        return Verdict(False, self._explain(deepest)), deepest

    def _horizon(self, frame: _Frame) -> float:
        """Until when an operation may have been called to come next: the first answer of what is not in order yet."""
        return min(
            self.known.change_ends[frame.changes],
            self.known.still_ends[frame.arrived],
            min((self.known.still[number].end for number in frame.open), default=math.inf),
        )

    def _settled(self, frame: _Frame) -> _Frame:
        """Puts in order whatever fits and leaves the state as it is, and prepares what may follow."""
        while True:
            horizon = self._horizon(frame)
            waiting = list(frame.open)
            while frame.arrived < len(self.known.still) and self.known.still[frame.arrived].call <= horizon:
                waiting.append(frame.arrived)
                frame.arrived += 1
            following = self._following_revision(frame)
            fitting = [number for number in waiting if not misfit(frame.state, self.known.still[number], following)]
            frame.open = tuple(number for number in waiting if number not in fitting)
            for number in fitting:
                step = self.known.still[number]
                frame.placed.append(step)
                if step.source.kind is not Kind.READ:
                    frame.due = tuple(bits for bits in frame.due if not bits & step.touches)
            if not fitting:
                frame.following = self._following(frame, horizon)
                return frame

    def _following(self, frame: _Frame, horizon: float) -> Iterator[_Frame]:
        """What may come next: the change with the next revision; or a change without an answer that nobody saw."""
        following = self._following_revision(frame)
        if frame.changes < len(self.known.changes):
            step = self.known.changes[frame.changes]
            if step is None:
                yield from self._orphan(frame, horizon, self.known.revisions[frame.changes])
            elif step.call <= horizon and all(bits & step.touches for bits in frame.due):
                state = after(frame.state, step, step.source.revision)
                if state is not None:
                    yield self._next(frame, step, state, changes=1)
        for number in self._ghosts(frame):
            ghost = self.known.unknown[number]
            # Wholly overwritten by another change that nobody saw either, a change would explain nothing.
            hidden = any(not bits & ~ghost.sets for bits in frame.due)
            if ghost.call <= horizon and not frame.used >> number & 1 and not hidden:
                low = self._earliest(frame.state, ghost)
                state = after(frame.state, ghost, (low, following))
                if state is not None and low + 1 < following:
                    due = (*(bits for bits in frame.due if not bits & ghost.touches), ghost.touches)
                    yield self._next(frame, ghost, state, used=1 << number, due=due)

    def _earliest(self, state: State, ghost: Step) -> int:
        """A revision that a change which nobody saw must be higher than.

        It follows what its variables hold. And what it set was until then still as some read showed it.
        """
        sets = ghost.sets or group_at(state, ghost.source.undoes) or 0
        return max(
            ghost.floor,
            *(lowest(state[place][1]) for place in places(ghost.touches)),
            *(self.known.held.get((place, state[place][1]), 0) for place in places(sets)),
        )

    def _is_dead(self, frame: _Frame) -> bool:
        """Whether a change to come says that it replaced what is not there, and that nothing can bring there any more."""
        expected = self.known.expected[frame.changes]
        step = self.known.changes[frame.changes] if expected else None
        soon = 0 if step is None else step.sets
        for place, value in expected.items():
            cell = frame.state[place]
            if cell[0] == value or any(
                not frame.used >> number & 1 and cell[1:3] == (self.known.unknown[number].source.undoes, value)
                for number in self.known.undoing
            ):
                continue
            writers = self._unused(frame, place, value)
            if soon >> place & 1:  # they must come now, and what else they set must not be in the way either
                writers = [number for number in writers if self._may_come(frame, number, expected)]
            if not writers:
                return True
        return False

    def _unused(self, frame: _Frame, place: int, value: Value) -> list[int]:
        return [number for number in self.known.writers.get((place, value), ()) if not frame.used >> number & 1]

    def _may_come(self, frame: _Frame, number: int, expected: Mapping[int, Value]) -> bool:
        return all(
            expected.get(place, value) == value or set(self._unused(frame, place, expected[place])) - {number}
            for place, value in self.known.unknown[number].writes
        )

    def _ghosts(self, frame: _Frame) -> Iterator[int]:
        """The changes without an answer and seen by nobody that may matter here; elsewhere they may as well be left out.

        One matters to the next change if that one replaced its value, or nobody knows what that one replaced; to a
        refusal that does not fit yet; or to another one that matters, which hides a part of it.
        """
        step = self.known.changes[frame.changes] if frame.changes < len(self.known.changes) else None
        matters = set(self.known.rooted)
        if step is not None:
            matters.update(number for pair in step.old for number in self.known.writers.get(pair, ()))
        elif frame.changes < len(self.known.changes):
            matters.update(range(len(self.known.unknown)))
        for number in frame.open:
            still = self.known.still[number]
            if still.source.kind is not Kind.READ:
                matters.update(other for other, ghost in enumerate(self.known.unknown) if ghost.touches & still.touches)
        yield from sorted(matters)
        others = [number for number in range(len(self.known.unknown)) if number not in matters]
        more = sorted(matters)
        while more:
            bits = 0
            for number in more:
                bits |= self.known.unknown[number].touches
            more = [number for number in others if self.known.unknown[number].touches & bits]
            others = [number for number in others if number not in more]
            yield from more

    def _following_revision(self, frame: _Frame) -> float:
        return self.known.revisions[frame.changes] if frame.changes < len(self.known.revisions) else math.inf

    def _orphan(self, frame: _Frame, horizon: float, revision: int) -> Iterator[_Frame]:
        """The changes without an answer that may be the one with this revision, which somebody saw."""
        facts = self.known.orphans[revision].items()
        for number, step in enumerate(self.known.unknown):
            if step.call > horizon or frame.used >> number & 1:
                continue
            # What it wholly overwrites explains nothing, unless an undo brings it back.
            hides = 0 if revision in self.known.undone else step.sets
            if not all(bits & step.touches and bits & ~hides for bits in frame.due):
                continue
            state = after(frame.state, step, revision)
            if state is not None and all(state[place][:2] == (value, revision) for place, value in facts):
                yield self._next(frame, step, state, changes=1, used=1 << number)

    def _next(
        self, frame: _Frame, step: Step, state: State, *, changes: int = 0, used: int = 0, due: tuple[int, ...] = ()
    ) -> _Frame:
        return _Frame(
            state, frame.changes + changes, frame.arrived, frame.open, frame.used | used, due, frame, [step]
        )  # fmt: skip

    def _explain(self, frame: _Frame) -> str:
        order: list[Step] = []
        above: _Frame | None = frame
        while above is not None:
            order += reversed(above.placed)
            above = above.parent
        order.reverse()
        lines = [f"no order explains this: {len(order)} operations fit, then none does"]
        lines += [f"  ... {len(order) - 8} before"] if len(order) > 8 else []
        lines += [f"  {step.source}" for step in order[-8:]]
        cells = zip(self.names, frame.state, strict=True)
        lines.append("  now " + " ".join(f"{name}={cell[0]}@{shown(cell[1])}" for name, cell in cells))
        horizon = self._horizon(frame)
        following = self._following_revision(frame)
        for number in frame.open:
            why = misfit(frame.state, self.known.still[number], following)
            lines.append(f"  can't follow: {self.known.still[number].source} ({why})")
        if frame.changes < len(self.known.changes):
            step, revision = self.known.changes[frame.changes], self.known.revisions[frame.changes]
            if step is None:
                facts = " ".join(
                    f"{self.names[place]}={value}" for place, value in self.known.orphans[revision].items()
                )
                lines.append(f"  can't follow: revision {revision} ({facts}), which no client's call explains")
            else:
                why = "something else was answered before it was called" if step.call > horizon else "not in this state"
                lines.append(f"  can't follow: {step.source} ({why})")
        return "\n".join(lines)
