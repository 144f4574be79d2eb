"""What can be saved of a store: which records, which jobs, and what is lost with the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from livetuned.domain.job import Job
from livetuned.store.findings import Examination, number, span, utc
from livetuned.store.refold import Refold
from livetuned.store.source import ChainError, Line, Source

_JOBS_NAMED = 20


class HopelessError(Exception):
    """Nothing can be kept this way. The message says why."""


@dataclass(slots=True)
class Lost:
    """Records that are not kept."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    """Their first and last revisions."""
    readable: int = 0
    """How many of them can still be read, true or not."""
    first_us: int = 0
    last_us: int = 0
    """Their times, of those that can be read."""
    jobs: Counter[str] = field(default_factory=Counter)
    """How many of each job, of those that can be read."""

    @property
    def count(self) -> int:
        """How many records."""
        return sum(last - first + 1 for first, last in self.spans)

    def words(self) -> str:
        """Tells it to people."""
        if not self.spans:
            return "no record"
        parts = [number(self.count, "record")]
        if self.readable:
            named = [f"{name} ({count})" for name, count in self.jobs.most_common(_JOBS_NAMED)]
            more = len(self.jobs) - len(named)
            parts.append(f"{utc(self.first_us)} to {utc(self.last_us)}")
            parts.append(f"of jobs {', '.join(named)}{f' and {more} more' if more else ''}")
        if self.readable < self.count:
            parts.append(f"{self.count - self.readable} of them can't be read")
        return f"{', '.join(span(*ends) for ends in self.spans)} ({'; '.join(parts)})"


@dataclass(slots=True)
class Plan:
    """What is kept of a store."""

    keep: str
    """``"all"``, ``"prefix"`` or ``"newest"``."""
    origin: int
    """Records after this revision are kept ..."""
    last: int
    """... up to this one."""
    anchor: bytes
    """The checksum to which the first record kept is chained in the store."""
    jobs: dict[str, Job]
    """The jobs, as of `last`."""
    notes: dict[str, str]
    older: list[str] = field(default_factory=list)
    """Jobs known as of different revisions only, because records between these are lost."""
    gone: list[str] = field(default_factory=list)
    """Jobs of which no state is kept."""
    history: Lost = field(default_factory=Lost)
    """Records lost whose outcome is kept."""
    lost: Lost = field(default_factory=Lost)
    """Records lost with all they changed."""

    def lines(self, source: Source) -> Iterator[Line]:
        """Yields the records that are kept, checked.

        Raises:
            ChainError: One does not keep its checksum.
        """
        if self.last > self.origin:
            yield from source.lines(self.origin, self.anchor, self.last)

    def words(self) -> str:
        """Tells people what is kept and what is lost, as two sentences."""
        records = f"records {span(self.origin + 1, self.last)}" if self.last > self.origin else "no record"
        kept = f"keeps {records} and {number(len(self.jobs), 'job')} as of revision {self.last}"
        losses = []
        if self.lost.spans:
            losses.append(f"records {self.lost.words()}")
        if self.history.spans:
            losses.append(f"of the history only, records {self.history.words()}")
        if self.gone:
            losses.append(f"jobs {', '.join(self.gone)} altogether")
        if self.older:
            losses.append(f"the latest changes of some of the jobs {', '.join(self.older)}, which differ in age")
        return f"{kept}; loses {'; '.join(losses) or 'nothing'}"


def whole(found: Examination) -> Plan:
    """Returns the plan that keeps all of a store that is well.

    Raises:
        HopelessError: It is not.
    """
    if found.failed or found.state is None or found.anchor is None:
        raise HopelessError("; ".join(f"{check.name}: {check.words}" for check in found.failed) or "not readable")
    return Plan("all", found.origin, found.head, found.anchor, found.state, found.notes)


def prefix(source: Source, found: Examination) -> Plan:
    """Returns the plan that keeps the log up to the first damage, and the jobs as of there.

    Raises:
        HopelessError: The jobs as of there are not known, or nothing is left.
    """
    if found.anchor is None:
        raise HopelessError("where the log begins is not known")
    complete = found.origin == 0
    base = {} if complete else found.snapshots
    refold = Refold(complete=complete, jobs=base)
    last = _fold(refold, source.lines(found.origin, found.anchor, found.good), found.origin)
    ahead = sorted(name for name, job in refold.jobs.items() if job.revision > last)
    if ahead:
        raise HopelessError(
            f"records up to {found.origin} are compacted, and jobs {', '.join(ahead)} are known "
            f"only as of revisions after the damage"
        )
    if not refold.jobs and last == found.origin:
        raise HopelessError("nothing is well before the damage")
    plan = Plan("prefix", found.origin, last, found.anchor, refold.jobs, _notes(found, last))
    return _counted(plan, last, refold, source, found)


def newest(source: Source, found: Examination) -> Plan:
    """Returns the plan that keeps the newest state: the snapshots, the log after them, and what holds before.

    Raises:
        HopelessError: There are no snapshots.
    """
    if not found.snapshots:
        raise HopelessError("there are no snapshots")
    covered = found.origin if found.covered is None else found.covered
    start, anchor = _run_through(covered, source, found)
    refold = Refold(complete=start == 0 and anchor is not None, jobs=found.snapshots)
    last = covered
    if anchor is not None:
        last = max(covered, _fold(refold, source.lines(start, anchor, found.head), start))
    end = max([last, *(job.revision for job in refold.jobs.values())])
    if end > last or anchor is None:
        # Without the records in between there can be no log: its revisions have no gaps.
        older = sorted(refold.jobs) if end > last else []
        plan = Plan("newest", end, end, b"", refold.jobs, _notes(found, end), older)
    else:
        plan = Plan("newest", start, last, anchor, refold.jobs, _notes(found, last))
    return _counted(plan, last, refold, source, found)


def _notes(found: Examination, last: int) -> dict[str, str]:
    """Returns the notes, without ages that speak of records which are not kept."""
    return {} if last < found.head else found.notes


def _run_through(covered: int, source: Source, found: Examination) -> tuple[int, bytes | None]:
    """Returns the record after which the chain holds up to one, and its checksum; None if there is no such run."""
    if covered == found.origin:
        return covered, found.anchor
    if source.checksum_at(covered) is None:
        return covered, None
    start = source.start_of_run(covered)
    if start == found.origin + 1 and found.anchor is not None:
        try:
            if any(source.lines(found.origin, found.anchor, start)):
                return found.origin, found.anchor
        except ChainError:
            pass
    return start, source.checksum_at(start)


def _fold(refold: Refold, lines: Iterator[Line], position: int) -> int:
    """Folds records as far as they hold, and returns the revision of the last one."""
    try:
        for line in lines:
            refold.fold(line.record())
            position = line.revision
    except ValueError:
        pass
    return position


def _counted(plan: Plan, settled: int, refold: Refold, source: Source, found: Examination) -> Plan:
    """Adds to a plan what is lost.

    Args:
        plan: The plan.
        settled: What records up to this revision did is kept.
        refold: What was folded to the plan's jobs.
        source: The store.
        found: What was found in it.
    """
    _count(plan.history, source, found.origin, min(plan.origin, settled))
    _count(plan.lost, source, settled, max(found.head, found.acknowledged))
    # A job of which there are records up to `covered` only was removed, if no snapshot is missing.
    removed = found.covered if found.covered is not None and found.snapshots_complete else 0
    gone = {name for name, first in refold.unknown.items() if first > removed} | set(found.bad_snapshots)
    plan.gone = sorted(gone - set(plan.jobs))
    return plan


def _count(lost: Lost, source: Source, after: int, last: int) -> None:
    if last <= after:
        return
    lost.spans.append((after + 1, last))
    for _, time_us, job, _ in source.unchecked(after, last):
        lost.first_us = time_us if not lost.readable else min(lost.first_us, time_us)
        lost.last_us = max(lost.last_us, time_us)
        lost.readable += 1
        lost.jobs[job] += 1
