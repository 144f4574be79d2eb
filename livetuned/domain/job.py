"""The state of one job, and how each record moves it. Immutable: a record makes a new state of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import TypeVar

from livetuned.domain import limits
from livetuned.domain.frozen import dataclass
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Cancelled,
    Changed,
    Declared,
    Ended,
    PortMoved,
    Process,
    Record,
    Registered,
    Removed,
    Scheduled,
)
from livetuned.domain.requests import Requests
from livetuned.domain.specs import TriggerSpec, VariableSpec
from livetuned.domain.values import Value

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AppliedValue:
    """A value as a rank uses it."""

    value: Value
    revision: int
    """The change it comes from, 0 if it comes from none."""
    step: int
    """The step at which it took effect, 0 if it was in use when it was declared."""


@dataclass(frozen=True, slots=True)
class VariableState:
    """A variable with its desired and applied values."""

    spec: VariableSpec
    declared_by: str
    """Instance id of the process whose declaration holds."""
    desired: Value
    revision: int
    """Revision of the record that set `desired`."""
    from_change: bool
    """Whether that record is a change (else a declaration)."""
    taken: bool = False
    """Whether some rank has acknowledged that change."""
    applied: Mapping[int, AppliedValue] = field(default_factory=dict)
    """By rank. Ranks that never applied a change of it are absent: they use what they declared."""
    acknowledged: Mapping[int, int] = field(default_factory=dict)
    """By rank: revision of the newest change of it that the rank's process acknowledged; it does so in order."""


@dataclass(frozen=True, slots=True)
class TriggerState:
    """A trigger with its firings."""

    spec: TriggerSpec
    declared_by: str
    fired: int = 0
    """Firings accepted in this run."""
    revision: int = 0
    """Revision of the last firing, 0 if there was none."""
    pending: tuple[int, ...] = ()
    """Revisions of the changes whose firing the program has not consumed yet, oldest first."""


@dataclass(frozen=True, slots=True)
class RankState:
    """The process that holds a rank of the current run."""

    instance_id: str
    process: Process
    revision: int
    """Revision of its registration."""
    token_hash: str = ""
    """Hash of the secret that opens its session."""
    applied_revision: int = 0
    """Revision of the newest change that it acknowledged, 0 for none."""
    leads: bool = False
    """It speaks for all ranks of the job."""


@dataclass(frozen=True, slots=True)
class ScheduledState:
    """A change that waits for its step, or did."""

    scheduled: Scheduled
    time_us: int
    """When it was scheduled."""
    made: int = 0
    """Revision of the change that it became, 0 for none so far."""
    cancelled: bool = False

    @property
    def waits(self) -> bool:
        """Whether its step is still to come."""
        return not (self.made or self.cancelled)


@dataclass(frozen=True, slots=True)
class Job:
    """One training job."""

    name: str
    run: int
    port: int
    """0 once the job has ended."""
    last_port: int
    """The port it has or had: not to be given to another job too soon."""
    world_size: int
    registered_us: int
    """When the current run was first registered."""
    run_revision: int
    """Revision of the record that began the current run."""
    revision: int
    """Revision of the job's last record."""
    ranks: Mapping[int, RankState]
    variables: Mapping[str, VariableState] = field(default_factory=dict)
    triggers: Mapping[str, TriggerState] = field(default_factory=dict)
    requests: Requests = field(default_factory=Requests)
    """The newest request ids."""
    changed: int = 0
    """Revision of the newest change of any of its variables or triggers, in any run; 0 if there was none."""
    ended: Ended | None = None
    ended_us: int = 0
    scheduled: Mapping[int, ScheduledState] = field(default_factory=dict)
    """By the revision at which it was scheduled: what waits for its step, and the newest that do not any more."""

    def waiting(self) -> Iterator[tuple[int, ScheduledState]]:
        """Yields the changes that wait for their step, oldest first, each with its revision."""
        if self.ended is None:
            yield from (item for item in self.scheduled.items() if item[1].waits)


