"""Decisions: given a job's state and a wish, the payload of the record that grants it, or the reason why not.

Every function is pure. The engine calls them one after the other and commits what they return; whatever they raise is
the caller's answer, and nothing has happened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job, VariableState
from livetuned.domain.names import check_identifier, check_job_name, nearest
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Assignment,
    Changed,
    Declared,
    DeclaredVariable,
    Ended,
    Firing,
    Outcome,
    Process,
    Registered,
)
from livetuned.domain.specs import TriggerSpec, VariableSpec, check_text
from livetuned.domain.values import Value, parse_text


@dataclass(frozen=True, slots=True)
class Update:
    """A wish for one variable: a typed value, or text as a person types it."""

    variable: str
    value: Value | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """A variable as a process declares it, with what the process uses now."""

    spec: VariableSpec
    current: Value


def job_not_found(name: str, known: Collection[str]) -> DomainError:
    """Builds the refusal for a job that does not exist, with the nearest name."""
    close = nearest(name, known)
    hint = f"; did you mean '{close}'?" if close else ("" if known else "; there are no jobs")
    metadata = {"job": name, **({"nearest": close} if close else {})}
    return DomainError(Reason.JOB_NOT_FOUND, f"job '{name}' not found{hint}", **metadata)


def _name_not_found(job: Job, kind: str, name: str) -> DomainError:
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


def _check_open(job: Job) -> None:
    if job.ended is not None:
        how = "failed" if job.ended.failed else "finished"
        raise DomainError(
            Reason.JOB_ENDED, f"job '{job.name}' has {how} at step {job.ended.step}: nothing applies changes any more",
            job=job.name,
        )  # fmt: skip


def _check_count(count: int, what: str) -> None:
    if count == 0:
        raise DomainError(Reason.INVALID_REQUEST, f"the request names no {what}", rule=f"at least one {what}")
    if count > limits.ASSIGNMENTS_PER_CHANGE:
        raise limit_exceeded(
            "assignments_per_change", limits.ASSIGNMENTS_PER_CHANGE, f"the request names {count:,} {what}s"
        )


def _check_caller(actor: str, reason: str, request_id: str) -> None:
    check_text("actor", actor)
    check_text("reason", reason)
    check_id("request id", request_id)


def check_id(what: str, text: str) -> str:
    """Returns an opaque id if it is not too long.

    Raises:
        DomainError: LIMIT_EXCEEDED.
    """
    if len(text.encode("utf-8", "surrogatepass")) > limits.REQUEST_ID_BYTES:
        raise limit_exceeded("request_id_bytes", limits.REQUEST_ID_BYTES, what)
    return text


def set_variables(
    job: Job,
    updates: Sequence[Update],
    *,
    if_revision: int | None = None,
    actor: str = "",
    reason: str = "",
    request_id: str = "",
) -> Changed:
    """Decides a change of variables: all of them or none.

    Args:
        job: The job's state.
        updates: What is wished, each variable at most once.
        if_revision: Only if none of the variables was changed after this revision.
        actor: Who asks.
        reason: Why, in the words of whoever asks.
        request_id: The caller's name for this change.

    Raises:
        DomainError: JOB_ENDED, INVALID_REQUEST, VARIABLE_NOT_FOUND, REVISION_MISMATCH, LIMIT_EXCEEDED, or what
            `VariableSpec.check` and `parse_text` raise.
    """
    _check_open(job)
    _check_count(len(updates), "variable")
    _check_caller(actor, reason, request_id)
    assignments: dict[str, Assignment] = {}
    for update in updates:
        check_identifier("variable", update.variable)
        state = job.variables.get(update.variable)
        if state is None:
            raise _name_not_found(job, "variable", update.variable)
        if update.variable in assignments:
            raise DomainError(
                Reason.INVALID_REQUEST,
                f"variable '{update.variable}' is named twice in one change",
                variable=update.variable,
                rule="each variable once",
            )
        assignments[update.variable] = Assignment(update.variable, state.desired, _wished(state, update))
    if if_revision is not None:
        for name in assignments:
            _check_revision(job.variables[name], if_revision)
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


def fire_triggers(
    job: Job, names: Sequence[str], *, actor: str = "", reason: str = "", request_id: str = ""
) -> Changed:
    """Decides a firing of triggers: all of them or none.

    Raises:
        DomainError: JOB_ENDED, INVALID_REQUEST, TRIGGER_NOT_FOUND or LIMIT_EXCEEDED.
    """
    _check_open(job)
    _check_count(len(names), "trigger")
    _check_caller(actor, reason, request_id)
    firings: dict[str, Firing] = {}
    for name in names:
        check_identifier("trigger", name)
        state = job.triggers.get(name)
        if state is None:
            raise _name_not_found(job, "trigger", name)
        if name in firings:
            raise DomainError(
                Reason.INVALID_REQUEST,
                f"trigger '{name}' is named twice in one change",
                trigger=name,
                rule="each once",
            )
        if len(state.pending) >= limits.PENDING_FIRINGS:
            raise limit_exceeded(
                "pending_firings", limits.PENDING_FIRINGS, f"trigger '{name}' has firings not consumed yet"
            )
        firings[name] = Firing(name, state.fired + 1)
    return Changed(actor, reason, request_id, (), tuple(firings.values()))


def register(
    job: Job | None,
    name: str,
    *,
    rank: int,
    world_size: int,
    instance_id: str,
    process: Process,
    port: int,
    active_jobs: int,
) -> Registered | None:
    """Decides a registration, the question of who is alive settled by the caller.

    Args:
        job: The job's state, None if it is new.
        name: The job's name.
        rank: The rank the process takes, from 0.
        world_size: Number of ranks of the job.
        instance_id: The process's own id.
        process: Where it runs.
        port: The port to assign: the job's own, or a fresh one.
        active_jobs: Number of jobs that have not ended, for the limit.

    Returns:
        None if this very process is registered already.

    Raises:
        DomainError: INVALID_NAME, INVALID_REQUEST, LIMIT_EXCEEDED, or JOB_ENDED when the process said that it ended.
    """
    check_job_name(name)
    if not 1 <= world_size <= limits.RANKS_PER_JOB:
        raise limit_exceeded("ranks_per_job", limits.RANKS_PER_JOB, f"world size {world_size:,} of job '{name}'")
    if not 0 <= rank < world_size:
        raise DomainError(
            Reason.INVALID_REQUEST, f"job '{name}': rank {rank} is not below world size {world_size}", job=name,
            rule="0 <= rank < world_size", value=str(rank),
        )  # fmt: skip
    if not check_id("instance id", instance_id):
        raise DomainError(Reason.INVALID_REQUEST, f"job '{name}': empty instance id", job=name, rule="not empty")
    held = None if job is None else job.ranks.get(rank)
    if job is not None and held is not None and held.instance_id == instance_id:
        _check_open(job)
        return None
    if job is None or job.ended is not None:
        if active_jobs >= limits.JOBS:
            raise limit_exceeded("jobs", limits.JOBS, f"job '{name}' would be one too many")
        run = 1 if job is None else job.run + 1
        return Registered(run, port, rank, world_size, instance_id, False, process)
    return Registered(job.run, job.port or port, rank, world_size, instance_id, True, process)


def check_registered(job: Job | None, name: str, rank: int, instance_id: str) -> Job:
    """Returns the job if the process holds the rank.

    Raises:
        DomainError: NOT_REGISTERED.
    """
    held = None if job is None else job.ranks.get(rank)
    if job is None or held is None or held.instance_id != instance_id:
        raise DomainError(
            Reason.NOT_REGISTERED,
            f"this process does not hold rank {rank} of job '{name}': register first",
            job=name,
        )
    return job


def declare(
    job: Job, rank: int, instance_id: str, variables: Sequence[Declaration], triggers: Sequence[TriggerSpec]
) -> tuple[Declared | None, dict[str, DomainError]]:
    """Decides a declaration, name by name: what contradicts is refused, the rest stands.

    Args:
        job: The job's state.
        rank: The rank that declares.
        instance_id: The process that declares.
        variables: Its variables, with what it uses now.
        triggers: Its triggers.

    Returns:
        The payload (None if there is nothing new) and the refusals by name: INVALID_NAME, INVALID_REQUEST, WRONG_TYPE
        and the like for what can't be kept, DECLARATION_CONFLICT, LIMIT_EXCEEDED.

    Raises:
        DomainError: NOT_REGISTERED or JOB_ENDED.
    """
    _check_open(check_registered(job, job.name, rank, instance_id))
    live = {state.instance_id for state in job.ranks.values()}
    names = _Names(job)
    errors: dict[str, DomainError] = {}
    new_variables: dict[str, DeclaredVariable] = {}
    new_triggers: dict[str, TriggerSpec] = {}
    for declaration in variables:
        name = declaration.spec.name
        try:
            spec = declaration.spec.checked()
            names.check(name, "variable")
            declared = _declare_variable(job.variables.get(name), spec, declaration.current, live)
        except DomainError as error:
            errors[name] = error
        else:
            names.kinds[name] = "variable"
            if declared is not None:
                new_variables[name] = declared
    for trigger in triggers:
        try:
            trigger.checked()
            names.check(trigger.name, "trigger")
        except DomainError as error:
            errors[trigger.name] = error
        else:
            names.kinds[trigger.name] = "trigger"
            known = job.triggers.get(trigger.name)
            if known is None or known.declared_by not in live:
                new_triggers[trigger.name] = trigger
    if not new_variables and not new_triggers:
        return None, errors
    return Declared(instance_id, tuple(new_variables.values()), tuple(new_triggers.values())), errors


class _Names:
    """The one set of names that variables and triggers of a job share."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.kinds = {**dict.fromkeys(job.variables, "variable"), **dict.fromkeys(job.triggers, "trigger")}

    def check(self, name: str, kind: str) -> None:
        taken = self.kinds.get(name, kind)
        if taken != kind:
            raise DomainError(
                Reason.DECLARATION_CONFLICT, f"'{name}' is declared as a {taken} already", rule="one set of names"
            )
        if name not in self.kinds and len(self.kinds) >= limits.NAMES_PER_JOB:
            raise limit_exceeded("names_per_job", limits.NAMES_PER_JOB, f"{kind} '{name}' of job '{self._job.name}'")


