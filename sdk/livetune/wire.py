"""Owns the translation between protobuf and plain values: the only module that knows both. Loads protobuf."""

from __future__ import annotations

import math

from livetune import messages as m
from livetune.errors import WireError
from livetune.specs import Kind, RestartPolicy, Scalar, Scale, TriggerSpec, VariableSpec
from livetune.v1 import job_pb2, types_pb2

__all__ = [
    "event_from_response",
    "job_name",
    "request_from_message",
    "value_from_proto",
    "value_to_proto",
]

_KINDS = {
    Kind.FLOAT: types_pb2.VARIABLE_TYPE_FLOAT,
    Kind.INT: types_pb2.VARIABLE_TYPE_INT,
    Kind.BOOL: types_pb2.VARIABLE_TYPE_BOOL,
    Kind.STR: types_pb2.VARIABLE_TYPE_STRING,
}
_SCALES = {None: types_pb2.SCALE_UNSPECIFIED, Scale.LINEAR: types_pb2.SCALE_LINEAR, Scale.LOG: types_pb2.SCALE_LOG}
_POLICIES = {
    RestartPolicy.KEEP: types_pb2.RESTART_POLICY_KEEP,
    RestartPolicy.RESET: types_pb2.RESTART_POLICY_RESET,
}
_STATUSES = {
    m.Status.APPLIED: types_pb2.APPLY_STATUS_APPLIED,
    m.Status.REFUSED: types_pb2.APPLY_STATUS_REFUSED,
    m.Status.SUPERSEDED: types_pb2.APPLY_STATUS_SUPERSEDED,
}

# --- Values -----------------------------------------------------------------------------------------------------------


def value_to_proto(value: Scalar) -> types_pb2.Value:
    """Translate a plain value; its Python type decides the kind.

    Raises:
        WireError: if it is none of float, int of 64 bits, bool and str, or a float that is not finite.
    """
    if isinstance(value, bool):
        return types_pb2.Value(bool_value=value)
    if isinstance(value, int):
        try:
            return types_pb2.Value(int_value=value)
        except ValueError:
            raise WireError(f"an int must fit in 64 bits, got {value!r}") from None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise WireError(f"a float must be finite, got {value!r}")
        return types_pb2.Value(float_value=value)
    if isinstance(value, str):
        return types_pb2.Value(string_value=value)
    raise WireError(f"a value is a float, int, bool or str, got {value!r} of type {type(value).__name__}")


