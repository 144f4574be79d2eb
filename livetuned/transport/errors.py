"""What a refusal looks like on the wire: the one table from reason to gRPC status, and the details with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any

from livetune.v1 import errors_pb2
from livetuned.domain.errors import DomainError, Reason

DOMAIN = "livetune"
"""Domain of every ErrorInfo."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries google.rpc.Status."""

_ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"

INTERNAL_WORDS = "internal error; the daemon's log has the details"
"""What a client is told of an error that is none of its own."""

log = logging.getLogger(__name__)

_Code = grpc.StatusCode

STATUS: Mapping[Reason, grpc.StatusCode] = MappingProxyType(
    {
        Reason.INVALID_NAME: _Code.INVALID_ARGUMENT,
        Reason.INVALID_REQUEST: _Code.INVALID_ARGUMENT,
        Reason.MALFORMED_MESSAGE: _Code.INVALID_ARGUMENT,
        Reason.WRONG_TYPE: _Code.INVALID_ARGUMENT,
        Reason.NOT_FINITE: _Code.OUT_OF_RANGE,
        Reason.BELOW_MINIMUM: _Code.OUT_OF_RANGE,
        Reason.ABOVE_MAXIMUM: _Code.OUT_OF_RANGE,
        Reason.NOT_A_CHOICE: _Code.OUT_OF_RANGE,
        Reason.JOB_NOT_FOUND: _Code.NOT_FOUND,
        Reason.VARIABLE_NOT_FOUND: _Code.NOT_FOUND,
        Reason.TRIGGER_NOT_FOUND: _Code.NOT_FOUND,
        Reason.CHANGE_NOT_FOUND: _Code.NOT_FOUND,
        Reason.REVISION_MISMATCH: _Code.ABORTED,
        Reason.UNDO_CONFLICT: _Code.ABORTED,
        Reason.REQUEST_ID_REUSED: _Code.INVALID_ARGUMENT,
        Reason.STEP_PASSED: _Code.OUT_OF_RANGE,
        Reason.SCHEDULE_UNKNOWN: _Code.FAILED_PRECONDITION,
        Reason.JOB_LIVE: _Code.FAILED_PRECONDITION,
        Reason.JOB_EXISTS: _Code.ALREADY_EXISTS,
        Reason.NOT_REGISTERED: _Code.FAILED_PRECONDITION,
        Reason.JOB_ENDED: _Code.FAILED_PRECONDITION,
        Reason.DECLARATION_CONFLICT: _Code.FAILED_PRECONDITION,
        Reason.STORE_REPLACED: _Code.FAILED_PRECONDITION,
        Reason.WATCH_TOO_SLOW: _Code.ABORTED,
        Reason.LIMIT_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
        Reason.PORTS_EXHAUSTED: _Code.RESOURCE_EXHAUSTED,
        Reason.STORE_FULL: _Code.RESOURCE_EXHAUSTED,
        Reason.SHUTTING_DOWN: _Code.UNAVAILABLE,
    }
)
"""The status of every reason."""


def status_of(error: Exception) -> errors_pb2.ErrorStatus:
    """Returns an error as google.rpc.Status; what is no refusal is logged, and is the log's business alone."""
    if isinstance(error, DomainError):
        return _status(error)
    log.error("a change failed", exc_info=error)
    code: int = _Code.INTERNAL.value[0]
    return errors_pb2.ErrorStatus(code=code, message=INTERNAL_WORDS)


def details(error: DomainError) -> bytes:
    """Returns the error as a serialised google.rpc.Status with one ErrorInfo."""
    return _status(error).SerializeToString()


def _status(error: DomainError) -> errors_pb2.ErrorStatus:
    info = errors_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN, metadata=dict(error.metadata))
    return errors_pb2.ErrorStatus(
        code=STATUS[error.reason].value[0],
        message=error.message,
        details=[Any(type_url=_ERROR_INFO_URL, value=info.SerializeToString())],
    )


async def abort(context: grpc.aio.ServicerContext[object, object], error: DomainError) -> NoReturn:
    """Ends a call with the error's status and details."""
    await context.abort(STATUS[error.reason], error.message, ((DETAILS_KEY, details(error)),))