def _declare_variable(
    known: VariableState | None, spec: VariableSpec, current: Value, live: Collection[str]
) -> DeclaredVariable | None:
    if known is None:
        # A process that trained on while its daemon lost the store keeps what it uses: it is not moved by who forgot.
        return DeclaredVariable(spec, spec.check(current))
    if known.declared_by in live:
        if differences := known.spec.differences(spec):
            raise DomainError(
                Reason.DECLARATION_CONFLICT,
                f"variable '{spec.name}' is declared already with another {' and '.join(differences)}",
                variable=spec.name,
                rule="one declaration a run",
                value=", ".join(differences),
            )
        return None
    # The process that declared it is gone and this one takes up its run: its program is the one that counts now. The
    # value that was asked for stays, if the program still allows it.
    try:
        return DeclaredVariable(spec, spec.check(known.desired))
    except DomainError:
        return DeclaredVariable(spec, spec.initial)


def report_apply(
    job: Job, rank: int, instance_id: str, change_revision: int, step: int, outcomes: Sequence[Outcome]
) -> Applied | None:
    """Decides what to record of a rank's acknowledgement.

    Returns:
        None if it says nothing new (a repeat after a broken connection).

    Raises:
        DomainError: NOT_REGISTERED, VARIABLE_NOT_FOUND, TRIGGER_NOT_FOUND, INVALID_REQUEST or LIMIT_EXCEEDED.
    """
    check_registered(job, job.name, rank, instance_id)
    if not 0 < change_revision <= job.revision:
        raise DomainError(
            Reason.INVALID_REQUEST, f"revision {change_revision} is not one of job '{job.name}'", job=job.name,
            rule=f"1 <= revision <= {job.revision}", value=str(change_revision),
        )  # fmt: skip
    _check_count(len(outcomes), "outcome")
    fresh = []
    for outcome in outcomes:
        check_text("reason", outcome.reason)
        if outcome.is_trigger:
            trigger = job.triggers.get(outcome.target)
            if trigger is None:
                raise _name_not_found(job, "trigger", outcome.target)
            if change_revision in trigger.pending:
                fresh.append(outcome)
        else:
            variable = job.variables.get(outcome.target)
            if variable is None:
                raise _name_not_found(job, "variable", outcome.target)
            if outcome.effective is not None:
                variable.spec.check(outcome.effective)
            elif outcome.status is ApplyStatus.APPLIED:
                raise DomainError(
                    Reason.INVALID_REQUEST, f"variable '{outcome.target}' applied without its value", job=job.name,
                    variable=outcome.target, rule="an effective value",
                )  # fmt: skip
            if change_revision > variable.acknowledged.get(rank, 0):
                fresh.append(outcome)
    return Applied(change_revision, rank, step, tuple(fresh)) if fresh else None


def end(job: Job, rank: int, instance_id: str, *, failed: bool, message: str, step: int) -> Ended | None:
    """Decides the end of a job, said by the process that leads it.

    Returns:
        None if there is nothing to record: the job has ended, or a rank other than 0 leaves before the leader does.

    Raises:
        DomainError: NOT_REGISTERED or LIMIT_EXCEEDED.
    """
    check_registered(job, job.name, rank, instance_id)
    if job.ended is not None or rank != 0:
        return None
    return Ended(failed, check_text("end message", message), step)