def value_from_proto(value: types_pb2.Value) -> Scalar | None:
    """Translate a value from the wire; None if no kind is set, or one that this version does not know."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None  # what can't be read must not end the stream: the session refuses it for that one variable
    plain: Scalar = getattr(value, kind)
    return plain


# --- Resource names ---------------------------------------------------------------------------------------------------


def job_name(job: str) -> str:
    """Return the resource name of a job, as in ``jobs/vgg``."""
    return f"jobs/{job}"


# --- The session's messages -------------------------------------------------------------------------------------------


def spec_to_proto(spec: VariableSpec) -> types_pb2.VariableSpec:
    """Translate the declaration of a variable."""
    return types_pb2.VariableSpec(
        variable_id=spec.name,
        type=_KINDS[spec.kind],
        initial=value_to_proto(spec.initial),
        minimum=None if spec.minimum is None else value_to_proto(spec.minimum),
        maximum=None if spec.maximum is None else value_to_proto(spec.maximum),
        choices=spec.choices or (),
        scale=_SCALES[spec.scale],
        unit=spec.unit,
        doc=spec.doc,
        on_restart=_POLICIES[spec.on_restart],
    )


def request_from_message(
    message: m.Message, *, job: str, instance_id: str, rank: int, token: str, latest_only: bool = False
) -> job_pb2.SessionRequest:
    """Translate a message of the session; the keywords say who speaks and how, for the opening one."""
    if isinstance(message, m.Open):
        opening = job_pb2.SessionOpen(
            job=job_name(job),
            instance_id=instance_id,
            rank=rank,
            after_revision=message.after_revision,
            job_token=token,
            latest_only=latest_only,
            declared_store_id=message.declared_store_id,
            takes_scheduled=True,
        )
        return job_pb2.SessionRequest(open=opening)
    if isinstance(message, m.Declare):
        return job_pb2.SessionRequest(declare=_declare(message))
    if isinstance(message, m.Report):
        return job_pb2.SessionRequest(apply=_report(message))
    if isinstance(message, m.Progress):
        return job_pb2.SessionRequest(progress=job_pb2.Progress(step=message.step))
    if isinstance(message, m.Metrics):
        return job_pb2.SessionRequest(metrics=_metrics(message))
    if isinstance(message, m.Reschedule):
        return job_pb2.SessionRequest(reschedule=_reschedule(message.change))
    return job_pb2.SessionRequest(end=job_pb2.End(failed=message.failed, message=message.message, step=message.step))


def _declare(message: m.Declare) -> job_pb2.Declare:
    restored = {
        name: job_pb2.Restored(store_id=position.store_id, revision=position.revision)
        for name, position in message.restored
    }
    return job_pb2.Declare(
        variables=[
            job_pb2.VariableDeclaration(
                spec=spec_to_proto(spec), current=value_to_proto(current), restored=restored.get(spec.name)
            )
            for spec, current in message.variables
        ],
        triggers=[_trigger(spec) for spec in message.triggers],
    )


def _trigger(spec: TriggerSpec) -> types_pb2.TriggerSpec:
    return types_pb2.TriggerSpec(trigger_id=spec.name, doc=spec.doc)


def _report(message: m.Report) -> job_pb2.ApplyReport:
    return job_pb2.ApplyReport(
        change_revision=0 if message.scheduled else message.revision,
        scheduled_revision=message.revision if message.scheduled else 0,
        step=message.step,
        outcomes=[_outcome(outcome, is_trigger=bool(message.trigger)) for outcome in message.outcomes],
    )


def _outcome(outcome: m.Outcome, *, is_trigger: bool) -> types_pb2.Outcome:
    status = _STATUSES[outcome.status]
    if is_trigger:
        return types_pb2.Outcome(trigger_id=outcome.name, status=status, reason=outcome.reason)
    effective = None if outcome.effective is None else value_to_proto(outcome.effective)
    return types_pb2.Outcome(
        variable_id=outcome.name, status=status, effective=effective, reason=outcome.reason, used=outcome.used
    )


def _reschedule(change: m.ScheduledChange) -> types_pb2.Change:
    return types_pb2.Change(
        scheduled_revision=change.revision,
        at_step=change.step,
        assignments=[
            types_pb2.Assignment(variable_id=name, new_value=value_to_proto(value))
            for name, value in change.assignments
            if value is not None
        ],
        firings=[types_pb2.Firing(trigger_id=name) for name in change.firings],
        reason=change.reason,
        actor=change.actor,
    )


def _metrics(message: m.Metrics) -> job_pb2.Metrics:
    return job_pb2.Metrics(
        samples=[
            job_pb2.MetricSample(name=sample.name, step=sample.step, value=sample.value) for sample in message.samples
        ],
        refused=message.refused,
    )


def registered_from_response(response: job_pb2.RegisterResponse) -> m.Registered:
    """Translate the answer to a registration."""
    return m.Registered(response.store_id, response.run, response.port, response.revision)


def event_from_response(response: job_pb2.SessionResponse) -> m.DaemonEvent | None:
    """Translate what the daemon said on the stream; None if it is nothing that this version knows."""
    kind = response.WhichOneof("message")
    if kind == "change":
        return _change(response.change)
    if kind == "apply_recorded":
        recorded = response.apply_recorded
        return m.ReportRecorded(recorded.change_revision, recorded.trigger_id, recorded.scheduled_revision)
    if kind == "declared":
        return _declared(response.declared)
    if kind == "opened":
        opened = response.opened
        return m.Opened(opened.store_id, opened.revision, opened.takes_metrics, tuple(opened.scheduled_revisions))
    if kind == "scheduled":
        return _scheduled(response.scheduled)
    if kind == "scheduled_cancelled":
        return m.ScheduledCancelled(response.scheduled_cancelled.scheduled_revision)
    if kind == "end_recorded":
        return m.EndRecorded()
    return None


def _change(change: types_pb2.Change) -> m.ChangeReceived:
    return m.ChangeReceived(
        revision=change.revision,
        assignments=_assignments(change),
        firings=tuple(firing.trigger_id for firing in change.firings),
        reason=change.reason,
        actor=change.actor,
        scheduled=change.scheduled_revision,
    )


def _assignments(change: types_pb2.Change) -> tuple[tuple[str, Scalar | None], ...]:
    return tuple((item.variable_id, value_from_proto(item.new_value)) for item in change.assignments)


def _scheduled(change: types_pb2.Change) -> m.ScheduledReceived:
    return m.ScheduledReceived(
        m.ScheduledChange(
            revision=change.revision,
            step=change.at_step,
            assignments=_assignments(change),
            firings=tuple(firing.trigger_id for firing in change.firings),
            reason=change.reason,
            actor=change.actor,
        ),
        restores=change.scheduled_revision,
    )


def _declared(result: job_pb2.DeclareResult) -> m.Declared:
    return m.Declared(
        variables=tuple(
            m.VariableAnswer(
                name=state.variable_id,
                desired=value_from_proto(state.desired),
                revision=state.revision,
                from_change=state.from_change,
                scheduled=state.scheduled_revision,
                error=_error(state.error) if state.HasField("error") else "",
            )
            for state in result.variables
        ),
        triggers=tuple(
            m.TriggerAnswer(
                name=state.trigger_id,
                pending=tuple(state.pending_revisions),
                error=_error(state.error) if state.HasField("error") else "",
            )
            for state in result.triggers
        ),
    )


def _error(error: job_pb2.DeclarationError) -> str:
    return error.message or error.reason or "refused without a reason"
