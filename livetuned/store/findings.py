"""What looking at a store's file finds: checks, and what is known of the store afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum

from livetuned.domain.job import Job

SHOWN = 3
"""How many things of a kind a line names."""


class Status(Enum):
    """How a check went."""

    OK = "OK"
    FAILED = "FAILED"
    LEFT_OUT = "LEFT OUT"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    words: str


@dataclass(slots=True)
class Examination:
    """What was found. Filled while `examine` runs."""

    checks: list[Check] = field(default_factory=list)
    readable: bool = False
    """Whether it is a store of a schema that is known."""
    store_id: str = ""
    origin: int = 0
    """Records up to this revision are not kept."""
    origin_known: bool = True
    """Whether it was the store that said so; else what was found begins there."""
    anchor: bytes | None = None
    """The checksum to which the record after `origin` is chained; None if it is not known."""
    covered: int | None = None
    """Every record up to this revision is part of the snapshots; None if that is not known."""
    head: int = 0
    """The highest revision found."""
    log_readable: bool = True
    """Whether that could be told."""
    acknowledged: int = 0
    """The last revision that the daemon acknowledged, as far as it noted that."""
    snapshots: dict[str, Job] = field(default_factory=dict)
    """Those that can be trusted."""
    bad_snapshots: list[str] = field(default_factory=list)
    """Jobs whose snapshots can't."""
    snapshots_complete: bool = True
    """Whether it is sure that no snapshot is missing."""
    digest: str = ""
    """One checksum over all snapshots, ``""`` if it is not known."""
    notes: dict[str, str] = field(default_factory=dict)
    """What is noted, by key."""
    good: int = 0
    """The chain holds, and folds, up to this revision."""
    state: dict[str, Job] | None = None
    """The jobs as of `head`; None unless the snapshots and the records after them give it."""

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status is Status.FAILED]


def check(name: str, damage: str, well: str) -> Check:
    """Returns a check: failed with these words if there is damage, else well with those."""
    return Check(name, Status.FAILED if damage else Status.OK, damage or well)


def utc(time_us: int) -> str:
    """Returns a time, in microseconds since the Unix epoch, for people: UTC, to the second."""
    try:
        time = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=time_us)
    except OverflowError:
        return "an impossible time"
    return time.strftime("%Y-%m-%d %H:%M:%SZ")


def span(first: int, last: int) -> str:
    """Returns a range of revisions for people."""
    return f"{first}" if first == last else f"{first}-{last}"


def number(count: int, noun: str) -> str:
    """Returns a count of something for people."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(names: list[str]) -> str:
    """Returns a list for people: the first few, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
