"""The state of all jobs: the fold over the log, from its first record or from snapshots of the jobs."""

from __future__ import annotations

from collections.abc import Iterable

from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Record


class State:
    """All jobs as of a revision.

    Args:
        jobs: Snapshots of jobs, each as of its own `Job.revision`.
        covered: Every record up to this revision is part of the snapshots.

    Attributes:
        jobs: By name. The values are immutable; a reader may keep one.
        revision: Revision of the last record folded in, 0 for none.
    """

    def __init__(self, jobs: Iterable[Job] = (), covered: int = 0) -> None:
        self.jobs: dict[str, Job] = {job.name: job for job in jobs}
        self.revision = covered

    def fold(self, record: Record) -> bool:
        """Moves the state by one record.

        Returns:
            Whether it did: a record that the job's snapshot holds already changes nothing.

        Raises:
            ValueError: The record is not the next one, or does not follow from the state.
        """
        if record.revision != self.revision + 1:
            raise ValueError(f"record {record.revision} does not follow revision {self.revision}")
        self.revision = record.revision
        before = self.jobs.get(record.job)
        if before is not None and record.revision <= before.revision:
            return False
        self._put(record.job, evolve(before, record))
        return True

    def move(self, record: Record, after: Job | None) -> None:
        """Moves the state by one record whose outcome is known: `after` is what `evolve` makes of it.

        Raises:
            ValueError: The record is not the next one.
        """
        if record.revision != self.revision + 1:
            raise ValueError(f"record {record.revision} does not follow revision {self.revision}")
        self.revision = record.revision
        self._put(record.job, after)

    def _put(self, name: str, job: Job | None) -> None:
        if job is None:
            del self.jobs[name]
        else:
            self.jobs[name] = job
