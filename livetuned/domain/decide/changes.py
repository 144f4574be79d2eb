"""What people wish: new values, firings, undoing."""

from __future__ import annotations

from collections.abc import Sequence

from livetuned.domain import limits
from livetuned.domain.decide.common import check_caller, check_count, check_open, name_not_found
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.frozen import dataclass
from livetuned.domain.job import Job, VariableState
from livetuned.domain.names import check_identifier
from livetuned.domain.records import Assignment, Changed, Firing, Record
from livetuned.domain.values import Value, coerce, parse_text, shown, type_of


@dataclass(frozen=True, slots=True)
class Update:
    """A wish for one variable: a typed value, or text as a person types it."""

    variable: str
    value: Value | None = None
    text: str | None = None
    if_revision: int | None = None
    """Only if this variable was not changed after this revision."""


def set_variables(
    job: Job,
    updates: Sequence[Update],
    *,
    if_revision: int | None = None,
    if_job_revision: int | None = None,
    actor: str = "",
    reason: str = "",
    request_id: str = "",
) -> Changed:
    """Decides a change of variables: all of them or none.

    Args:
        job: The job's state.
        updates: What is wished, each variable at most once.
        if_revision: Only if none of the variables was changed after this revision.
        if_job_revision: Only if no change of the job was accepted after this revision.
        actor: Who asks.
        reason: Why, in the words of whoever asks.
        request_id: The caller's name for this change.

    Raises:
        DomainError: JOB_ENDED, INVALID_REQUEST, VARIABLE_NOT_FOUND, REVISION_MISMATCH, LIMIT_EXCEEDED, or what
            `VariableSpec.check` and `parse_text` raise.
    """
    check_open(job)
    check_count(len(updates), "variable")
    check_caller(actor, reason, request_id)
    assignments: dict[str, Assignment] = {}
    for update in updates:
        state = job.variables.get(update.variable)
        if state is None:
            check_identifier("variable", update.variable)
            raise name_not_found(job, "variable", update.variable)
        if update.variable in assignments:
            raise DomainError(
                Reason.INVALID_REQUEST,
                f"variable '{update.variable}' is named twice in one change",
                variable=update.variable,
                rule="each variable once",
            )
        assignments[update.variable] = Assignment(update.variable, state.desired, _wished(state, update))
    if if_job_revision is not None and job.changed > if_job_revision:
        raise DomainError(
            Reason.REVISION_MISMATCH,
            f"job '{job.name}' was changed at revision {job.changed}, after revision {if_job_revision}: "
            "look at it again before you change it",
            job=job.name,
            rule=f"revision <= {if_job_revision}",
            value=str(job.changed),
        )
    for update in updates:
        if if_revision is not None:
            _check_revision(job.variables[update.variable], if_revision)
        if update.if_revision is not None:
            _check_revision(job.variables[update.variable], update.if_revision)
    return Changed(actor, reason, request_id, tuple(assignments.values()), ())


def _wished(state: VariableState, update: Update) -> Value:
    if update.text is not None:
        return state.spec.check(parse_text(update.variable, state.spec.type, update.text))
    if update.value is not None:
        return state.spec.check(update.value)
    raise DomainError(
        Reason.INVALID_REQUEST,
        f"variable '{update.variable}': no value given",
        variable=update.variable,
        rule="a value",
    )


def _check_revision(state: VariableState, if_revision: int) -> None:
    if state.revision > if_revision:
        raise DomainError(
            Reason.REVISION_MISMATCH,
            f"variable '{state.spec.name}' was changed at revision {state.revision}, after revision {if_revision}: "
            "look at it again before you change it",
            variable=state.spec.name,
            rule=f"revision <= {if_revision}",
            value=str(state.revision),
        )


def undo(
    job: Job,
    undone: Record,
    *,
    force: bool = False,
    actor: str = "",
    reason: str = "",
    request_id: str = "",
) -> Changed:
    """Decides a change that restores the values which another change replaced.

    Args:
        job: The job's state.
        undone: The change to undo, one of this job's.
        force: Restore also variables that were changed again since.
        actor: Who asks.
        reason: Why; ``""`` for "undo of N".
        request_id: The caller's name for this change.

    Raises:
        DomainError: JOB_ENDED, INVALID_REQUEST (it assigned nothing), VARIABLE_NOT_FOUND, UNDO_CONFLICT,
            LIMIT_EXCEEDED, or what `VariableSpec.check` raises if an old value is not allowed any more.
    """
    check_open(job)
    check_caller(actor, reason, request_id)
    changed = undone.payload
    if not isinstance(changed, Changed):
        raise _not_a_change(job, undone.revision)
    if not changed.assignments:
        raise DomainError(
            Reason.INVALID_REQUEST,
            f"change {undone.revision} of job '{job.name}' fired triggers: a firing can't be undone",
            job=job.name,
            rule="a change of variables",
            value=str(undone.revision),
        )
    assignments = []
    for assignment in changed.assignments:
        state = job.variables.get(assignment.variable)
        if state is None:
            raise name_not_found(job, "variable", assignment.variable)
        if state.revision != undone.revision and not force:
            raise DomainError(
                Reason.UNDO_CONFLICT,
                f"variable '{assignment.variable}' was set anew at revision {state.revision}, after change "
                f"{undone.revision}: undoing it would overwrite that",
                variable=assignment.variable,
                rule=f"not set after revision {undone.revision}",
                value=str(state.revision),
            )
        assignments.append(Assignment(assignment.variable, state.desired, state.spec.check(assignment.old)))
    return Changed(
        actor, reason or f"undo of {undone.revision}", request_id, tuple(assignments), (), undoes=undone.revision
    )


