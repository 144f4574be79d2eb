"""What training processes wish: to take a rank, to declare, to acknowledge, to end; and the end of lost jobs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from livetuned.domain import limits
from livetuned.domain.decide.common import check_count, check_id, check_open, name_not_found
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job, VariableState
from livetuned.domain.names import check_job_name
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Declared,
    DeclaredVariable,
    Ended,
    Outcome,
    Process,
    Registered,
    Removed,
)
from livetuned.domain.specs import RestartPolicy, TriggerSpec, VariableSpec, check_text
from livetuned.domain.values import Value


@dataclass(frozen=True, slots=True)
class Declaration:
    """A variable as a process declares it, with what the process uses now."""

    spec: VariableSpec
    current: Value
    restored: int | None = None
    """The variable's revision in the checkpoint that `current` comes from, 0 if that is of another store; None if it
    comes from none."""


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
    token_hash: str = "",
    leads: bool = False,
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
        token_hash: Hash of the secret that is to open the session; ``""`` if the process showed the one it has.
        leads: Whether it speaks for all ranks.

    Returns:
        None if this very process is registered already and keeps its secret.

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
        check_open(job)
        if not token_hash:
            return None
        return Registered(job.run, job.port, rank, world_size, instance_id, True, process, token_hash, leads)
    if job is None or job.ended is not None:
        if active_jobs >= limits.JOBS:
            raise limit_exceeded("jobs", limits.JOBS, f"job '{name}' would be one too many")
        run = 1 if job is None else job.run + 1
        return Registered(run, port, rank, world_size, instance_id, False, process, token_hash, leads)
    return Registered(job.run, job.port or port, rank, world_size, instance_id, True, process, token_hash, leads)


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
    job: Job,
    rank: int,
    instance_id: str,
    variables: Sequence[Declaration],
    triggers: Sequence[TriggerSpec],
    *,
    adopt: bool = False,
) -> tuple[Declared | None, dict[str, DomainError]]:
    """Decides a declaration, name by name: what contradicts is refused, the rest stands.

    Args:
        job: The job's state.
        rank: The rank that declares.
        instance_id: The process that declares.
        variables: Its variables, with what it uses now.
        triggers: Its triggers.
        adopt: The process was tuned by another store than this one: what it uses stands. Rank 0 decides for all.

    Returns:
        The payload (None if there is nothing new) and the refusals by name: INVALID_NAME, INVALID_REQUEST, WRONG_TYPE
        and the like for what can't be kept, DECLARATION_CONFLICT, LIMIT_EXCEEDED.

    Raises:
        DomainError: NOT_REGISTERED or JOB_ENDED.
    """
    check_open(check_registered(job, job.name, rank, instance_id))
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
            known = job.variables.get(name)
            stands = rank == 0 and (adopt or _restores(known, declaration))
            declared = _declare_variable(known, spec, declaration.current, live, adopt=stands)
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
            fired = job.triggers.get(trigger.name)
            if fired is None or fired.declared_by not in live:
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


def _restores(known: VariableState | None, declaration: Declaration) -> bool:
    """Says whether a value from a checkpoint counts more than the one that is known: if no change came after it."""
    if known is None or declaration.restored is None:
        return False
    resets = declaration.spec.on_restart is RestartPolicy.RESET and known.taken
    return resets or not known.from_change or known.revision <= declaration.restored


def _declare_variable(
    known: VariableState | None, spec: VariableSpec, current: Value, live: Collection[str], *, adopt: bool
) -> DeclaredVariable | None:
    if known is None:
        # A process that trained on while its daemon lost the store keeps what it uses: it is not moved by who forgot.
        return _in_use(spec, current)
    if known.declared_by in live:
        if differences := known.spec.differences(spec):
            raise DomainError(
                Reason.DECLARATION_CONFLICT,
                f"variable '{spec.name}' is declared already with another {' and '.join(differences)}",
                variable=spec.name,
                rule="one declaration a run",
                value=", ".join(differences),
            )
        # A store that was restored from a backup must not move a running job back to what it once asked for; and what
        # was taken up from a checkpoint is not what the program declared before it read that.
        return _in_use(spec, current) if adopt and current != known.desired else None
    if adopt:
        return _in_use(spec, current)
    # The process that declared it is gone and this one takes up its run: its program is the one that counts now. The
    # value that was asked for stays, if the program still allows it.
    if spec.on_restart is RestartPolicy.RESET and (known.taken or not known.from_change):
        return DeclaredVariable(spec, spec.initial)
    try:
        return DeclaredVariable(spec, spec.check(known.desired))
    except DomainError:
        return DeclaredVariable(spec, spec.initial)


def _in_use(spec: VariableSpec, current: Value) -> DeclaredVariable:
    value = spec.check(current)
    return DeclaredVariable(spec, value, in_use=value != spec.initial)


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
    check_count(len(outcomes), "outcome")
    fresh = []
    for outcome in outcomes:
        check_text("reason", outcome.reason)
        if outcome.is_trigger:
            trigger = job.triggers.get(outcome.target)
            if trigger is None:
                raise name_not_found(job, "trigger", outcome.target)
            if change_revision in trigger.pending:
                fresh.append(outcome)
        else:
            variable = job.variables.get(outcome.target)
            if variable is None:
                raise name_not_found(job, "variable", outcome.target)
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


def give_up(job: Job, message: str, step: int) -> Ended | None:
    """Decides the end of a job that is lost: nobody will say any more that it ended.

    Returns:
        None if it has ended already.

    Raises:
        DomainError: LIMIT_EXCEEDED.
    """
    return None if job.ended is not None else Ended(True, check_text("end message", message), step)


def remove(job: Job, actor: str, reason: str) -> Removed:
    """Decides to forget a job that has ended.

    Raises:
        DomainError: JOB_LIVE if it has not, or LIMIT_EXCEEDED.
    """
    if job.ended is None:
        raise DomainError(
            Reason.JOB_LIVE,
            f"job '{job.name}' has not ended",
            job=job.name,
            rule="only a job that has ended is forgotten",
        )
    return Removed(check_text("actor", actor), check_text("reason", reason))
