"""Points in time as a person types them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import click
import pytest

from ltctl.times import moment

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("3d", timedelta(days=3)),
        (" 2w ", timedelta(weeks=2)),
        ("0s", timedelta()),
    ],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    assert NOW - ago == moment(text, NOW)


def test_ago_counts_from_now() -> None:
    before = datetime.now(timezone.utc)
    assert before - timedelta(hours=1) <= moment("1h") <= datetime.now(timezone.utc) - timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-24", "2026-11-23T23:00:00+00:00"),
        ("2026-11-24T14:30", "2026-11-24T13:30:00+00:00"),
        ("2026-11-24 14:30:05", "2026-11-24T13:30:05+00:00"),
        ("2026-07-24T14:30", "2026-07-24T12:30:00+00:00"),
        ("2026-11-24T14:30Z", "2026-11-24T14:30:00+00:00"),
        ("2026-11-24T14:30:05.5z", "2026-11-24T14:30:05.500000+00:00"),
        ("2026-11-24T14:30:05.123456789+00:00", "2026-11-24T14:30:05.123456+00:00"),
        ("2026-11-24T14:30-05:00", "2026-11-24T19:30:00+00:00"),
        ("2026-11-24T14:30+0530", "2026-11-24T09:00:00+00:00"),
        ("2026-11-24T14:30+02", "2026-11-24T12:30:00+00:00"),
    ],
)
def test_iso_8601_here_or_with_an_offset(text: str, utc: str) -> None:
    found = moment(text)
    assert utc == found.isoformat()


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "2h ago", "2 h", "-2h", "h", "2y", "2026", "20261124", "2026-11-24T14", "14:30", "2026-02-30",
        "2026-11-24T25:00", "0000-01-01", "0001-01-01", "9999-12-31T23:59-12:00", "999999999w", "\u0663d", "2026-11-24T14:30+99",
        "2026-11-24T14:30:05,5", "2026-11-24T",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no(t a)? time"):
        moment(text, NOW)
