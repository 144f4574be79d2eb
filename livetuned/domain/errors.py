"""Why the daemon says no: one exception, a closed set of reasons, and what the message speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Reason(Enum):
    """The cause of a refusal. Names are stable: they cross the wire and programs may depend on them."""

    INVALID_NAME = "a name breaks the rule for names"
    INVALID_REQUEST = "the request lacks something or contradicts itself"
    MALFORMED_MESSAGE = "the bytes are not a message of the expected type"
    WRONG_TYPE = "the value is not of the variable's type"
    NOT_FINITE = "the value is NaN or infinite"
    BELOW_MINIMUM = "the value is below the variable's minimum"
    ABOVE_MAXIMUM = "the value is above the variable's maximum"
    NOT_A_CHOICE = "the value is not one of the variable's choices"
    JOB_NOT_FOUND = "no job has this name"
    VARIABLE_NOT_FOUND = "the job has no variable of this name"
    TRIGGER_NOT_FOUND = "the job has no trigger of this name"
    CHANGE_NOT_FOUND = "the job has no change of this revision, or it was compacted away"
    REVISION_MISMATCH = "the variable or job was changed after the revision named"
    REQUEST_ID_REUSED = "the request id was used for another change"
    UNDO_CONFLICT = "the change to undo was overwritten since"
    STEP_PASSED = "the step has passed"
    SCHEDULE_UNKNOWN = "the job's program can't hold changes until their step"
    JOB_LIVE = "the job is connected"
    JOB_EXISTS = "another live process holds this job"
    NOT_REGISTERED = "the process is not registered, or another took its place"
    JOB_ENDED = "the job has ended"
    DECLARATION_CONFLICT = "the declaration contradicts an earlier one"
    STORE_REPLACED = "the revision comes from another store"
    WATCH_TOO_SLOW = "the watcher does not read what is sent to it"
    LIMIT_EXCEEDED = "a limit would be exceeded"
    PORTS_EXHAUSTED = "no port of the range is free"
    STORE_FULL = "the disk is full: reads go on, writes are refused"
    SHUTTING_DOWN = "the daemon is stopping"


class DomainError(Exception):
    """A refusal that names the thing, the rule and the value.

    Attributes:
        reason: The cause.
        message: One sentence for a person.
        metadata: What the message speaks of, for programs (for example ``variable``, ``rule``, ``value``, ``nearest``).
    """

    def __init__(self, reason: Reason, message: str, /, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)


def limit_exceeded(limit: str, maximum: int, message: str) -> DomainError:
    """Builds the refusal for a limit of `limits`.

    Args:
        limit: The limit's name in `limits`, in lower case.
        maximum: Its value.
        message: What exceeds it.
    """
    return DomainError(
        Reason.LIMIT_EXCEEDED, f"{message}: limit {limit} is {maximum:,}", limit=limit, maximum=str(maximum)
    )
