"""Watch sees everything once: twenty watchers over restarts of the daemon, some slow, all breaking off. With its control."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.judging import Result, first_seed, judge
from support.load import Plan
from support.watch_validators import Event, Opened
from support.watching import Habits

HABITS = Habits(breaks=0.01, slow=0.02)


def watch_over(folder: Path, restarts: int, bug: str = "") -> Result:
    seed = first_seed()
    plan = Plan(seed, calls=80 * (restarts + 1), clients=8, restarts=restarts, watchers=20, habits=HABITS)
    return judge(folder / "daemon", plan, bug=bug)


def check_restarts(folder: Path, restarts: int) -> None:
    result = watch_over(folder, restarts)
    assert {} == result.found, str(result)
    items = [item for stream in result.saw.streams for item in stream.items]
    resumed = sum(isinstance(item, Opened) for item in items) - len(result.saw.streams)
    events = sum(isinstance(item, Event) for item in items)
    assert resumed >= restarts
    print(f"{restarts} restarts, {len(result.saw.streams)} watchers, {resumed} resumes, {events} events: 0 violations")  # noqa: T201


def test_watchers_see_everything_once_over_restarts(tmp_path: Path) -> None:
    check_restarts(tmp_path, restarts=3)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_watchers_see_everything_once_over_many_restarts(tmp_path: Path) -> None:
    check_restarts(tmp_path, restarts=int(os.environ.get("LIVETUNE_RESTARTS") or 300))


def test_control_a_resume_that_is_off_by_one_is_found(tmp_path: Path) -> None:
    assert "Resumable" in watch_over(tmp_path, restarts=1, bug="resumed_off_by_one").found