def evolve(job: Job | None, record: Record) -> Job | None:
    """Returns the job's state after a record, None if the record removes the job.

    Args:
        job: The state before, None if the record is the job's first.
        record: A record that `decide` made on that state.

    Raises:
        ValueError: The record does not follow from the state: the log is not what `decide` would have written.
    """
    payload = record.payload
    if isinstance(payload, Registered):
        return _registered(job, record, payload)
    if job is None:
        raise ValueError(f"record {record.revision} of unknown job {record.job!r}")
    if isinstance(payload, Changed):
        return _changed(job, record, payload)
    if isinstance(payload, Applied):
        return _applied(job, record, payload)
    if isinstance(payload, Declared):
        return _declared(job, record, payload)
    if isinstance(payload, Ended):
        return replace(job, revision=record.revision, ended=payload, ended_us=record.time_us, port=0)
    if isinstance(payload, Removed):
        return None
    if isinstance(payload, Scheduled):
        return _scheduled(job, record, payload)
    if isinstance(payload, Cancelled):
        state = replace(job.scheduled[payload.scheduled], cancelled=True)
        return replace(job, revision=record.revision, scheduled=_keeping(job, payload.scheduled, state))
    return _port_moved(job, record, payload)


def _port_moved(job: Job, record: Record, moved: PortMoved) -> Job:
    return replace(job, revision=record.revision, port=moved.port, last_port=moved.port or job.last_port)


def _registered(job: Job | None, record: Record, payload: Registered) -> Job:
    rank = RankState(payload.instance_id, payload.process, record.revision, payload.token_hash, leads=payload.leads)
    if job is None or not payload.resumed:
        return Job(
            name=record.job,
            run=payload.run,
            port=payload.port,
            last_port=payload.port,
            world_size=payload.world_size,
            registered_us=record.time_us,
            run_revision=record.revision,
            revision=record.revision,
            ranks={payload.rank: rank},
            requests=Requests() if job is None else job.requests,
            changed=0 if job is None else job.changed,
        )
    held = job.ranks.get(payload.rank)
    if held is not None and held.instance_id == payload.instance_id:
        # The same process with a new token: what it uses is what it used.
        kept = replace(rank, applied_revision=held.applied_revision)
        return replace(job, revision=record.revision, ranks={**job.ranks, payload.rank: kept})
    return replace(
        job,
        revision=record.revision,
        port=payload.port,
        last_port=payload.port,
        world_size=payload.world_size,
        ranks={**job.ranks, payload.rank: rank},
        variables={
            # What the dead process used says nothing about the new one.
            name: replace(
                state,
                applied=_without(state.applied, payload.rank),
                acknowledged=_without(state.acknowledged, payload.rank),
            )
            for name, state in job.variables.items()
        },
    )


def _without(by_rank: Mapping[int, T], rank: int) -> dict[int, T]:
    return {other: item for other, item in by_rank.items() if other != rank}


def _same(one: Value, other: Value) -> bool:
    # True == 1 == 1.0 in Python; a variable whose type was edited is another variable.
    return type(one) is type(other) and one == other


def _declared(job: Job, record: Record, payload: Declared) -> Job:
    variables, triggers = dict(job.variables), dict(job.triggers)
    ranks = [rank for rank, state in job.ranks.items() if state.instance_id == payload.instance_id]
    for declared in payload.variables:
        known = variables.get(declared.spec.name)
        if known is not None and _same(known.desired, declared.desired):
            # A new process took up the run: the value, and where it comes from, stand; only the specification is new.
            variables[declared.spec.name] = replace(known, spec=declared.spec, declared_by=payload.instance_id)
        else:
            variables[declared.spec.name] = VariableState(
                declared.spec,
                payload.instance_id,
                declared.desired,
                record.revision,
                from_change=False,
                applied={rank: AppliedValue(declared.desired, 0, 0) for rank in ranks if declared.in_use},
            )
    for spec in payload.triggers:
        fired = triggers.get(spec.name)
        triggers[spec.name] = (
            TriggerState(spec, payload.instance_id)
            if fired is None
            else replace(fired, spec=spec, declared_by=payload.instance_id)
        )
    return replace(job, revision=record.revision, variables=variables, triggers=triggers)


