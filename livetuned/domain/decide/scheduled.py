"""Changes that wait for their step: to schedule one, to cancel it, and what is recorded when the step has come."""

from __future__ import annotations

from livetuned.domain import limits
from livetuned.domain.decide.changes import check_same
from livetuned.domain.decide.common import check_caller, check_count, check_open, name_not_found
from livetuned.domain.decide.processes import check_registered
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.frozen import dataclass
from livetuned.domain.job import Job, ScheduledState
from livetuned.domain.records import Assignment, Cancelled, Changed, Firing, Scheduled
from livetuned.domain.specs import VariableSpec
from livetuned.domain.values import INT_MAX, Value


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
    _check_room(job)
    return Scheduled(step, change)


@dataclass(frozen=True, slots=True)
class Kept:
    """A change that a checkpoint has waiting for its step."""

    revision: int
    """At which it was scheduled, perhaps in another run or store."""
    step: int
    values: tuple[tuple[str, Value], ...]
    triggers: tuple[str, ...]
    actor: str
    reason: str


def reschedule(job: Job, rank: int, instance_id: str, kept: Kept) -> Scheduled | None:
    """Decides to let a change wait that a process took over from a checkpoint.

    Returns:
        None if it waits already: it was said before, or another rank has said it.

    Raises:
        DomainError: NOT_REGISTERED, JOB_ENDED, VARIABLE_NOT_FOUND, TRIGGER_NOT_FOUND, LIMIT_EXCEEDED, or what
            `VariableSpec.check` raises.
    """
    check_open(check_registered(job, job.name, rank, instance_id))
    check_caller(kept.actor, kept.reason, "")
    check_count(len(kept.values) + len(kept.triggers), "variable")
    if any(state.scheduled.change.scheduled == kept.revision for _, state in job.waiting()):
        return None
    assignments, firings = [], []
    for name, value in kept.values:
        variable = job.variables.get(name)
        if variable is None:
            raise name_not_found(job, "variable", name)
        assignments.append(Assignment(name, variable.desired, variable.spec.check(value)))
    for name in kept.triggers:
        trigger = job.triggers.get(name)
        if trigger is None:
            raise name_not_found(job, "trigger", name)
        firings.append(Firing(name, trigger.fired + 1))
    _check_room(job)
    change = Changed(kept.actor, kept.reason, "", tuple(assignments), tuple(firings), scheduled=kept.revision)
    return Scheduled(kept.step, change)


def _check_room(job: Job) -> None:
    if sum(1 for _ in job.waiting()) >= limits.SCHEDULED:
        raise limit_exceeded("scheduled", limits.SCHEDULED, f"changes of job '{job.name}' that wait for their step")


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
    return f"it was made, at revision {state.made}" if state.made else "it was cancelled"


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
