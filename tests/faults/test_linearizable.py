"""One order: what concurrent clients see of a daemon that is killed under them is explained by one order. With controls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.bugs import BUGS
from support.judging import first_seed, judge
from support.load import Plan
from support.simulated import STORE_BUGS, WATCH_BUGS

TRIES = 6


def check_histories(folder: Path, histories: int, calls: int) -> None:
    first = first_seed()
    operations = silent = changes = helped = 0
    for seed in range(first, first + histories):
        result = judge(folder / str(seed), Plan(seed, calls=calls))
        assert {} == result.found, f"LIVETUNE_SEED={seed}: {result}"
        operations += len(result.saw.operations)
        silent += sum(item.end == float("inf") for item in result.saw.operations)
        changes += len(result.saw.history or ())
        helped += result.helped
    print(  # noqa: T201
        f"{histories} histories, {operations} operations, {silent} without an answer, {changes} changes: 0 illegal "
        f"({helped} judged with the help of the daemon's history)"
    )


def test_concurrent_clients_see_one_order(tmp_path: Path) -> None:
    check_histories(tmp_path, histories=2, calls=300)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_concurrent_clients_see_one_order_many_times(tmp_path: Path) -> None:
    check_histories(tmp_path, histories=int(os.environ.get("LIVETUNE_HISTORIES") or 300), calls=2_000)


def found_by(folder: Path, bug: str, expected: str, plan: Plan) -> None:
    """Plants a bug and lets clients loose on it until it is found by the check that is there for it."""
    found: set[str] = set()
    for number in range(TRIES):
        seed = plan.seed + number
        result = judge(
            folder / str(seed), Plan(seed, plan.calls, restarts=plan.restarts, impatient=plan.impatient), bug=bug
        )
        found |= set(result.found)
        if expected in found:
            print(f"{bug}: found by {', '.join(sorted(found))} in try {number + 1}")  # noqa: T201
            return
    raise AssertionError(
        f"{bug}: not found by {expected} in {TRIES} tries from LIVETUNE_SEED={plan.seed} on, only {found}"
    )


@pytest.mark.parametrize("bug", STORE_BUGS)
def test_control_a_planted_bug_is_found(tmp_path: Path, bug: str) -> None:
    restarts = 1 if bug == "acknowledged_then_lost" else 0
    found_by(tmp_path, bug, "order", Plan(first_seed(), restarts=restarts, impatient=0.1))


WATCH_BUG_FOUND_BY = {
    "resumed_off_by_one": "Resumable",
    "dropped_event": "Reliable",
    "repeated_event": "Unique",
    "early_bookmark": "Bookmarkable",
    "split_transaction": "Atomic",
    "wrong_order": "Ordered",
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", WATCH_BUGS)
def test_control_a_planted_bug_of_the_watch_is_found(tmp_path: Path, bug: str) -> None:
    found_by(tmp_path, bug, WATCH_BUG_FOUND_BY[bug], Plan(first_seed(), restarts=0))


def test_every_bug_has_its_test() -> None:
    assert {*STORE_BUGS, *WATCH_BUGS} == set(BUGS)