def _not_a_change(job: Job, revision: int) -> DomainError:
    return DomainError(
        Reason.CHANGE_NOT_FOUND,
        f"job '{job.name}' has no change of revision {revision}, or it was compacted away",
        job=job.name,
        value=str(revision),
    )


def find_change(job: Job, revision: int, found: Sequence[Record]) -> Record:
    """Returns the change of a revision out of what the store found.

    Raises:
        DomainError: CHANGE_NOT_FOUND.
    """
    for record in found:
        if record.revision == revision and isinstance(record.payload, Changed):
            return record
    raise _not_a_change(job, revision)


def check_same_set(changed: Changed, updates: Sequence[Update]) -> None:
    """Checks that a change made earlier under a request id is the one that is asked for now.

    Raises:
        DomainError: REQUEST_ID_REUSED, or what reading the values raises.
    """
    made = {assignment.variable: assignment.new for assignment in changed.assignments}
    same = {update.variable for update in updates} == set(made) and len(updates) == len(made)
    for update in updates if same else ():
        new = made[update.variable]
        if update.text is not None:
            same = same and parse_text(update.variable, type_of(new), update.text) == new
        elif update.value is not None:
            same = same and coerce(update.variable, type_of(new), update.value) == new
    check_same(changed, same=same and not changed.undoes)


def check_same_firing(changed: Changed, names: Sequence[str]) -> None:
    """Checks that a firing made earlier under a request id is the one that is asked for now.

    Raises:
        DomainError: REQUEST_ID_REUSED.
    """
    check_same(changed, same=sorted(names) == sorted(firing.trigger for firing in changed.firings))


def check_same_undo(changed: Changed, revision: int) -> None:
    """Checks that an undo made earlier under a request id is the one that is asked for now.

    Raises:
        DomainError: REQUEST_ID_REUSED.
    """
    check_same(changed, same=changed.undoes == revision)


def check_same(changed: Changed, *, same: bool) -> None:
    """Refuses what is not the change that was made earlier under its request id.

    Raises:
        DomainError: REQUEST_ID_REUSED.
    """
    if not same:
        parts = [f"{item.variable}={shown(item.new)}" for item in changed.assignments]
        parts += [f"fire {item.trigger}" for item in changed.firings]
        raise DomainError(
            Reason.REQUEST_ID_REUSED,
            f"request id '{changed.request_id}' was used for another change: {', '.join(parts[:5])}",
            rule="one request id for one change",
            value=changed.request_id,
        )


def fire_triggers(
    job: Job, names: Sequence[str], *, merge: bool = False, actor: str = "", reason: str = "", request_id: str = ""
) -> Changed | None:
    """Decides a firing of triggers: all of them or none.

    Args:
        job: The job's state.
        names: The triggers, each at most once.
        merge: Leave out triggers that have a firing which waits to be consumed.
        actor: Who asks.
        reason: Why.
        request_id: The caller's name for this firing.

    Returns:
        None if `merge` left nothing to fire.

    Raises:
        DomainError: JOB_ENDED, INVALID_REQUEST, TRIGGER_NOT_FOUND or LIMIT_EXCEEDED.
    """
    check_open(job)
    check_count(len(names), "trigger")
    check_caller(actor, reason, request_id)
    firings: dict[str, Firing] = {}
    for name in names:
        state = job.triggers.get(name)
        if state is None:
            check_identifier("trigger", name)
            raise name_not_found(job, "trigger", name)
        if name in firings:
            raise DomainError(
                Reason.INVALID_REQUEST,
                f"trigger '{name}' is named twice in one change",
                trigger=name,
                rule="each once",
            )
        if len(state.pending) >= limits.PENDING_FIRINGS and not merge:
            raise limit_exceeded(
                "pending_firings", limits.PENDING_FIRINGS, f"trigger '{name}' has firings not consumed yet"
            )
        firings[name] = Firing(name, state.fired + 1)
    if merge:
        firings = {name: firing for name, firing in firings.items() if not job.triggers[name].pending}
    return Changed(actor, reason, request_id, (), tuple(firings.values())) if firings else None
