"""Changes that wait for their step: to schedule one, to cancel it, and what is recorded when the step has come."""

from __future__ import annotations

from livetuned.domain import limits
from livetuned.domain.decide.changes import check_same
from livetuned.domain.decide.common import check_caller, check_open
from livetuned.domain.decide.processes import check_registered
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.frozen import dataclass
from livetuned.domain.job import Job, ScheduledState
from livetuned.domain.records import Assignment, Cancelled, Changed, Firing, Scheduled
from livetuned.domain.specs import VariableSpec
from livetuned.domain.values import INT_MAX


@dataclass(frozen=True, slots=True)
class When:
    """The step at which a change is to take effect."""

    step: int
    relative: bool = False
    """`step` counts from where the job is."""


def schedule(job: Job, change: Changed, when: When, reached: int) -> Scheduled:
    """Decides to let a change wait.

    Args:
        job: The job's state.
        change: What is to be made, as it was decided.
        when: At which step.
        reached: The step that the job was last heard to be at; 0 before the first.

    Raises:
        DomainError: INVALID_REQUEST for a number of steps that is none, STEP_PASSED, or LIMIT_EXCEEDED.
    """
    if when.relative and when.step < 1:
        raise DomainError(
            Reason.INVALID_REQUEST, f"a change can't take effect in {when.step} steps", rule="at least 1",
            value=str(when.step),
        )  # fmt: skip
    step = reached + when.step if when.relative else when.step
    if step > INT_MAX:
        raise DomainError(Reason.INVALID_REQUEST, f"step {step} is none", rule=f"<= {INT_MAX}", value=str(step))
    if step <= reached:
        raise DomainError(
            Reason.STEP_PASSED, f"step {step} has passed: job '{job.name}' is at step {reached}", job=job.name,
            rule=f"> {reached}", value=str(step),
        )  # fmt: skip
    if sum(1 for _ in job.waiting()) >= limits.SCHEDULED:
        raise limit_exceeded("scheduled", limits.SCHEDULED, f"changes of job '{job.name}' that wait for their step")
    return Scheduled(step, change)


def check_same_step(made: Changed, step: int, when: When | None) -> None:
    """Checks that a change made earlier under a request id was to wait for the step that is asked for now.

    Args:
        made: The change.
        step: The step that it waits for, 0 for none.
        when: What is asked for; where that counts from the job's step, any step is the same.

    Raises:
        DomainError: REQUEST_ID_REUSED.
    """
    waits = bool(step) if when is None or when.relative else step == when.step
    check_same(made, same=waits == (when is not None))


def made_of(job: Job, revision: int) -> int:
    """Returns the revision of the change that was made of a scheduled one, `revision` itself for any other.

    Raises:
        DomainError: INVALID_REQUEST if it waits, or was cancelled: there is nothing to undo.
    """
    state = job.scheduled.get(revision)
    if state is None:
        return revision
    if not state.made:
        how = "was cancelled" if state.cancelled else f"waits for step {state.scheduled.step}: cancel it"
        raise DomainError(
            Reason.INVALID_REQUEST, f"change {revision} of job '{job.name}' {how}; there is nothing to undo",
            job=job.name, value=str(revision),
        )  # fmt: skip
    return state.made


def cancel(job: Job, revision: int, *, actor: str = "", reason: str = "") -> Cancelled:
    """Decides that a change does not wait any more.

    Raises:
        DomainError: JOB_ENDED, LIMIT_EXCEEDED, or CHANGE_NOT_FOUND if no such change waits.
    """
    check_open(job)
    check_caller(actor, reason, "")
    state = job.scheduled.get(revision)
    if state is None or not state.waits:
        raise DomainError(
            Reason.CHANGE_NOT_FOUND,
            f"change {revision} of job '{job.name}' does not wait for a step: {_why(state)}",
            job=job.name,
            value=str(revision),
        )
    return Cancelled(revision, actor, reason)


def _why(state: ScheduledState | None) -> str:
    if state is None:
        return "none was scheduled at that revision"
    return "it was cancelled" if state.cancelled else f"it was made, at revision {state.made}"


def due(job: Job, rank: int, instance_id: str, revision: int) -> Changed | None:
    """Decides the change that a scheduled one becomes when a rank says that its step has come.

    A cancelled one becomes it as well: the rank was at that step before it heard.

    Returns:
        None if it was made already, for another rank or in a connection that broke.

    Raises:
        DomainError: NOT_REGISTERED, JOB_ENDED, or CHANGE_NOT_FOUND if it is not known (any more).
    """
    check_open(check_registered(job, job.name, rank, instance_id))
    state = job.scheduled.get(revision)
    if state is None:
        raise DomainError(
            Reason.CHANGE_NOT_FOUND, f"change {revision} of job '{job.name}': {_why(state)}", job=job.name,
            value=str(revision),
        )  # fmt: skip
    if state.made:
        return None
    change = state.scheduled.change
    assignments = []
    for item in change.assignments:
        known = job.variables[item.variable]
        if _allows(known.spec, item):  # its program may have been started again since, with other limits
            assignments.append(Assignment(item.variable, known.desired, item.new))
    firings = tuple(Firing(item.trigger, job.triggers[item.trigger].fired + 1) for item in change.firings)
    return Changed(change.actor, change.reason, "", tuple(assignments), firings, change.undoes, revision)


def _allows(spec: VariableSpec, assignment: Assignment) -> bool:
    try:
        spec.check(assignment.new)
    except DomainError:
        return False
    return True
