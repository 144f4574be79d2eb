"""Records and jobs as canonical JSON, and their checksums. Readable with any SQLite shell; exact both ways.

What an older daemon wrote is read too: fields that came later have the default that the older daemon meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from math import isfinite
from typing import Any, TypeVar

from livetuned.domain.job import AppliedValue, Job, RankState, ScheduledState, TriggerState, VariableState
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Assignment,
    Cancelled,
    Changed,
    Declared,
    DeclaredVariable,
    Ended,
    Firing,
    Outcome,
    Payload,
    PortMoved,
    Process,
    Registered,
    Removed,
    Scheduled,
)
from livetuned.domain.requests import Requests
from livetuned.domain.specs import RestartPolicy, Scale, TriggerSpec, VariableSpec
from livetuned.domain.values import Value, ValueType

CHECKSUM_BYTES = 16

Raw = dict[str, Any]
T = TypeVar("T")

# A look into a dictionary takes a quarter of the time of an Enum's own, and a start makes 100,000 of them.
_TYPES = {member.value: member for member in ValueType}
_SCALES = {member.value: member for member in Scale}
_POLICIES = {member.value: member for member in RestartPolicy}

_write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_quote = json.encoder.encode_basestring_ascii

_KINDS: Mapping[type[Payload], str] = {
    Registered: "registered",
    Declared: "declared",
    Changed: "changed",
    Scheduled: "scheduled",
    Cancelled: "cancelled",
    Applied: "applied",
    Ended: "ended",
    PortMoved: "port_moved",
    Removed: "removed",
}


def kind_of(payload: Payload) -> str:
    """Returns the name under which a payload is stored."""
    return _KINDS[type(payload)]


def encode(payload: Payload) -> str:
    """Returns a payload as canonical JSON: fixed order, no spaces, floats in their shortest exact form."""
    return _WRITERS[type(payload)](payload)


def decode(kind: str, text: str) -> Payload:
    """Reads a stored payload.

    Raises:
        ValueError: Unknown kind, or not the JSON that `encode` writes.
    """
    try:
        return _DECODERS[kind](json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a record of kind {kind!r}: {error!r}") from error


def encode_job(job: Job) -> str:
    """Returns a job's state as canonical JSON."""
    return _write(
        {
            "name": job.name,
            "run": job.run,
            "port": job.port,
            "last_port": job.last_port,
            "world_size": job.world_size,
            "registered_us": job.registered_us,
            "run_revision": job.run_revision,
            "revision": job.revision,
            "ranks": [_rank_to_raw(rank, state) for rank, state in job.ranks.items()],
            "variables": [_variable_to_raw(state) for state in job.variables.values()],
            "triggers": [_trigger_to_raw(state) for state in job.triggers.values()],
            "requests": list(job.requests.items()),  # pairs: their order counts
            "changed": job.changed,
            "ended": None if job.ended is None else _ended_to_raw(job.ended),
            "ended_us": job.ended_us,
            **({"scheduled": [_waiting_to_raw(*item) for item in job.scheduled.items()]} if job.scheduled else {}),
        }
    )


