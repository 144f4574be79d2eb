"""What programs log: kept in memory, bounded in series, points and rate. What is too much is dropped and counted."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from livetuned.domain import limits
from livetuned.domain.names import is_series_name
from livetuned.domain.series import STEP_MAX, Sample, Series
from livetuned.service import clock
from livetuned.service.metrics import Metrics
from livetuned.service.rates import refilled

log = logging.getLogger(__name__)

_DROPPED_MAX = 2**31
"""Most refused values that one message may tell of, a count: what a counter can take for years."""


@dataclass(slots=True)
class Source:
    """One session that logs: how much it may, and who it is.

    Attributes:
        job: The job's name.
        rank: Its rank.
        left: Samples that it may log at once, as of `since`.
        since: Monotonic time in seconds.
    """

    job: str
    rank: int
    left: float
    since: float
    warned: bool = False
    """The log tells of what it dropped once."""


@dataclass(slots=True)
class _Job:
    run: int
    series: dict[tuple[str, int], Series] = field(default_factory=dict)
    """By name and rank."""
    per_rank: dict[int, int] = field(default_factory=dict)
    """How many series each rank has."""
    sources: dict[int, Source] = field(default_factory=dict)
    """Open sessions by rank."""
    dropped: int = 0
    """Values of this run that were dropped, here or by its program."""


class JobMetrics:
    """The series of all jobs. Belongs to one event loop.

    Args:
        metrics: Where it is counted what was taken and dropped.
        now: Monotonic time in seconds.
        wall_us: Wall time in microseconds since the Unix epoch.
    """

    def __init__(
        self,
        metrics: Metrics,
        now: Callable[[], float] = clock.monotonic,
        wall_us: Callable[[], int] = clock.wall_us,
    ) -> None:
        self._metrics = metrics
        self._now = now
        self._wall_us = wall_us
        self._jobs: dict[str, _Job] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Jobs with series and without a session, the one longest so first: they make room for new series."""
        self._count = 0
        metrics.show_series(self.newest)

    def __len__(self) -> int:
        return self._count

    def open(self, job: str, rank: int, run: int) -> Source:
        """Begins to take what one session logs. The series of an earlier run of the job are forgotten."""
        known = self._jobs.get(job)
        if known is None or known.run != run:
            self.forget(job)
            known = self._jobs[job] = _Job(run)
        self._idle.pop(job, None)
        source = known.sources[rank] = Source(job, rank, float(limits.SAMPLES_BURST), self._now())
        return source

    def close(self, source: Source) -> None:
        """Ends what `open` began; the series stay."""
        job = self._jobs.get(source.job)
        if job is None or job.sources.get(source.rank) is not source:
            return
        del job.sources[source.rank]
        if not job.sources and not job.series and not job.dropped:
            del self._jobs[source.job]
        elif not job.sources:
            self._idle[source.job] = None

    def forget(self, job: str) -> None:
        """Forgets the series of a job."""
        known = self._jobs.pop(job, None)
        self._idle.pop(job, None)
        if known is not None:
            self._count -= len(known.series)

    def take(self, source: Source, samples: Iterable[Sample], count: int, refused: int = 0) -> None:
        """Takes what a session logged, as far as the limits allow.

        Args:
            source: What `open` gave. If another took its place, nothing is taken.
            samples: The samples; what is too much of them is not looked at.
            count: How many they are.
            refused: How many values its program has not kept by itself since it last told.
        """
        job = self._jobs.get(source.job)
        if job is None or job.sources.get(source.rank) is not source:
            return
        allowed = self._allowance(source, count)
        time_us = self._wall_us()
        taken = 0
        dropped = {"rate": count - allowed, "program": min(max(0, refused), _DROPPED_MAX)}
        for sample in islice(samples, allowed):
            why = self._why_not(job, source, sample)
            if why:
                dropped[why] = dropped.get(why, 0) + 1
                continue
            key = sample.name, source.rank
            series = job.series.get(key)
            if series is None:
                series = job.series[key] = Series(limits.POINTS_PER_SERIES)
                job.per_rank[source.rank] = job.per_rank.get(source.rank, 0) + 1
                self._count += 1
            elif len(series) and _same(series.last, sample):
                continue  # told again after a break
            series.add(sample.step, sample.value, time_us)
            taken += 1
        self._metrics.job_samples.inc(taken)
        self._tell(job, source, dropped)

    def _allowance(self, source: Source, wanted: int) -> int:
        now = self._now()
        source.left = refilled(source.left, now - source.since, limits.SAMPLES_PER_SECOND, limits.SAMPLES_BURST)
        source.since = now
        allowed = min(wanted, int(source.left))
        source.left -= allowed
        return allowed

    def _why_not(self, job: _Job, source: Source, sample: Sample) -> str:
        """Returns why a sample is dropped, ``""`` if it is not."""
        if (sample.name, source.rank) in job.series:
            return "" if 0 <= sample.step <= STEP_MAX else "invalid"
        if not is_series_name(sample.name) or not 0 <= sample.step <= STEP_MAX:
            return "invalid"
        if job.per_rank.get(source.rank, 0) >= limits.SERIES_PER_RANK or len(job.series) >= limits.SERIES_PER_JOB:
            return "series"
        while self._count >= limits.SERIES:
            if not self._idle:
                return "series"
            self.forget(next(iter(self._idle)))
        return ""

    def _tell(self, job: _Job, source: Source, dropped: dict[str, int]) -> None:
        for reason, count in dropped.items():
            if count:
                job.dropped += count
                self._metrics.job_samples_dropped.labels(reason).inc(count)
        if any(dropped.values()) and not source.warned:
            source.warned = True
            words = ", ".join(f"{count} ({reason})" for reason, count in dropped.items() if count)
            log.warning(
                "job %s: rank %d logs more than is kept, training is not disturbed; values dropped: %s",
                source.job,
                source.rank,
                words,
            )

    def dropped(self, job: str) -> int:
        """Returns how many values of a job's run were dropped since the daemon started."""
        known = self._jobs.get(job)
        return 0 if known is None else known.dropped

    def series(
        self, job: str, names: Collection[str] = (), rank: int | None = None
    ) -> list[tuple[tuple[str, int], Series]]:
        """Returns series of a job with their name and rank, by name, then by rank.

        Args:
            job: The job's name.
            names: Only those of these names; empty for all.
            rank: Only those of this rank; None for all.
        """
        known = self._jobs.get(job)
        if known is None:
            return []
        chosen = (
            (key, series)
            for key, series in known.series.items()
            if (not names or key[0] in names) and rank in (None, key[1]) and len(series)
        )
        return sorted(chosen, key=lambda item: item[0])

    def newest(self) -> Iterator[tuple[str, int, str, float]]:
        """Yields job, rank, name and newest value of each series whose rank is connected."""
        for name, job in self._jobs.items():
            for (series_name, rank), series in job.series.items():
                if rank in job.sources and len(series):
                    yield name, rank, series_name, series.last[1]


def _same(last: tuple[int, float, int], sample: Sample) -> bool:
    step, value, _ = last
    return step == sample.step and (value == sample.value or (math.isnan(value) and math.isnan(sample.value)))
