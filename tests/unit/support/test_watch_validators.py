"""The validators of watches: streams made by hand, and simulated ones over many breaks, right and wrong."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.simulated import WATCH_BUGS, follow, simulate
from support.watch_validators import VALIDATORS, Bookmark, Broken, Event, Item, Opened, Snapshot, Stream, validate


def event(revision: int, *parts: str, job: str = "vgg") -> Event:
    return Event(revision, job, parts or (f"x={revision}",))


OTHER = event(4, job="bert")
TRUTH = [event(2), event(3, "x=3", "y=3"), OTHER, event(5), event(6), event(9)]
_2, _3, _4, _5, _6, _9 = TRUTH

RIGHT: dict[str, list[Item]] = {
    "nothing": [],
    "opened, and nothing came": [Opened(0), Bookmark(0), Broken("cut")],
    "everything": [Opened(0), Bookmark(0), _2, _3, _5, _6, _9, Bookmark(12)],
    "from the middle": [Opened(3), Bookmark(3), _5],
    "resumed after an event": [Opened(2), _3, _5, Broken("cut"), Opened(5), Bookmark(5), _6],
    "resumed after a bookmark beyond the last event": [Opened(2), _3, Bookmark(4), Broken("cut"), Opened(4), _5],
    "asked again for old events": [Opened(0), _2, _3, Bookmark(4), Broken("cut"), Opened(2), _3, _5],
    "a snapshot in place of events": [Opened(1), Snapshot(5), Bookmark(5), _6, _9],
    "a snapshot of another store": [Opened(70, "old"), Snapshot(3, "new"), Event(5, "vgg", ("x=5",), "new")],
}

WRONG: dict[str, tuple[set[str], list[Item]]] = {
    "back": ({"Ordered"}, [Opened(1), _2, _5, _3, _6]),
    "back over a break": ({"Ordered", "Unique", "Resumable"}, [Opened(1), _2, _3, Broken("cut"), Opened(3), _2, _5]),
    "twice": ({"Unique"}, [Opened(1), _2, _3, _3, _5]),
    "twice over a break": ({"Unique", "Resumable"}, [Opened(1), _2, _3, Broken("cut"), Opened(3), _3, _5]),
    "missing": ({"Reliable"}, [Opened(1), _2, _3, _6]),
    "missing after a break": ({"Reliable", "Resumable"}, [Opened(1), _2, _3, Broken("cut"), Opened(3), _6]),
    "missing at the beginning": ({"Resumable"}, [Opened(1), _3, _5]),
    "missing after a snapshot": ({"Resumable"}, [Opened(1), Snapshot(3), Bookmark(3), _6, _9]),
    "never happened": ({"Reliable"}, [Opened(1), _2, _3, _5, _6, event(7), _9]),
    "of another job": ({"Reliable"}, [Opened(1), _2, _3, OTHER, _5]),
    "a part": ({"Atomic"}, [Opened(1), _2, event(3, "x=3"), _5]),
    "two parts, a break between": (
        {"Atomic", "Resumable"},
        [Opened(1), _2, event(3, "x=3"), Broken("cut"), Opened(3), event(3, "y=3"), _5],
    ),
    "another value": ({"Atomic"}, [Opened(1), _2, event(3, "x=3", "y=4"), _5]),
    "another store": (
        {"Resumable"},
        [Opened(1, "old"), Event(2, "vgg", ("x=2",), "old"), Broken("cut"), Opened(2, "old"), Bookmark(2, "new")],
    ),
    "a resume refused": ({"Resumable"}, [Opened(1), _2, Broken("cut"), Opened(2), Broken("no such revision", True)]),
    "a bookmark too early": ({"Bookmarkable"}, [Opened(1), _2, Bookmark(3), _3, _5]),
    "a bookmark that nothing followed": ({"Bookmarkable"}, [Opened(1), _2, Bookmark(3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_stream_passes(name: str) -> None:
    assert {} == validate([Stream("w", "vgg", RIGHT[name])], TRUTH)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stream_is_found_by_those_it_concerns(name: str) -> None:
    properties, items = WRONG[name]
    found = validate([Stream("w", "vgg", items)], TRUTH)
    assert properties == set(found)
    assert all(words.startswith("w: ") for violations in found.values() for words in violations)


def test_a_watch_of_all_jobs_sees_all() -> None:
    assert {} == validate([Stream("w", "", [Opened(1), *TRUTH])], TRUTH)
    assert {"Reliable"} == set(validate([Stream("w", "", [Opened(1), _2, _3, _5])], TRUTH))


def test_the_violations_say_what_and_where() -> None:
    stream = Stream("watcher 7", "vgg", [Opened(1), _2, event(3, "x=3"), Broken("cut"), Opened(3), _6, Bookmark(8), _5])
    assert {
        "Ordered": ["watcher 7: revision 5 came after revision 6"],
        "Atomic": ["watcher 7: revision 3 came as (x=3), and it is (x=3, y=3)"],
        "Resumable": ["watcher 7: resumed after revision 3, got 6 and not 5"],
        "Bookmarkable": [
            "watcher 7: a bookmark at 8 came before revision 5",
            "watcher 7: revision 5 came after the bookmark at 8",
        ],
    } == validate([stream], TRUTH)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), job=st.sampled_from(["", "one", "two"]))
def test_what_a_right_watch_delivers_passes(seed: int, job: str) -> None:
    random = Random(seed)
    truth = simulate(random, calls=60).truth
    assert {} == validate([follow(random, truth, job)], truth)


FOUND_BY = {
    "resumed_off_by_one": "Resumable",
    "dropped_event": "Reliable",
    "repeated_event": "Unique",
    "early_bookmark": "Bookmarkable",
    "split_transaction": "Atomic",
    "wrong_order": "Ordered",
}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), bug=st.sampled_from(WATCH_BUGS))
def test_every_planted_bug_is_found_by_its_validator(seed: int, bug: str) -> None:
    random = Random(seed)
    truth = simulate(random, calls=120).truth
    found = validate([follow(random, truth, bug=bug)], truth)
    # Where the disorder falls on the place of a break, it shows as a resume that went wrong.
    assert FOUND_BY[bug] in found or (bug == "wrong_order" and "Resumable" in found)


def test_every_validator_has_a_bug_that_it_finds() -> None:
    assert set(VALIDATORS) == set(FOUND_BY.values())
    assert set(WATCH_BUGS) == set(FOUND_BY)
