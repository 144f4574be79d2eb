"""The daemon's metrics: their names, units and meaning, in one place."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from livetuned.domain import limits

_LATENCY = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)

Newest = Callable[[], Iterable[tuple[str, int, str, float]]]
"""Gives job, rank, name and newest value of each series that connected programs log."""


class _Logged(Collector):
    """What programs log, as of the scrape. The only labels that programs choose: bounded, and the bound is seen."""

    def __init__(self, newest: Newest) -> None:
        self._newest = newest

    def collect(self) -> Iterator[Metric]:
        """Yields the newest values, and how many are left out."""
        values = GaugeMetricFamily(
            "livetune_job_metric",
            "Newest value that a connected rank of a job logged under a name.",
            labels=["job", "rank", "name"],
        )
        series = iter(self._newest())
        for job, rank, name, value in islice(series, limits.SERIES_ON_PAGE):
            values.add_metric([job, str(rank), name], value)
        yield values
        yield GaugeMetricFamily(
            "livetune_job_metric_series_hidden",
            "Series of connected ranks that are not on this page, because there are too many.",
            value=sum(1 for _ in series),
        )


class Metrics:
    """All metrics of one daemon, in a registry of its own.

    Args:
        version: The daemon's version, for the build information.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Gauge("livetune_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self.job_ports = Gauge("livetune_job_ports", "Designated job ports in use.", registry=self.registry)
        self.changes = Counter(
            "livetune_changes",
            "Requests to change variables or fire triggers: accepted, repeated, or the reason of the refusal.",
            ["result"],
            registry=self.registry,
        )
        self.applies = Counter(
            "livetune_applies",
            "Outcomes that ranks acknowledged, by status: applied, refused or superseded.",
            ["status"],
            registry=self.registry,
        )
        self.apply_seconds = Histogram(
            "livetune_apply_seconds",
            "From the commit of a change to the acknowledgement of a rank connected all the while, in seconds.",
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "livetune_commit_seconds",
            "Duration of one commit to the store, fsync included, in seconds.",
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.commit_records = Histogram(
            "livetune_commit_records",
            "Records in one commit.",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 512),
            registry=self.registry,
        )
        self.store_damaged = Gauge(
            "livetune_store_damaged",
            "1 if a part of the history was found damaged: it is not served, the rest is.",
            registry=self.registry,
        )
        self.watchers = Gauge("livetune_watchers", "Watch streams open.", registry=self.registry)
        self.sessions = Gauge("livetune_sessions", "Open sessions of training processes.", registry=self.registry)
        self.revision = Gauge("livetune_revision", "Revision of the last committed record.", registry=self.registry)
        self.rpc = Counter(
            "livetune_rpc",
            "Calls answered, by method and gRPC status.",
            ["method", "code"],
            registry=self.registry,
        )
        self.job_samples = Counter(
            "livetune_job_metric_samples",
            "Samples of what programs log that were taken.",
            registry=self.registry,
        )
        self.job_samples_dropped = Counter(
            "livetune_job_metric_samples_dropped",
            "Samples of what programs log that were dropped: too many series, too often (rate), no name or step "
            "(invalid), or not sent, because one program logs under too many names (program).",
            ["reason"],
            registry=self.registry,
        )
        build = Gauge(
            "livetune_build_info",
            "1, with the version of the daemon.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(version, platform.python_version()).set(1)

    def show_series(self, newest: Newest) -> None:
        """Shows on the page what programs log."""
        self.registry.register(_Logged(newest))
