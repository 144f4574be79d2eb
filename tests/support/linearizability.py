"""Is there one order that explains what all clients saw? Wing and Gong's search with Lowe's memo, made for revisions.

A history is linearizable if every operation can be given one moment between its call and its answer so that, one after
the other, they do what they were answered. The model is a register per variable with revision, previous value and the
change it was part of (which an undo needs). Variables that were never touched together are judged apart.

Revisions make the search short. Changes whose revision is known can only follow one another in the order of revisions. A
revision that some client saw and no change was answered with belongs to an operation without an answer. What leaves the
state as it is (reads, refusals) is placed as soon as it fits: later is never better. So the search branches only over
operations without an answer.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from support.operations import Floors, Kind, Operation, Outcome, Seen, Value, until
from support.registers import State, Step, after, lowest, misfit, places, shown, step_of, touched

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
        self.initial: State = tuple((*initial[name], None, 0) for name in names)
        floors = Floors(operations)
        place = {name: number for number, name in enumerate(names)}
        steps = [step_of(item, place, initial, floors.before(item.call)) for item in operations]
        changes = {item.source.revision: item for item in steps if item.source.is_change and item.end < math.inf}
        self.unique = len(changes) == sum(item.source.is_change and item.end < math.inf for item in steps)
        self.unknown = [item for item in steps if item.source.is_change and item.end == math.inf]
        self.orphans = self._orphans(steps, changes)
        self.timeline = sorted([*changes, *self.orphans])
        self.changes = [changes.get(revision) for revision in self.timeline]
        self.still = sorted((item for item in steps if not item.source.is_change and item.end < math.inf), key=_call)
        self.change_ends = _minima([math.inf if item is None else item.end for item in self.changes])
        self.still_ends = _minima([item.end for item in self.still])
        self.writers: dict[tuple[int, Value], list[int]] = {}
        for number, step in enumerate(self.unknown):
            for pair in step.writes:
                self.writers.setdefault(pair, []).append(number)
        self.expected = self._expected()
        # What they depend on is more than what they write, so they can't be moved past changes of other variables.
        self.rooted = [number for number, step in enumerate(self.unknown) if step.touches != step.sets]

    def _orphans(self, steps: list[Step], changes: Mapping[int, Step]) -> dict[int, dict[int, Value]]:
        """Revisions that were seen and that no change was answered with, with what is known of them."""
        declared = {revision for _, revision, _, _ in self.initial}
        orphans: dict[int, dict[int, Value]] = {}
        for step in steps:
            for place, value, revision in step.seen:
                if revision not in changes and revision not in declared:
                    orphans.setdefault(revision, {})[place] = value
            undoes = step.source.undoes
            if undoes and step.source.outcome is Outcome.DONE and undoes not in changes:
                orphans.setdefault(undoes, {}).update(step.old)
        return orphans

    def _expected(self) -> list[Mapping[int, Value]]:
        """For each place of the timeline the values that the changes from there on say they replaced."""
        expected: list[Mapping[int, Value]] = [{}]
        for step in reversed(self.changes):
            if step is None:  # what it replaced is not known, nor everything that it set
                expected.append({})
            else:
                later = {place: value for place, value in expected[-1].items() if not step.sets >> place & 1}
                expected.append({**later, **dict(step.old)})
        return expected[::-1]

    def run(self, states: int) -> Verdict:
        verdict, deepest = self._run(states)
        self.stuck = self._horizon(deepest)
        return verdict

    def _run(self, states: int) -> tuple[Verdict, _Frame]:
        start = _Frame(self.initial)
        if not self.unique:
            return Verdict(False, "two changes were answered with one revision"), start
        declared = max(lowest(revision) for _, revision, _, _ in self.initial)
        if self.timeline and self.timeline[0] <= declared:
            return Verdict(False, f"revision {self.timeline[0]} is older than the beginning's {declared}"), start
        budget = states + len(self.changes)
        known: set[tuple[object, ...]] = set()
        stack = [self._settled(start)]
        deepest, depth = stack[0], -1
        while stack:
            frame = stack[-1]
            reached = frame.changes + frame.arrived - len(frame.open)
            if reached > depth:
                deepest, depth = frame, reached
            if reached == len(self.changes) + len(self.still):
                return Verdict(True), frame
            following = next(frame.following, None)
            if following is None:
                stack.pop()
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
            self.change_ends[frame.changes],
            self.still_ends[frame.arrived],
            min((self.still[number].end for number in frame.open), default=math.inf),
        )

    def _settled(self, frame: _Frame) -> _Frame:
        """Puts in order whatever fits and leaves the state as it is, and prepares what may follow."""
        while True:
            horizon = self._horizon(frame)
            waiting = list(frame.open)
            while frame.arrived < len(self.still) and self.still[frame.arrived].call <= horizon:
                waiting.append(frame.arrived)
                frame.arrived += 1
            following = self._following_revision(frame)
            fitting = [number for number in waiting if not misfit(frame.state, self.still[number], following)]
            frame.open = tuple(number for number in waiting if number not in fitting)
            for number in fitting:
                step = self.still[number]
                frame.placed.append(step)
                if step.source.kind is not Kind.READ:
                    frame.due = tuple(bits for bits in frame.due if not bits & step.touches)
            if not fitting:
                frame.following = self._following(frame, horizon)
                return frame

    def _following(self, frame: _Frame, horizon: float) -> Iterator[_Frame]:
        """What may come next: the change with the next revision; or a change without an answer that nobody saw."""
        following = self._following_revision(frame)
        if frame.changes < len(self.changes):
            step = self.changes[frame.changes]
            if step is None:
                yield from self._orphan(frame, horizon, self.timeline[frame.changes])
            elif step.call <= horizon and all(bits & step.touches for bits in frame.due):
                state = after(frame.state, step, step.source.revision)
                if state is not None:
                    yield self._next(frame, step, state, changes=1)
        for number in self._ghosts(frame):
            ghost = self.unknown[number]
            # Wholly overwritten by another change that nobody saw either, a change would explain nothing.
            hidden = any(not bits & ~ghost.sets for bits in frame.due)
            if ghost.call <= horizon and not frame.used >> number & 1 and not hidden:
                low = max(ghost.floor, *(lowest(frame.state[place][1]) for place in places(ghost.touches)))
                state = after(frame.state, ghost, (low, following))
                if state is not None and low + 1 < following and not self._ends_blind(frame, state, number):
                    due = (*(bits for bits in frame.due if not bits & ghost.touches), ghost.touches)
                    yield self._next(frame, ghost, state, used=1 << number, due=due)

    def _ends_blind(self, frame: _Frame, state: State, number: int) -> bool:
        """Whether a change that nobody saw stands in the way of the next one, which replaced something else."""
        for place, expected in self.expected[frame.changes].items():
            value = state[place][0]
            if value != expected and self.unknown[number].touches >> place & 1:
                used = frame.used | 1 << number
                if all(used >> other & 1 for other in self.writers.get((place, expected), ())):
                    return True
        return False

    def _ghosts(self, frame: _Frame) -> Iterator[int]:
        """The changes without an answer and seen by nobody that may matter here; elsewhere they may as well be left out.

        One matters to the next change if that one replaced its value, or nobody knows what that one replaced; to a
        refusal that does not fit yet; or to another one that matters, which hides a part of it.
        """
        step = self.changes[frame.changes] if frame.changes < len(self.changes) else None
        matters = set(self.rooted)
        if step is not None:
            matters.update(number for pair in step.old for number in self.writers.get(pair, ()))
        elif frame.changes < len(self.changes):
            matters.update(range(len(self.unknown)))
        for number in frame.open:
            still = self.still[number]
            if still.source.kind is not Kind.READ:
                matters.update(other for other, ghost in enumerate(self.unknown) if ghost.touches & still.touches)
        yield from sorted(matters)
        bits = 0
        for number in matters:
            bits |= self.unknown[number].touches
        if bits:
            for number, ghost in enumerate(self.unknown):
                if number not in matters and ghost.touches & bits:
                    yield number

    def _following_revision(self, frame: _Frame) -> float:
        return self.timeline[frame.changes] if frame.changes < len(self.timeline) else math.inf

    def _orphan(self, frame: _Frame, horizon: float, revision: int) -> Iterator[_Frame]:
        """The changes without an answer that may be the one with this revision, which somebody saw."""
        facts = self.orphans[revision].items()
        for number, step in enumerate(self.unknown):
            if step.call > horizon or frame.used >> number & 1:
                continue
            if not all(bits & step.touches for bits in frame.due):
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
            why = misfit(frame.state, self.still[number], following)
            lines.append(f"  can't follow: {self.still[number].source} ({why})")
        if frame.changes < len(self.changes):
            step, revision = self.changes[frame.changes], self.timeline[frame.changes]
            if step is None:
                facts = " ".join(f"{self.names[place]}={value}" for place, value in self.orphans[revision].items())
                lines.append(f"  can't follow: revision {revision} ({facts}), which no client's call explains")
            else:
                why = "something else was answered before it was called" if step.call > horizon else "not in this state"
                lines.append(f"  can't follow: {step.source} ({why})")
        return "\n".join(lines)


def _call(step: Step) -> float:
    return step.call


def _minima(ends: list[float]) -> list[float]:
    """For each place the least value from there to the end, and infinity after it."""
    minima = [math.inf]
    for end in reversed(ends):
        minima.append(min(end, minima[-1]))
    return minima[::-1]
