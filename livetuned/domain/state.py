"""The state of all jobs: the fold over the log, from its first record."""

from __future__ import annotations

from livetuned.domain.job import Job, evolve
from livetuned.domain.records import Record


class State:
    """All jobs as of a revision.

    Attributes:
        jobs: By name. The values are immutable; a reader may keep one.
        revision: Revision of the last record folded in, 0 for none.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.revision = 0

    def fold(self, record: Record) -> Job:
        """Moves the state by one record and returns the job it touched.

        Raises:
            ValueError: The record is not the next one, or does not follow from the state.
        """
        if record.revision != self.revision + 1:
            raise ValueError(f"record {record.revision} does not follow revision {self.revision}")
        job = evolve(self.jobs.get(record.job), record)
        self.jobs[record.job] = job
        self.revision = record.revision
        return job
