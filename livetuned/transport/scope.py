"""Which job a request speaks of: the one it names, or the one whose port it came in by."""

from __future__ import annotations

from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.names import parse_job_resource


def scoped_job(scope: str, resource: str) -> str:
    """Returns the job that a request speaks of.

    Args:
        scope: The job whose port the request came in by, ``""`` for none.
        resource: What the request names: ``jobs/{job}``, or nothing on a job's port.

    Raises:
        DomainError: INVALID_REQUEST, INVALID_NAME, or JOB_NOT_FOUND for another job than the port's.
    """
    if not resource:
        if not scope:
            raise DomainError(Reason.INVALID_REQUEST, "the request names no job", rule="jobs/JOB")
        return scope
    job = parse_job_resource(resource)
    if scope and job != scope:
        raise DomainError(
            Reason.JOB_NOT_FOUND,
            f"job '{job}' is not served here: this is the port of job '{scope}'",
            job=job,
        )
    return job