def _changed(job: Job, record: Record, payload: Changed) -> Job:
    # What a change does not touch is shared with the state before it.
    variables = dict(job.variables) if payload.assignments else {}
    triggers = dict(job.triggers) if payload.firings else {}
    requests = job.requests
    for assignment in payload.assignments:
        known = variables[assignment.variable]
        # Written out: `dataclasses.replace` is a third of what a change costs.
        variables[assignment.variable] = VariableState(
            known.spec,
            known.declared_by,
            assignment.new,
            record.revision,
            True,
            False,
            known.applied,
            known.acknowledged,
        )
    for firing in payload.firings:
        state = triggers[firing.trigger]
        triggers[firing.trigger] = replace(
            state, fired=firing.number, revision=record.revision, pending=(*state.pending, record.revision)
        )
    if payload.request_id:
        requests = requests.remembering(payload.request_id, record.revision)
    return Job(
        job.name,
        job.run,
        job.port,
        job.last_port,
        job.world_size,
        job.registered_us,
        job.run_revision,
        record.revision,
        job.ranks,
        variables or job.variables,
        triggers or job.triggers,
        requests,
        record.revision,
        job.ended,
        job.ended_us,
        _made(job, payload.scheduled, record.revision) if payload.scheduled else job.scheduled,
    )


def _scheduled(job: Job, record: Record, payload: Scheduled) -> Job:
    requests = job.requests
    if payload.change.request_id:
        requests = requests.remembering(payload.change.request_id, record.revision)
    kept = _keeping(job, record.revision, ScheduledState(payload, record.time_us))
    return replace(job, revision=record.revision, requests=requests, scheduled=kept)


def _made(job: Job, scheduled: int, revision: int) -> Mapping[int, ScheduledState]:
    return _keeping(job, scheduled, replace(job.scheduled[scheduled], made=revision))


def _keeping(job: Job, revision: int, state: ScheduledState) -> Mapping[int, ScheduledState]:
    """Returns what was scheduled with one of it new; the oldest that do not wait any more make room."""
    kept = {**job.scheduled, revision: state}
    past = [revision for revision, state in kept.items() if not state.waits]
    for oldest in past[: max(0, len(past) - limits.SCHEDULED)]:
        del kept[oldest]
    return kept


def _applied(job: Job, record: Record, payload: Applied) -> Job:
    variables, triggers, rank = dict(job.variables), dict(job.triggers), payload.rank
    for outcome in payload.outcomes:
        if outcome.is_trigger:
            state = triggers[outcome.target]
            pending = tuple(revision for revision in state.pending if revision != payload.change_revision)
            triggers[outcome.target] = replace(state, pending=pending)
        else:
            variable = variables[outcome.target]
            applied = variable.applied
            if outcome.effective is not None and outcome.status is not ApplyStatus.SUPERSEDED:
                applied = {**applied, rank: AppliedValue(outcome.effective, payload.change_revision, payload.step)}
            acknowledged = {**variable.acknowledged, rank: payload.change_revision}
            variables[outcome.target] = replace(
                variable,
                applied=applied,
                acknowledged=acknowledged,
                taken=variable.taken or payload.change_revision == variable.revision,
            )
    held = job.ranks[rank]
    ranks = {**job.ranks, rank: replace(held, applied_revision=max(held.applied_revision, payload.change_revision))}
    return replace(job, revision=record.revision, ranks=ranks, variables=variables, triggers=triggers)
