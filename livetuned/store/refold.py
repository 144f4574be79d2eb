"""Folding a log whose beginning may be missing: what can be known of the jobs from what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Record, Registered, Removed
from livetuned.store import codec


class Refold:
    """Folds records in their order.

    Args:
        complete: The log begins with the first record ever: then nothing may be unknown.
        jobs: Jobs that are known beforehand, each as of its own revision.

    Attributes:
        jobs: What is known, by name.
        unknown: By name of a job of which there are records and not its beginning: the first of them.
    """

    def __init__(self, *, complete: bool, jobs: Mapping[str, Job] | None = None) -> None:
        self._complete = complete
        self.jobs = dict(jobs or {})
        self.unknown: dict[str, int] = {}
        self._partly: set[str] = set()

    def fold(self, record: Record) -> None:
        """Moves what is known by one record.

        Raises:
            ValueError: The record does not follow from what is known.
        """
        name, payload = record.job, record.payload
        before = self.jobs.get(name)
        if before is not None and record.revision <= before.revision:
            return
        if before is None and not self._complete:
            if not isinstance(payload, Registered) or payload.resumed:
                self.unknown.setdefault(name, record.revision)
                if isinstance(payload, Removed):
                    del self.unknown[name]
                return
            self.unknown.pop(name, None)
            if payload.run > 1:
                self._partly.add(name)
        try:
            after = evolve(before, record)
        except KeyError as error:
            raise ValueError(f"record {record.revision} names {error}, which job {name!r} does not have") from error
        if after is None:
            del self.jobs[name]
            self._partly.discard(name)
        else:
            self.jobs[name] = after

    def differs(self, other: Job) -> bool:
        """Tells whether a job is another than these records make it."""
        job = self.jobs[other.name]
        if other.name in self._partly:
            # Of the runs before only this is kept in a job.
            job = replace(job, requests=other.requests, changed=other.changed)
        return codec.encode_job(job) != codec.encode_job(other)