def decode_job(text: str) -> Job:
    """Reads a job's state.

    Raises:
        ValueError: Not the JSON that `encode_job` writes.
    """
    try:
        raw = json.loads(text)
        variables = [_variable(item) for item in raw["variables"]]
        triggers = [_trigger(item) for item in raw["triggers"]]
        return Job(
            **{
                **raw,
                "ranks": {item["rank"]: _rank(item) for item in raw["ranks"]},
                "variables": {state.spec.name: state for state in variables},
                "triggers": {state.spec.name: state for state in triggers},
                "requests": Requests(dict(raw["requests"])),
                "ended": None if raw["ended"] is None else Ended(**raw["ended"]),
                "scheduled": dict(_waiting(item) for item in raw.get("scheduled", ())),
            }
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a job: {error!r}") from error


def checksum(previous: bytes, revision: int, time_us: int, job: str, kind: str, subject: int, text: str) -> bytes:
    """Returns the checksum of a record, chained to the record before it."""
    row = f"{revision} {time_us} {job} {kind} {subject} {text}"
    return blake2b(previous + row.encode(), digest_size=CHECKSUM_BYTES).digest()


def checksum_of(*texts: str) -> bytes:
    """Returns the checksum of what stands by itself: a snapshot, a note."""
    return blake2b("\0".join(texts).encode(), digest_size=CHECKSUM_BYTES).digest()


def checksum_v1(previous: bytes, revision: int, time_us: int, job: str, kind: str, text: str) -> bytes:
    """Returns the checksum of a record in schema 1, for the migration."""
    row = json.dumps([revision, time_us, job, kind, text], separators=(",", ":"))
    return blake2b(previous + row.encode(), digest_size=CHECKSUM_BYTES).digest()


# -- to JSON --


def _spec_to_raw(spec: VariableSpec) -> Raw:
    return {
        "name": spec.name,
        "type": spec.type.value,
        "initial": spec.initial,
        "minimum": spec.minimum,
        "maximum": spec.maximum,
        "choices": spec.choices,
        "scale": spec.scale.value,
        "unit": spec.unit,
        "doc": spec.doc,
        "on_restart": spec.on_restart.value,
    }


def _trigger_spec_to_raw(spec: TriggerSpec) -> Raw:
    return {"name": spec.name, "doc": spec.doc}


def _process_to_raw(process: Process) -> Raw:
    return {
        "host": process.host,
        "pid": process.pid,
        "user": process.user,
        "command": process.command,
        "sdk_version": process.sdk_version,
    }


def _registered_to_raw(payload: Registered) -> Raw:
    return {
        "run": payload.run,
        "port": payload.port,
        "rank": payload.rank,
        "world_size": payload.world_size,
        "instance_id": payload.instance_id,
        "resumed": payload.resumed,
        "process": _process_to_raw(payload.process),
        "token_hash": payload.token_hash,
        **({"leads": True} if payload.leads else {}),  # schema 2 began without it
    }


def _declared_to_raw(payload: Declared) -> Raw:
    return {
        "instance_id": payload.instance_id,
        "variables": [
            {
                "spec": _spec_to_raw(item.spec),
                "desired": item.desired,
                **({"in_use": True} if item.in_use else {}),  # schema 2 began without it
            }
            for item in payload.variables
        ],
        "triggers": [_trigger_spec_to_raw(spec) for spec in payload.triggers],
    }


def _write_changed(payload: Changed) -> str:
    # Written out: nearly all records are changes, and the encoder takes three times as long, most of it for the
    # dictionaries that it is given.
    write = _write_scalar
    assignments = ",".join(
        [
            f'{{"variable":{write(item.variable)},"old":{write(item.old)},"new":{write(item.new)}}}'
            for item in payload.assignments
        ]
    )
    firings = ",".join(
        [f'{{"trigger":{write(item.trigger)},"number":{write(item.number)}}}' for item in payload.firings]
    )
    return (
        f'{{"actor":{write(payload.actor)},"reason":{write(payload.reason)},'
        f'"request_id":{write(payload.request_id)},"assignments":[{assignments}],"firings":[{firings}],'
        f'"undoes":{write(payload.undoes)}{_scheduled_at(payload.scheduled)}}}'
    )


def _scheduled_at(revision: int) -> str:
    return f',"scheduled":{revision}' if revision else ""  # schema 2 began without it


def _write_scalar(value: Value) -> str:
    if isinstance(value, str):
        return _quote(value)
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return _write(value)


def _applied_to_raw(payload: Applied) -> Raw:
    return {
        "change_revision": payload.change_revision,
        "rank": payload.rank,
        "step": payload.step,
        "outcomes": [
            {
                "target": item.target,
                "is_trigger": item.is_trigger,
                "status": item.status.value,
                "effective": item.effective,
                "reason": item.reason,
                **({"used": item.used} if item.used else {}),
            }
            for item in payload.outcomes
        ],
    }


def _write_scheduled(payload: Scheduled) -> str:
    return f'{{"step":{_write_scalar(payload.step)},"change":{_write_changed(payload.change)}}}'


def _cancelled_to_raw(payload: Cancelled) -> Raw:
    return {"scheduled": payload.scheduled, "actor": payload.actor, "reason": payload.reason}


def _ended_to_raw(payload: Ended) -> Raw:
    return {"failed": payload.failed, "message": payload.message, "step": payload.step}


def _port_moved_to_raw(payload: PortMoved) -> Raw:
    return {"port": payload.port, "previous": payload.previous}


def _removed_to_raw(payload: Removed) -> Raw:
    return {"actor": payload.actor, "reason": payload.reason}


def _writer(to_raw: Callable[[Any], Raw]) -> Callable[[Any], str]:
    return lambda payload: _write(to_raw(payload))


_WRITERS: Mapping[type[Payload], Callable[[Any], str]] = {
    Registered: _writer(_registered_to_raw),
    Declared: _writer(_declared_to_raw),
    Changed: _write_changed,
    Scheduled: _write_scheduled,
    Cancelled: _writer(_cancelled_to_raw),
    Applied: _writer(_applied_to_raw),
    Ended: _writer(_ended_to_raw),
    PortMoved: _writer(_port_moved_to_raw),
    Removed: _writer(_removed_to_raw),
}


def _waiting_to_raw(revision: int, state: ScheduledState) -> Raw:
    return {
        "revision": revision,
        "scheduled": json.loads(_write_scheduled(state.scheduled)),
        "time_us": state.time_us,
        "made": state.made,
        "cancelled": state.cancelled,
    }


def _rank_to_raw(rank: int, state: RankState) -> Raw:
    return {
        "rank": rank,
        "instance_id": state.instance_id,
        "process": _process_to_raw(state.process),
        "revision": state.revision,
        "token_hash": state.token_hash,
        "applied_revision": state.applied_revision,
        **({"leads": True} if state.leads else {}),
    }


def _variable_to_raw(state: VariableState) -> Raw:
    return {
        "spec": _spec_to_raw(state.spec),
        "declared_by": state.declared_by,
        "desired": state.desired,
        "revision": state.revision,
        "from_change": state.from_change,
        "taken": state.taken,
        "applied": [(rank, item.value, item.revision, item.step) for rank, item in state.applied.items()],
        "acknowledged": list(state.acknowledged.items()),
    }


def _trigger_to_raw(state: TriggerState) -> Raw:
    return {
        "spec": _trigger_spec_to_raw(state.spec),
        "declared_by": state.declared_by,
        "fired": state.fired,
        "revision": state.revision,
        "pending": state.pending,
    }


# -- from JSON --


def _later(raw: Raw, key: str, default: T) -> T:
    """Reads a field that schema 2 began without, and that is not written while it has its default."""
    found = raw.get(key, default)
    if type(found) is not type(default):
        raise TypeError(f"{key} is {found!r}")
    return found


def _variable_spec(raw: Raw) -> VariableSpec:
    return VariableSpec(
        raw["name"],
        _TYPES[raw["type"]],
        raw["initial"],
        raw["minimum"],
        raw["maximum"],
        tuple(raw["choices"]),
        _SCALES[raw["scale"]],
        raw["unit"],
        raw["doc"],
        _POLICIES[raw.get("on_restart", "keep")],
    )


def _registered(raw: Raw) -> Payload:
    return Registered(**{**raw, "process": Process(**raw["process"])})


def _declared(raw: Raw) -> Payload:
    return Declared(
        raw["instance_id"],
        tuple(
            DeclaredVariable(_variable_spec(item["spec"]), item["desired"], _later(item, "in_use", False))
            for item in raw["variables"]
        ),
        tuple(TriggerSpec(**item) for item in raw["triggers"]),
    )


def _changed(raw: Raw) -> Changed:
    return Changed(
        raw["actor"],
        raw["reason"],
        raw["request_id"],
        tuple(Assignment(item["variable"], item["old"], item["new"]) for item in raw["assignments"]),
        tuple(Firing(item["trigger"], item["number"]) for item in raw["firings"]),
        raw.get("undoes", 0),
        _later(raw, "scheduled", 0),
    )


def _scheduled(raw: Raw) -> Scheduled:
    return Scheduled(raw["step"], _changed(raw["change"]))


def _applied(raw: Raw) -> Payload:
    outcomes = tuple(
        Outcome(
            item["target"],
            item["is_trigger"],
            ApplyStatus(item["status"]),
            item["effective"],
            item["reason"],
            tuple(_later(item, "used", [])),
        )
        for item in raw["outcomes"]
    )
    return Applied(raw["change_revision"], raw["rank"], raw["step"], outcomes)


_DECODERS: Mapping[str, Callable[[Raw], Payload]] = {
    "registered": _registered,
    "declared": _declared,
    "changed": _changed,
    "scheduled": _scheduled,
    "cancelled": lambda raw: Cancelled(**raw),
    "applied": _applied,
    "ended": lambda raw: Ended(**raw),
    "port_moved": lambda raw: PortMoved(**raw),
    "removed": lambda raw: Removed(**raw),
}


def _waiting(raw: Raw) -> tuple[int, ScheduledState]:
    state = ScheduledState(_scheduled(raw["scheduled"]), raw["time_us"], raw["made"], raw["cancelled"])
    return raw["revision"], state


def _rank(raw: Raw) -> RankState:
    return RankState(
        raw["instance_id"],
        Process(**raw["process"]),
        raw["revision"],
        raw["token_hash"],
        raw["applied_revision"],
        _later(raw, "leads", False),
    )


def _variable(raw: Raw) -> VariableState:
    return VariableState(
        _variable_spec(raw["spec"]),
        raw["declared_by"],
        raw["desired"],
        raw["revision"],
        raw["from_change"],
        raw["taken"],
        {rank: AppliedValue(value, revision, step) for rank, value, revision, step in raw["applied"]},
        dict(raw["acknowledged"]),
    )


def _trigger(raw: Raw) -> TriggerState:
    return TriggerState(
        TriggerSpec(**raw["spec"]),
        raw["declared_by"],
        raw["fired"],
        raw["revision"],
        tuple(raw["pending"]),
    )
