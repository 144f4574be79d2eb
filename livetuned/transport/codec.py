"""Between the wire's messages and the domain's values. Nothing else knows both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from livetune.v1 import control_pb2, job_pb2, types_pb2
from livetuned.domain import limits, names
from livetuned.domain.decide import Declaration, Kept, Update, When
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job, TriggerState, VariableState
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Cancelled,
    Changed,
    Declared,
    Ended,
    Outcome,
    Payload,
    PortMoved,
    Process,
    Record,
    Registered,
    Removed,
    Scheduled,
)
from livetuned.domain.series import Sample, Series
from livetuned.domain.specs import RestartPolicy, Scale, TriggerSpec, VariableSpec
from livetuned.domain.values import Value, ValueType
from livetuned.service.sessions import JobStatus, Session

_TYPES = {
    ValueType.FLOAT: types_pb2.VARIABLE_TYPE_FLOAT,
    ValueType.INT: types_pb2.VARIABLE_TYPE_INT,
    ValueType.BOOL: types_pb2.VARIABLE_TYPE_BOOL,
    ValueType.STRING: types_pb2.VARIABLE_TYPE_STRING,
}
_FROM_TYPES = {wire: domain for domain, wire in _TYPES.items()}
_SCALES = {
    Scale.UNSPECIFIED: types_pb2.SCALE_UNSPECIFIED,
    Scale.LINEAR: types_pb2.SCALE_LINEAR,
    Scale.LOG: types_pb2.SCALE_LOG,
}
_FROM_SCALES = {wire: domain for domain, wire in _SCALES.items()}
_POLICIES = {
    RestartPolicy.KEEP: types_pb2.RESTART_POLICY_KEEP,
    RestartPolicy.RESET: types_pb2.RESTART_POLICY_RESET,
}
_FROM_POLICIES = {
    types_pb2.RESTART_POLICY_UNSPECIFIED: RestartPolicy.KEEP,
    **{wire: domain for domain, wire in _POLICIES.items()},
}
_STATUSES = {
    ApplyStatus.APPLIED: types_pb2.APPLY_STATUS_APPLIED,
    ApplyStatus.REFUSED: types_pb2.APPLY_STATUS_REFUSED,
    ApplyStatus.SUPERSEDED: types_pb2.APPLY_STATUS_SUPERSEDED,
}
_FROM_STATUSES = {wire: domain for domain, wire in _STATUSES.items()}
_STATES = {
    JobStatus.STARTING: types_pb2.JOB_STATE_STARTING,
    JobStatus.RUNNING: types_pb2.JOB_STATE_RUNNING,
    JobStatus.LOST: types_pb2.JOB_STATE_LOST,
    JobStatus.FINISHED: types_pb2.JOB_STATE_FINISHED,
    JobStatus.FAILED: types_pb2.JOB_STATE_FAILED,
}


def _unknown(what: str, given: object) -> DomainError:
    return DomainError(Reason.INVALID_REQUEST, f"{what} {given} is not one this daemon knows", rule=f"a known {what}")


def _seconds_and_nanos(time_us: int) -> tuple[int, int]:
    return time_us // 1_000_000, time_us % 1_000_000 * 1_000


def _timestamp(time_us: int) -> Timestamp:
    seconds, nanos = _seconds_and_nanos(time_us)
    return Timestamp(seconds=seconds, nanos=nanos)


def time_from_wire(message: Timestamp) -> int:
    """Returns a time in microseconds since the Unix epoch.

    Raises:
        DomainError: INVALID_REQUEST for what is no time.
    """
    try:
        return message.ToMicroseconds()
    except ValueError as error:
        raise DomainError(Reason.INVALID_REQUEST, f"a time of the request is none: {error}", rule="a time") from error


def value_to_wire(value: Value) -> types_pb2.Value:
    """Returns a value as its message."""
    message = types_pb2.Value()
    _write_value(value, message)
    return message


def _write_value(value: Value, message: types_pb2.Value) -> None:
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.float_value = value
    else:
        message.string_value = value


def value_from_wire(message: types_pb2.Value) -> Value | None:
    """Returns the value of a message, None if it holds none."""
    kind = message.WhichOneof("kind")
    return None if kind is None else getattr(message, kind)


def spec_to_wire(spec: VariableSpec) -> types_pb2.VariableSpec:
    """Returns a specification as its message."""
    return types_pb2.VariableSpec(
        variable_id=spec.name,
        type=_TYPES[spec.type],
        initial=value_to_wire(spec.initial),
        minimum=None if spec.minimum is None else value_to_wire(spec.minimum),
        maximum=None if spec.maximum is None else value_to_wire(spec.maximum),
        choices=spec.choices,
        scale=_SCALES[spec.scale],
        unit=spec.unit,
        doc=spec.doc,
        on_restart=_POLICIES[spec.on_restart],
    )


def _trigger_spec_to_wire(spec: TriggerSpec) -> types_pb2.TriggerSpec:
    return types_pb2.TriggerSpec(trigger_id=spec.name, doc=spec.doc)


def declaration_from_wire(message: job_pb2.VariableDeclaration, store_id: str) -> Declaration:
    """Reads a declaration.

    Args:
        message: The declaration.
        store_id: The store that counts its revisions.

    Raises:
        DomainError: INVALID_REQUEST, for an unknown type or scale, or no initial value.
    """
    spec = message.spec
    if spec.type not in _FROM_TYPES:
        raise _unknown("variable type", spec.type)
    if spec.scale not in _FROM_SCALES:
        raise _unknown("scale", spec.scale)
    if spec.on_restart not in _FROM_POLICIES:
        raise _unknown("restart policy", spec.on_restart)
    initial = value_from_wire(spec.initial)
    if initial is None:
        raise DomainError(
            Reason.INVALID_REQUEST, f"variable '{spec.variable_id}' is declared without an initial value",
            variable=spec.variable_id, rule="an initial value",
        )  # fmt: skip
    current = value_from_wire(message.current)
    restored = None
    if message.HasField("restored"):
        restored = message.restored.revision if message.restored.store_id == store_id else 0
    return Declaration(
        VariableSpec(
            name=spec.variable_id,
            type=_FROM_TYPES[spec.type],
            initial=initial,
            minimum=value_from_wire(spec.minimum),
            maximum=value_from_wire(spec.maximum),
            choices=tuple(spec.choices),
            scale=_FROM_SCALES[spec.scale],
            unit=spec.unit,
            doc=spec.doc,
            on_restart=_FROM_POLICIES[spec.on_restart],
        ),
        initial if current is None else current,
        restored,
    )


def trigger_from_wire(message: types_pb2.TriggerSpec) -> TriggerSpec:
    """Reads a trigger's declaration."""
    return TriggerSpec(message.trigger_id, message.doc)


