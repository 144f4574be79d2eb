"""What all decisions share: refusals by name, and checks of what any caller sends."""

from __future__ import annotations

from collections.abc import Collection

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job
from livetuned.domain.names import nearest
from livetuned.domain.specs import check_text
from livetuned.domain.values import utf8_length


def job_not_found(name: str, known: Collection[str]) -> DomainError:
    """Builds the refusal for a job that does not exist, with the nearest name."""
    close = nearest(name, known)
    hint = f"; did you mean '{close}'?" if close else ("" if known else "; there are no jobs")
    metadata = {"job": name, **({"nearest": close} if close else {})}
    return DomainError(Reason.JOB_NOT_FOUND, f"job '{name}' not found{hint}", **metadata)


def name_not_found(job: Job, kind: str, name: str) -> DomainError:
    """Builds the refusal for a variable or trigger that a job does not have, with the nearest name."""
    variables, triggers = job.variables, job.triggers
    wanted, other = (variables, triggers) if kind == "variable" else (triggers, variables)
    reason = Reason.VARIABLE_NOT_FOUND if kind == "variable" else Reason.TRIGGER_NOT_FOUND
    metadata = {"job": job.name, kind: name}
    if name in other:
        hint = f"; '{name}' is a {'trigger' if kind == 'variable' else 'variable'}"
    elif close := nearest(name, wanted):
        hint = f"; did you mean '{close}'?"
        metadata["nearest"] = close
    else:
        listed = ", ".join(sorted(wanted)[:10]) + (", ..." if len(wanted) > 10 else "")
        hint = f"; it has {listed}" if wanted else f"; it has no {kind}s"
    return DomainError(reason, f"job '{job.name}' has no {kind} '{name}'{hint}", **metadata)


def check_open(job: Job) -> None:
    """Checks that a job has not ended.

    Raises:
        DomainError: JOB_ENDED.
    """
    if job.ended is not None:
        how = "failed" if job.ended.failed else "finished"
        raise DomainError(
            Reason.JOB_ENDED, f"job '{job.name}' has {how} at step {job.ended.step}: nothing applies changes any more",
            job=job.name,
        )  # fmt: skip


def check_count(count: int, what: str) -> None:
    """Checks how many things one request names.

    Raises:
        DomainError: INVALID_REQUEST for none, LIMIT_EXCEEDED for too many.
    """
    if count == 0:
        raise DomainError(Reason.INVALID_REQUEST, f"the request names no {what}", rule=f"at least one {what}")
    if count > limits.ASSIGNMENTS_PER_CHANGE:
        raise limit_exceeded(
            "assignments_per_change", limits.ASSIGNMENTS_PER_CHANGE, f"the request names {count:,} {what}s"
        )


def check_caller(actor: str, reason: str, request_id: str) -> None:
    """Checks what a caller says of himself.

    Raises:
        DomainError: LIMIT_EXCEEDED.
    """
    check_text("actor", actor)
    check_text("reason", reason)
    check_id("request id", request_id)


def check_id(what: str, text: str) -> str:
    """Returns an opaque id if it is not too long.

    Raises:
        DomainError: LIMIT_EXCEEDED.
    """
    if utf8_length(text) > limits.REQUEST_ID_BYTES:
        raise limit_exceeded("request_id_bytes", limits.REQUEST_ID_BYTES, what)
    return text
