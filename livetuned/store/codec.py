"""Records as canonical JSON, and the checksum that chains them. Readable with any SQLite shell; exact both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from hashlib import blake2b
from typing import Any

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
    Payload,
    PortMoved,
    Process,
    Registered,
)
from livetuned.domain.specs import Scale, TriggerSpec, VariableSpec
from livetuned.domain.values import ValueType

CHECKSUM_BYTES = 16

_KINDS: Mapping[type[Payload], str] = {
    Registered: "registered",
    Declared: "declared",
    Changed: "changed",
    Applied: "applied",
    Ended: "ended",
    PortMoved: "port_moved",
}


def kind_of(payload: Payload) -> str:
    """Returns the name under which a payload is stored."""
    return _KINDS[type(payload)]


def encode(payload: Payload) -> str:
    """Returns a payload as canonical JSON: sorted keys, no spaces, floats in their shortest exact form."""
    return json.dumps(asdict(payload), sort_keys=True, separators=(",", ":"), allow_nan=False, default=_enum_value)


def _enum_value(member: object) -> object:
    if isinstance(member, Enum):
        return member.value
    raise TypeError(f"{type(member).__name__} is not stored")


def decode(kind: str, text: str) -> Payload:
    """Reads a stored payload.

    Raises:
        ValueError: Unknown kind, or not the JSON that `encode` writes.
    """
    try:
        return _DECODERS[kind](json.loads(text))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of kind {kind!r}: {error!r}") from error


def checksum(previous: bytes, revision: int, time_us: int, job: str, kind: str, text: str) -> bytes:
    """Returns the checksum of a row, chained to the row before it."""
    row = json.dumps([revision, time_us, job, kind, text], separators=(",", ":"))
    return blake2b(previous + row.encode(), digest_size=CHECKSUM_BYTES).digest()


def _variable_spec(raw: dict[str, Any]) -> VariableSpec:
    return VariableSpec(
        **{
            **raw,
            "type": ValueType(raw["type"]),
            "scale": Scale(raw["scale"]),
            "choices": tuple(raw["choices"]),
        }
    )


def _registered(raw: dict[str, Any]) -> Payload:
    return Registered(**{**raw, "process": Process(**raw["process"])})


def _declared(raw: dict[str, Any]) -> Payload:
    return Declared(
        raw["instance_id"],
        tuple(DeclaredVariable(_variable_spec(item["spec"]), item["desired"]) for item in raw["variables"]),
        tuple(TriggerSpec(**item) for item in raw["triggers"]),
    )


def _changed(raw: dict[str, Any]) -> Payload:
    return Changed(
        raw["actor"],
        raw["reason"],
        raw["request_id"],
        tuple(Assignment(**item) for item in raw["assignments"]),
        tuple(Firing(**item) for item in raw["firings"]),
    )


def _applied(raw: dict[str, Any]) -> Payload:
    outcomes = tuple(Outcome(**{**item, "status": ApplyStatus(item["status"])}) for item in raw["outcomes"])
    return Applied(**{**raw, "outcomes": outcomes})


_DECODERS: Mapping[str, Callable[[dict[str, Any]], Payload]] = {
    "registered": _registered,
    "declared": _declared,
    "changed": _changed,
    "applied": _applied,
    "ended": lambda raw: Ended(**raw),
    "port_moved": lambda raw: PortMoved(**raw),
}