def update_from_wire(message: control_pb2.VariableUpdate) -> Update:
    """Reads a wish for one variable."""
    if_revision = message.if_revision if message.HasField("if_revision") else None
    if message.WhichOneof("new_value") == "text":
        return Update(message.variable_id, None, message.text, if_revision)
    return Update(message.variable_id, value_from_wire(message.value), None, if_revision)


def when_from_wire(request: control_pb2.SetVariablesRequest | control_pb2.FireTriggersRequest) -> When | None:
    """Reads at which step a change is to take effect, None for at once."""
    kind = request.WhichOneof("when")
    if kind is None:
        return None
    return When(request.at_step) if kind == "at_step" else When(request.in_steps, relative=True)


def kept_from_wire(message: types_pb2.Change) -> Kept:
    """Reads a change that a checkpoint has waiting for its step."""
    values = ((item.variable_id, value_from_wire(item.new_value)) for item in message.assignments)
    return Kept(
        revision=message.scheduled_revision,
        step=message.at_step,
        values=tuple((name, value) for name, value in values if value is not None),
        triggers=tuple(item.trigger_id for item in message.firings),
        actor=message.actor,
        reason=message.reason,
    )


def process_from_wire(message: types_pb2.Process) -> Process:
    """Reads where a process runs, its texts shortened."""
    return Process(
        message.host[:200],
        message.pid,
        message.user[:200],
        message.command[:1_000],
        message.sdk_version[:100],
    )


def outcome_from_wire(message: types_pb2.Outcome) -> Outcome:
    """Reads what became of a part of a change.

    Raises:
        DomainError: INVALID_REQUEST, for no target or an unknown status.
    """
    target = message.WhichOneof("target")
    if target is None:
        raise DomainError(Reason.INVALID_REQUEST, "an outcome names neither variable nor trigger", rule="a target")
    if message.status not in _FROM_STATUSES:
        raise _unknown("apply status", message.status)
    return Outcome(
        target=message.variable_id or message.trigger_id,
        is_trigger=target == "trigger_id",
        status=_FROM_STATUSES[message.status],
        effective=value_from_wire(message.effective),
        reason=message.reason,
        used=tuple(value for value in message.used[: limits.USED_VALUES] if isfinite(value)),
    )


def change_message(record: Record) -> types_pb2.Change:
    """Returns a change as its message, by itself.

    Raises:
        TypeError: The record is no change.
    """
    message = types_pb2.Change()
    write_change(record, message)
    return message


