"""Owns reading the daemon's refusals: from a gRPC error to its reason, message and what it speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from livetune.v1 import errors_pb2

if TYPE_CHECKING:
    import grpc

__all__ = ["Refusal", "refusal_of"]

_DETAILS_KEY = "grpc-status-details-bin"
_ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"


@dataclass(frozen=True)
class Refusal:
    """What a call was answered instead of a result."""

    code: str
    """Name of the gRPC status code, such as ``NOT_FOUND``."""
    message: str
    """One sentence for a person."""
    reason: str = ""
    """The cause in UPPER_SNAKE_CASE, stable; empty if the error does not come from a livetuned daemon."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the message speaks of, such as ``variable``, ``rule``, ``value``, ``nearest``."""


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read a gRPC error; what it does not carry, or carries damaged, is left empty."""
    call: Any = error  # an error of a call is the call itself, which its class does not say
    if not hasattr(call, "code"):
        return Refusal("UNKNOWN", str(error))
    code, message = call.code().name, call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            info = _error_info(value)
            if info is not None:
                return Refusal(code, message, info.reason, dict(info.metadata))
    return Refusal(code, message)


def _error_info(serialized: bytes) -> errors_pb2.ErrorInfo | None:
    try:
        status = errors_pb2.ErrorStatus.FromString(serialized)
        details = [detail.value for detail in status.details if detail.type_url == _ERROR_INFO_URL]
        return errors_pb2.ErrorInfo.FromString(details[0]) if details else None
    except DecodeError:
        return None
