"""The checker of linearizability: histories made by hand, simulated ones, right and wrong, and every possible order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.linearizability import check
from support.operations import Kind, Operation, Outcome, Seen, check_revisions
from support.simulated import STORE_BUGS, simulate

INITIAL: dict[str, Seen] = {"vgg": {"x": (0, 1), "y": (0, 1), "z": (0, 1)}}


def change(call: float, end: float, revision: int, old: Mapping[str, int], **values: int) -> Operation:
    return Operation(0, Kind.SET, "vgg", call, end, Outcome.DONE, values, revision=revision, old=old)


def unheard(call: float, **values: int) -> Operation:
    return Operation(1, Kind.SET, "vgg", call, values=values)


def read(call: float, end: float, x: tuple[int, int], y: tuple[int, int] = (0, 1), revision: int = 0) -> Operation:
    return Operation(2, Kind.READ, "vgg", call, end, Outcome.DONE, seen={"x": x, "y": y}, revision=revision)


def undo(call: float, end: float, undoes: int, revision: int, **values: int) -> Operation:
    return Operation(3, Kind.UNDO, "vgg", call, end, Outcome.DONE, values, undoes=undoes, revision=revision)


def refused(wish: Operation, end: float) -> Operation:
    return replace(wish, end=end, outcome=Outcome.REFUSED, revision=0, old={})


LEGAL: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [change(0, 1, 5, {"x": 0}, x=7), read(2, 3, (7, 5), revision=5)],
    "a read beside a change sees it or not": [
        change(0, 9, 5, {"x": 0}, x=7),
        read(1, 2, (0, 1), revision=1),
        read(3, 4, (7, 5), revision=6),
    ],
    "changes beside each other in either order": [
        change(0, 9, 6, {"x": 8}, x=7),
        change(1, 8, 5, {"x": 0}, x=8),
        read(10, 11, (7, 6)),
    ],
    "no answer and never seen": [unheard(0, x=7), read(1, 2, (0, 1))],
    "no answer and seen late": [unheard(0, x=7), read(1, 2, (0, 1)), read(3, 4, (7, 5))],
    "no answer and seen only by who replaced it": [unheard(0, x=7), change(1, 2, 6, {"x": 7}, x=8)],
    "no answer, and the reason of a refusal": [
        unheard(0, x=7),
        refused(replace(unheard(1, x=8), guards={"x": 1}), 2),
    ],
    "two without an answer, one over a part of the other": [
        unheard(0, x=7, y=7),
        unheard(0, y=8),
        change(1, 2, 9, {"y": 8}, y=9),
        read(3, 4, (7, 6), (9, 9)),
    ],
    "three without an answer, each over a part of the one before": [
        unheard(0, x=7, y=7),
        unheard(0, y=8, z=8),
        unheard(0, z=9),
        change(1, 2, 9, {"z": 9}, z=10),
        change(3, 4, 10, {"x": 7, "y": 8}, x=11, y=11),
    ],
    "a condition that holds": [
        change(0, 1, 5, {"x": 0}, x=7),
        replace(change(2, 3, 6, {"x": 7}, x=8), guards={"x": 5}, if_job_revision=5),
    ],
    "a condition that does not hold": [
        change(0, 1, 5, {"y": 0}, y=7),
        refused(replace(unheard(2, x=8), if_job_revision=1), 3),
    ],
    "undone": [change(0, 1, 5, {"x": 0, "y": 0}, x=7, y=7), undo(2, 3, 5, 6, x=0, y=0), read(4, 5, (0, 6), (0, 6))],
    "an undo undone": [change(0, 1, 5, {"x": 0}, x=7), undo(2, 3, 5, 6, x=0), undo(4, 5, 6, 7, x=7)],
    "an undo refused, as one part was changed since": [
        change(0, 1, 5, {"x": 0, "y": 0}, x=7, y=7),
        change(2, 3, 6, {"y": 7}, y=8),
        refused(undo(4, 4, 5, 0), 5),
    ],
    "an undo without an answer": [
        change(0, 1, 5, {"x": 0}, x=7),
        Operation(4, Kind.UNDO, "vgg", 2, undoes=5),
        read(3, 4, (0, 6)),
    ],
}  # fmt: skip

ILLEGAL: dict[str, list[Operation]] = {
    "a stale read": [change(0, 1, 5, {"x": 0}, x=7), read(2, 3, (0, 1))],
    "a read of a revision that shows less": [change(0, 9, 5, {"x": 0}, x=7), read(1, 2, (0, 1), revision=5)],
    "a read of a revision that shows more": [change(0, 9, 5, {"x": 0}, x=7), read(1, 2, (7, 5), revision=4)],
    "back and forth": [change(0, 9, 5, {"x": 0}, x=7), read(1, 2, (7, 5)), read(3, 4, (0, 1))],
    "half of a change": [change(0, 9, 5, {"x": 0, "y": 0}, x=7, y=7), read(1, 2, (7, 5), (0, 1))],
    "a value that nobody set": [read(1, 2, (9, 5))],
    "a revision that nobody made": [change(0, 1, 5, {"x": 0}, x=7), read(2, 3, (7, 6))],
    "acknowledged and lost": [change(0, 1, 5, {"x": 0}, x=7), change(2, 3, 6, {"x": 0}, x=8)],
    "later with the lower revision": [change(0, 1, 6, {"x": 0}, x=7), change(2, 3, 5, {"x": 7}, x=8)],
    "one revision twice": [change(0, 1, 5, {"x": 0}, x=7), change(0, 1, 5, {"x": 0}, x=8)],
    "a condition that did not hold": [
        change(0, 1, 5, {"x": 0}, x=7),
        replace(change(2, 3, 6, {"x": 7}, x=8), guards={"x": 4}),
    ],
    "a refusal without a reason": [refused(replace(unheard(1, x=8), guards={"x": 1}), 2)],
    "a refusal before its reason": [
        refused(replace(unheard(1, x=8), guards={"x": 1}), 2),
        change(3, 4, 5, {"x": 0}, x=7),
    ],
    "no answer and done twice": [unheard(0, x=7), read(1, 2, (7, 5)), read(3, 4, (7, 6))],
    "no answer and seen before the call": [read(0, 1, (7, 5)), unheard(2, x=7)],
    "undone to something else": [change(0, 1, 5, {"x": 0}, x=7), undo(2, 3, 5, 6, x=1)],
    "undone although changed since": [
        change(0, 1, 5, {"x": 0}, x=7),
        change(2, 3, 6, {"x": 7}, x=8),
        undo(4, 5, 5, 7, x=0),
    ],
    "a declaration undone": [undo(4, 5, 1, 7, x=0)],
    "an undo refused without a reason": [change(0, 1, 5, {"x": 0}, x=7), refused(undo(4, 4, 5, 0), 5)],
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_history_passes(name: str) -> None:
    assert "" == check(LEGAL[name], INITIAL).words
    assert [] == check_revisions(LEGAL[name])


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_history_is_found(name: str) -> None:
    verdict = check(ILLEGAL[name], INITIAL)
    assert (False, True) == (verdict.ok, verdict.decided)


def test_the_explanation_ends_with_the_first_thing_that_is_wrong() -> None:
    right = [change(number, number + 0.5, number + 2, {"x": number}, x=number + 1) for number in range(50)]
    late = [change(number, number + 0.5, number + 2, {"y": 0}, y=0) for number in range(60, 70)]
    wrong = read(50, 50.5, (49, 50), revision=52)
    assert (
        "no order explains this: 50 operations fit, then none does\n"
        "  ... 42 before\n" + "".join(f"  {item}\n" for item in right[-8:]) + "  now x=50@51 y=0@1\n"
        f"  can't follow: {wrong} (50@51 is where it saw 49@50)"
    ) == check([*late, wrong, *right], INITIAL).words


def test_what_was_never_touched_together_is_judged_apart() -> None:
    here = [change(0, 1, 5, {"x": 0}, x=7), change(2, 3, 7, {"x": 7}, x=8)]
    there = [change(0, 9, 6, {"y": 0}, y=7)]
    assert check(here + there, INITIAL).ok
    assert not check([*here, replace(there[0], old={"y": 1})], INITIAL).ok


def test_a_search_without_end_is_given_up() -> None:
    silent = [unheard(0, x=number % 3, y=number % 2) for number in range(12)]
    refusals = [refused(replace(unheard(number, x=8), guards={"x": 1}), number + 1) for number in range(1, 6)]
    verdict = check([*silent, *refusals, read(20, 21, (9, 900))], INITIAL, states=50)
    assert (False, False) == (verdict.ok, verdict.decided)
    assert "given up after" in verdict.words


REVISIONS: dict[str, tuple[str, list[Operation]]] = {
    "twice": ("was given to two changes", [change(0, 1, 5, {}, x=7), change(0, 1, 5, {}, y=8)]),
    "goes back": ("came after revision 6", [change(0, 1, 6, {}, x=7), change(2, 3, 5, {}, y=8)]),
    "old read": ("came after revision 6", [change(0, 1, 6, {}, x=7), read(2, 3, (0, 1), revision=5)]),
    "early read": ("came after revision 6", [read(0, 1, (0, 1), revision=6), change(2, 3, 6, {}, x=7)]),
    "two values": ("x@5 was 7 and is 8", [read(0, 1, (7, 5)), read(0, 1, (8, 5))]),
    "another variable": ("did not set y", [change(0, 1, 5, {}, x=7), read(0, 1, (0, 1), (7, 5))]),
    "another job": ("did not set x", [change(0, 1, 5, {}, x=7), replace(read(0, 1, (7, 5)), job="bert")]),
}  # fmt: skip


@pytest.mark.parametrize("name", REVISIONS)
def test_revisions_that_can_t_be_are_found(name: str) -> None:
    words, history = REVISIONS[name]
    found = check_revisions(history)
    assert found
    assert words in found[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 8),
    variables=st.integers(1, 5),
    silent=st.sampled_from([0, 0.04, 0.2]),
    values=st.sampled_from([0, 0, 3]),
)
def test_what_a_right_store_does_is_legal(seed: int, clients: int, variables: int, silent: float, values: int) -> None:
    run = simulate(Random(seed), clients=clients, calls=150, variables=variables, silent=silent, values=values)
    assert "" == check(run.operations, run.initial).words
    assert [] == check_revisions(run.operations)


@pytest.mark.parametrize("bug", STORE_BUGS)
def test_every_planted_bug_is_found(bug: str) -> None:
    found = set()
    for seed in range(12):
        run = simulate(Random(seed), bug=bug)
        if not check(run.operations, run.initial).ok:
            found.add("order")
        if check_revisions(run.operations):
            found.add("revisions")
    assert "order" in found
    # What the revisions alone tell, and with less to look at.
    assert (bug in {"stale_read", "acknowledged_then_lost", "duplicate_revision"}) == ("revisions" in found)


_Cells = dict[str, tuple[Any, int, Any, tuple[str, ...]]]


def _orders(left: Sequence[Operation], state: _Cells, newest: int, shown: int, limit: int) -> bool:
    """Tries every order of every choice of what happened, with every revision it may have had: slow, and surely right.

    `newest` is the revision of the last change, `shown` the highest that a read told, `limit` one that none reaches.
    """
    answered = [item.end for item in left if item.end < math.inf]
    return not answered or any(
        _orders([other for other in left if other is not item], *after, limit)
        for item in left
        if item.call <= min(answered)
        for after in _effects(item, state, newest, shown, limit)
    )


def _effects(item: Operation, state: _Cells, newest: int, shown: int, limit: int) -> Iterator[tuple[_Cells, int, int]]:
    if item.kind is Kind.READ:
        fits = newest <= item.revision and all(state[name][:2] == seen for name, seen in item.seen.items())
        if fits or item.outcome is Outcome.UNKNOWN:
            yield state, newest, max(shown, item.revision)
        return
    values = _granted(item, state)
    if item.outcome is Outcome.REFUSED:
        if values is None:
            yield state, newest, shown
    elif values is not None and all(state[name][0] == old for name, old in item.old.items()):
        for revision in [item.revision] if item.revision else range(newest + 1, limit):
            if revision > max(newest, shown):
                new = {name: (value, revision, state[name][0], tuple(values)) for name, value in values.items()}
                yield {**state, **new}, revision, shown


def _granted(item: Operation, state: _Cells) -> Mapping[str, Any] | None:
    if item.kind is Kind.UNDO:
        together = next((cell[3] for cell in state.values() if cell[1] == item.undoes), ())
        if not together or any(state[name][1] != item.undoes for name in together):
            return None
        values = {name: state[name][2] for name in together}
        return values if item.values in ({}, values) else None
    newest = max(cell[1] for cell in state.values())
    holds = all(state[name][1] <= guard for name, guard in item.guards.items())
    return item.values if holds and (item.if_job_revision is None or newest <= item.if_job_revision) else None


def _mutated(random: Random, operations: list[Operation]) -> list[Operation]:
    place = random.randrange(len(operations))
    item = operations[place]
    how = random.randrange(5)
    if how == 0 and item.seen:
        name = random.choice(list(item.seen))
        other = random.choice(operations)
        item = replace(
            item, seen={**item.seen, name: other.seen.get(name, (random.randint(0, 2), random.randint(1, 8)))}
        )
    elif how == 1 and item.end < math.inf:
        item = replace(item, end=item.end + random.uniform(0, 5))
    elif how == 2:
        item = replace(item, call=item.call - random.uniform(0, 5))
    elif how == 3 and item.old:
        item = replace(item, old=dict.fromkeys(item.old, random.randint(0, 2)))
    elif how == 4 and item.kind is Kind.SET and item.outcome is Outcome.DONE and (item.guards or item.if_job_revision):
        item = replace(item, outcome=Outcome.REFUSED, revision=0, old={})
    return [*operations[:place], item, *operations[place + 1 :]]


def compare(seed: int) -> tuple[bool, bool, list[Operation], dict[str, Seen]]:
    """Judges a small history, often spoiled, by the checker and by trying every order."""
    random = Random(seed)
    run = simulate(
        random,
        clients=random.randint(2, 4),
        calls=random.randint(4, 9),
        variables=random.choice([2, 2, 3]),
        silent=random.choice([0, 0.2, 0.5]),
        values=random.choice([0, 1, 2]),
        kills=random.choice([0, 1, 3]),
        bug=random.choice(["", "", *STORE_BUGS]),
    )
    operations = run.operations
    for _ in range(random.randint(0, 2)):
        operations = _mutated(random, operations)
    # A client undoes what it was told of; spoiled histories may have forgotten who told it.
    told = {item.revision for item in operations} | {seen[1] for item in operations for seen in item.seen.values()}
    operations = [item for item in operations if item.kind is not Kind.UNDO or item.undoes in told]
    limit = 4 + max(item.revision for item in operations)
    every = all(
        _orders(
            [item for item in operations if item.job == job],
            {name: (value, revision, None, ()) for name, (value, revision) in seen.items()},
            max(revision for _, revision in seen.values()),
            0,
            limit,
        )
        for job, seen in run.initial.items()
    )
    return every, check(operations, run.initial).ok, operations, run.initial


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_search_finds_an_order_where_there_is_one_and_only_there(seed: int) -> None:
    every, found, operations, _ = compare(seed)
    assert found or not every, "no false alarm"
    # How many changes fit between two revisions, if nobody heard of any of them, is not counted. Nothing else is let pass.
    assert every or not found or any(item.is_change and item.end == math.inf for item in operations)