def write_change(record: Record, message: types_pb2.Change) -> None:
    """Writes a change, by itself, into a message.

    Raises:
        TypeError: The record is no change.
    """
    changed = record.payload
    if isinstance(changed, Scheduled):
        message.at_step, changed = changed.step, changed.change
    if not isinstance(changed, Changed):
        raise TypeError(f"record {record.revision} is no change")
    message.revision = record.revision
    message.scheduled_revision = changed.scheduled
    message.job = names.job_resource(record.job)
    time = message.time
    time.seconds, time.nanos = _seconds_and_nanos(record.time_us)
    message.actor, message.reason, message.undone_revision = changed.actor, changed.reason, changed.undoes
    for item in changed.assignments:
        assignment = message.assignments.add()
        assignment.variable_id = item.variable
        _write_value(item.old, assignment.old_value)
        _write_value(item.new, assignment.new_value)
    for firing in changed.firings:
        message.firings.add(trigger_id=firing.trigger, number=firing.number)


def past_change_to_wire(record: Record, applies: Sequence[Record], lapsed: Sequence[str]) -> types_pb2.Change:
    """Returns a change as its message, with what was acknowledged of it and what never will be."""
    message = change_message(record)
    message.applies.extend(_apply_to_wire(apply) for apply in applies)
    message.lapsed_ids.extend(lapsed)
    return message


def _apply_to_wire(record: Record) -> types_pb2.Apply:
    applied = record.payload
    if not isinstance(applied, Applied):
        raise TypeError(f"record {record.revision} is no apply")
    return types_pb2.Apply(
        change_revision=applied.change_revision,
        rank=applied.rank,
        step=applied.step,
        outcomes=[_outcome_to_wire(item) for item in applied.outcomes],
        time=_timestamp(record.time_us),
    )


def _outcome_to_wire(outcome: Outcome) -> types_pb2.Outcome:
    message = types_pb2.Outcome(
        status=_STATUSES[outcome.status],
        effective=None if outcome.effective is None else value_to_wire(outcome.effective),
        reason=outcome.reason,
        used=outcome.used,
    )
    if outcome.is_trigger:
        message.trigger_id = outcome.target
    else:
        message.variable_id = outcome.target
    return message


def event_to_wire(record: Record) -> control_pb2.Event:
    """Returns a record as a watch shows it."""
    event = control_pb2.Event(
        revision=record.revision, time=_timestamp(record.time_us), job=names.job_resource(record.job)
    )
    _EVENT_WRITERS[type(record.payload)](record, event, record.payload)
    return event


def _write_registered(_: Record, event: control_pb2.Event, payload: Registered) -> None:
    event.registered.run = payload.run
    event.registered.port = payload.port
    event.registered.rank = payload.rank
    event.registered.resumed = payload.resumed
    event.registered.process.CopyFrom(_process_to_wire(payload.process))


def _write_declared(record: Record, event: control_pb2.Event, payload: Declared) -> None:
    for item in payload.variables:
        event.declared.variables.add(
            name=names.variable_resource(record.job, item.spec.name),
            spec=spec_to_wire(item.spec),
            desired=value_to_wire(item.desired),
            revision=record.revision,
        )
    event.declared.triggers.extend(_trigger_spec_to_wire(spec) for spec in payload.triggers)


def _write_cancelled(_: Record, event: control_pb2.Event, payload: Cancelled) -> None:
    event.cancelled.scheduled_revision = payload.scheduled
    event.cancelled.actor = payload.actor
    event.cancelled.reason = payload.reason


def _write_ended(_: Record, event: control_pb2.Event, payload: Ended) -> None:
    event.ended.state = types_pb2.JOB_STATE_FAILED if payload.failed else types_pb2.JOB_STATE_FINISHED
    event.ended.message = payload.message


def _write_port_moved(_: Record, event: control_pb2.Event, payload: PortMoved) -> None:
    event.port_moved.port = payload.port
    event.port_moved.previous_port = payload.previous


def _write_removed(_: Record, event: control_pb2.Event, payload: Removed) -> None:
    event.removed.actor = payload.actor
    event.removed.reason = payload.reason


_EVENT_WRITERS: Mapping[type[Payload], Callable[[Record, control_pb2.Event, Any], None]] = {
    Registered: _write_registered,
    Declared: _write_declared,
    Changed: lambda record, event, _: write_change(record, event.change),
    Scheduled: lambda record, event, _: write_change(record, event.scheduled),
    Cancelled: _write_cancelled,
    Applied: lambda record, event, _: event.apply.CopyFrom(_apply_to_wire(record)),
    Ended: _write_ended,
    PortMoved: _write_port_moved,
    Removed: _write_removed,
}


