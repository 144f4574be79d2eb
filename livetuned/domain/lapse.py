"""What became of changes that nobody acknowledged: which of them still wait, and which can't happen any more."""

from __future__ import annotations

from collections.abc import Collection

from livetuned.domain.job import Job
from livetuned.domain.records import Changed


def lapsed(job: Job | None, revision: int, changed: Changed, acknowledged: Collection[str]) -> list[str]:
    """Names the parts of a change that no rank has acknowledged and none will any more.

    A rank acknowledges the changes of one variable in order, so an older one is overtaken as soon as every rank has
    acknowledged a newer one. What an ended run has not taken, it never will.

    Args:
        job: The job's state, None if it was removed.
        revision: The change's revision.
        changed: The change.
        acknowledged: Names of the change that some rank has acknowledged.
    """
    over = job is None or job.ended is not None or revision < job.run_revision
    names = [
        assignment.variable
        for assignment in changed.assignments
        if over or job is None or _overtaken(job, assignment.variable, revision)
    ]
    names += [
        firing.trigger
        for firing in changed.firings
        if over or job is None or revision not in job.triggers[firing.trigger].pending
    ]
    return [name for name in names if name not in acknowledged]


def _overtaken(job: Job, variable: str, revision: int) -> bool:
    newest = job.variables[variable].acknowledged
    return all(newest.get(rank, 0) > revision for rank in job.ranks)
