"""Owns what ltctl shows: from messages to plain data with stable names (for programs) and to words (for people)."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from livetune.v1 import control_pb2, types_pb2
from ltctl.text import arrow, safe

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

Data = dict[str, Any]


def _word(enum: Any, number: int, prefix: str) -> str:
    name = enum.Name(number) if number in enum.values() else f"{prefix}{number}"
    return str(name).removeprefix(prefix).lower()


def state(job: types_pb2.Job) -> str:
    """Return a job's state as one word."""
    return _word(types_pb2.JobState, job.state, "JOB_STATE_")


def _time(stamp: Timestamp) -> str:
    return datetime.fromtimestamp(stamp.seconds, timezone.utc).replace(microsecond=stamp.nanos // 1_000).isoformat()


def local_time(stamp: Timestamp) -> str:
    """Return a time as a person here reads it."""
    return datetime.fromtimestamp(stamp.seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def leaf(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def value(message: types_pb2.Value) -> float | int | bool | str | None:
    """Return a value as plain data."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    plain: float | int | bool | str = getattr(message, kind)
    return plain


def shown(message: types_pb2.Value) -> str:
    """Return a value as a person reads it; what `ltctl set` reads back as the same."""
    plain = value(message)
    if plain is None:
        return "-"
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, float):
        return f"{plain:g}" if float(f"{plain:g}") == plain else repr(plain)
    return safe(str(plain)) if plain != "" else "''"


def job_data(job: types_pb2.Job) -> Data:
    """Return a job with all that is known of it."""
    data: Data = {
        "name": leaf(job.name),
        "state": state(job),
        "port": job.port,
        "run": job.run,
        "step": job.step,
        "revision": job.revision,
        "registered_time": _time(job.registered_time),
        "ranks": [
            {
                "rank": rank.rank,
                "connected": rank.connected,
                "step": rank.step,
                "host": rank.process.host,
                "pid": rank.process.pid,
                "user": rank.process.user,
                "command": rank.process.command,
                "sdk_version": rank.process.sdk_version,
            }
            for rank in job.ranks
        ],
    }
    if job.classic_port:
        data["classic_port"] = job.classic_port
    if job.HasField("ended_time"):
        data["ended_time"] = _time(job.ended_time)
        data["end_message"] = job.end_message
    return data


def variable_data(variable: types_pb2.Variable) -> Data:
    """Return a variable with its declaration and state."""
    spec = variable.spec
    data: Data = {
        "name": spec.variable_id,
        "type": _word(types_pb2.VariableType, spec.type, "VARIABLE_TYPE_"),
        "desired": value(variable.desired),
        "revision": variable.revision,
        "applied": [
            {"rank": item.rank, "value": value(item.value), "revision": item.revision, "step": item.step}
            for item in variable.applied
        ],
        "initial": value(spec.initial),
        "minimum": value(spec.minimum),
        "maximum": value(spec.maximum),
        "choices": list(spec.choices),
        "scale": _word(types_pb2.Scale, spec.scale, "SCALE_") if spec.scale else None,
        "unit": spec.unit,
        "doc": spec.doc,
    }
    return data


def trigger_data(trigger: types_pb2.Trigger) -> Data:
    """Return a trigger with its state."""
    return {
        "name": trigger.spec.trigger_id,
        "fired": trigger.fired,
        "consumed": trigger.consumed,
        "revision": trigger.revision,
        "doc": trigger.spec.doc,
    }


def _outcome_data(outcome: types_pb2.Outcome) -> Data:
    kind = "trigger" if outcome.trigger_id else "variable"
    return {
        kind: outcome.trigger_id or outcome.variable_id,
        "status": status(outcome),
        "effective": value(outcome.effective),
        "reason": outcome.reason,
    }


def status(outcome: types_pb2.Outcome) -> str:
    """Return what became of a part of a change, as one word."""
    return _word(types_pb2.ApplyStatus, outcome.status, "APPLY_STATUS_")


def apply_data(apply: types_pb2.Apply) -> Data:
    """Return an acknowledgement."""
    return {
        "change_revision": apply.change_revision,
        "rank": apply.rank,
        "step": apply.step,
        "time": _time(apply.time),
        "outcomes": [_outcome_data(outcome) for outcome in apply.outcomes],
    }


def change_data(change: types_pb2.Change) -> Data:
    """Return a change with what became of it."""
    return {
        "revision": change.revision,
        "job": leaf(change.job),
        "time": _time(change.time),
        "actor": change.actor,
        "reason": change.reason,
        "assignments": [
            {"variable": item.variable_id, "old": value(item.old_value), "new": value(item.new_value)}
            for item in change.assignments
        ],
        "firings": [{"trigger": item.trigger_id, "number": item.number} for item in change.firings],
        "applies": [apply_data(apply) for apply in change.applies],
        "lapsed": list(change.lapsed_ids),
    }


def change_words(change: types_pb2.Change) -> str:
    """Return what a change does, in words."""
    parts = [
        f"{safe(item.variable_id)} {shown(item.old_value)} {arrow()} {shown(item.new_value)}"
        for item in change.assignments
    ]
    parts += [f"fire {safe(item.trigger_id)}" for item in change.firings]
    return ", ".join(parts)


def applied_words(change: types_pb2.Change) -> str:
    """Return what became of a change, in words: the steps at which its parts took effect, or what did not."""
    parts: list[str] = []
    for apply in change.applies:
        for outcome in apply.outcomes:
            word = status(outcome)
            text = f"step {apply.step}" if word == "applied" else f"{word} at step {apply.step}"
            if outcome.reason:
                text += f" ({safe(outcome.reason)})"
            if text not in parts:
                parts.append(text)
    names = [item.variable_id for item in change.assignments] + [item.trigger_id for item in change.firings]
    if change.lapsed_ids:
        # Whole changes mostly: then the names need not be said again.
        whole = set(change.lapsed_ids) == set(names)
        parts.append("never" if whole else f"never: {', '.join(map(safe, change.lapsed_ids))}")
    return ", ".join(parts) or "pending"


def event_data(event: control_pb2.Event) -> Data:
    """Return an event of a watch."""
    kind = event.WhichOneof("kind") or "unknown"
    data: Data = {
        "revision": event.revision,
        "time": _time(event.time),
        "job": leaf(event.job),
        "kind": kind,
    }
    if kind == "registered":
        registered = event.registered
        data |= {
            "run": registered.run, "port": registered.port, "rank": registered.rank, "resumed": registered.resumed,
            "host": registered.process.host, "pid": registered.process.pid, "user": registered.process.user,
        }  # fmt: skip
    elif kind == "declared":
        data["variables"] = [variable_data(item) for item in event.declared.variables]
        data["triggers"] = [{"name": item.trigger_id, "doc": item.doc} for item in event.declared.triggers]
    elif kind == "change":
        data["change"] = change_data(event.change)
    elif kind == "apply":
        data["apply"] = apply_data(event.apply)
    elif kind == "ended":
        data |= {"state": _word(types_pb2.JobState, event.ended.state, "JOB_STATE_"), "message": event.ended.message}
    elif kind == "port_moved":
        data |= {"port": event.port_moved.port, "previous_port": event.port_moved.previous_port}
    return data


def status_words(outcome: types_pb2.Outcome) -> str:
    """Return what became of a part of a change, as a person says it."""
    word = "consumed" if outcome.trigger_id and status(outcome) == "applied" else status(outcome)
    return f"{word} ({safe(outcome.reason)})" if outcome.reason else word


def event_words(event: control_pb2.Event) -> str:
    """Return what happened, in words."""
    kind = event.WhichOneof("kind")
    if kind == "registered":
        how = "took up run" if event.registered.resumed else "began run"
        return f"{how} {event.registered.run} as rank {event.registered.rank}, port {event.registered.port}"
    if kind == "declared":
        names = [item.spec.variable_id for item in event.declared.variables]
        names += [item.trigger_id for item in event.declared.triggers]
        return f"declared {safe(', '.join(names))}"
    if kind == "change":
        why = f'  "{safe(event.change.reason)}"' if event.change.reason else ""
        return f"{change_words(event.change)}  by {safe(event.change.actor) or 'unknown'}{why}"
    if kind == "apply":
        parts = [f"{safe(item.variable_id or item.trigger_id)} {status_words(item)}" for item in event.apply.outcomes]
        rank = f" on rank {event.apply.rank}" if event.apply.rank else ""
        return f"{', '.join(parts)} at step {event.apply.step}{rank} (revision {event.apply.change_revision})"
    if kind == "ended":
        word = _word(types_pb2.JobState, event.ended.state, "JOB_STATE_")
        return f"{word}{f': {safe(event.ended.message)}' if event.ended.message else ''}"
    if kind == "port_moved":
        return f"port moved from {event.port_moved.previous_port} to {event.port_moved.port}"
    return "something that this ltctl does not know"