def _process_to_wire(process: Process) -> types_pb2.Process:
    return types_pb2.Process(
        host=process.host,
        pid=process.pid,
        user=process.user,
        command=process.command,
        sdk_version=process.sdk_version,
    )


def job_to_wire(
    job: Job, status: JobStatus, step: int, sessions: Sequence[Session], *, full: bool, classic_port: int = 0
) -> types_pb2.Job:
    """Returns a job as its message.

    Args:
        job: The job's state.
        status: What it is doing.
        step: The step it is at.
        sessions: Its open sessions.
        full: Whether variables and triggers are included.
        classic_port: Its dictionary port of the classic protocol, 0 for none.
    """
    steps = {session.rank: session.step for session in sessions}
    message = types_pb2.Job(
        name=names.job_resource(job.name),
        state=_STATES[status],
        port=job.port,
        classic_port=classic_port,
        run=job.run,
        registered_time=_timestamp(job.registered_us),
        ended_time=_timestamp(job.ended_us) if job.ended is not None else None,
        end_message="" if job.ended is None else job.ended.message,
        revision=job.revision,
        step=step,
        world_size=job.world_size,
        ranks=[
            types_pb2.Rank(
                rank=rank,
                connected=rank in steps,
                step=max(0, steps.get(rank, 0)),
                process=_process_to_wire(state.process),
                applied_revision=state.applied_revision,
                leads=state.leads,
            )
            for rank, state in sorted(job.ranks.items())
        ],
    )
    if full:
        message.variables.extend(_variable_to_wire(job.name, state) for state in job.variables.values())
        message.triggers.extend(_trigger_to_wire(job.name, state) for state in job.triggers.values())
        message.scheduled.extend(
            change_message(Record(revision, state.time_us, job.name, state.scheduled))
            for revision, state in job.waiting()
        )
    return message


def _variable_to_wire(job: str, state: VariableState) -> types_pb2.Variable:
    return types_pb2.Variable(
        name=names.variable_resource(job, state.spec.name),
        spec=spec_to_wire(state.spec),
        desired=value_to_wire(state.desired),
        revision=state.revision,
        applied=[
            types_pb2.AppliedValue(
                rank=rank, value=value_to_wire(value.value), revision=value.revision, step=value.step
            )
            for rank, value in sorted(state.applied.items())
        ],
    )


def _trigger_to_wire(job: str, state: TriggerState) -> types_pb2.Trigger:
    return types_pb2.Trigger(
        name=names.trigger_resource(job, state.spec.name),
        spec=_trigger_spec_to_wire(state.spec),
        fired=state.fired,
        consumed=state.fired - len(state.pending),
        revision=state.revision,
    )


def declare_result(
    job: Job, variables: Sequence[str], triggers: Sequence[str], errors: Mapping[str, DomainError]
) -> job_pb2.DeclareResult:
    """Returns where declared variables and triggers stand, in the order of the declarations."""
    result = job_pb2.DeclareResult()
    scheduled = {state.made: revision for revision, state in job.scheduled.items() if state.made}
    for name in variables:
        if name in errors:
            result.variables.add(variable_id=name, error=_declaration_error(errors[name]))
        else:
            state = job.variables[name]
            result.variables.add(
                variable_id=name,
                desired=value_to_wire(state.desired),
                revision=state.revision,
                from_change=state.from_change,
                scheduled_revision=scheduled.get(state.revision, 0),
            )
    for name in triggers:
        if name in errors:
            result.triggers.add(trigger_id=name, error=_declaration_error(errors[name]))
        else:
            result.triggers.add(trigger_id=name, pending_revisions=job.triggers[name].pending)
    return result


def _declaration_error(error: DomainError) -> job_pb2.DeclarationError:
    return job_pb2.DeclarationError(reason=error.reason.name, message=error.message)


def samples_from_wire(message: job_pb2.Metrics) -> Iterator[Sample]:
    """Yields what a program logged."""
    return (Sample(item.name, item.step, item.value) for item in message.samples)


def series_to_wire(name: str, rank: int, series: Series, most: int, after_step: int | None) -> control_pb2.MetricSeries:
    """Returns a series as its message.

    Args:
        name: The name under which it was logged.
        rank: The rank that logged it.
        series: The series, with a sample at least.
        most: Most points.
        after_step: Only points after this step; None for all.
    """
    points = series.points(most, after_step)
    step, value, time_us = series.last
    return control_pb2.MetricSeries(
        name=name,
        rank=rank,
        samples=series.samples,
        minimum=series.minimum,
        maximum=series.maximum,
        last_step=step,
        last_value=value,
        last_time=_timestamp(time_us),
        point_steps=points.steps,
        point_values=points.values,
        point_times_us=points.times_us,
    )
