"""Owns how ltctl ends: its exit codes, and which of them each gRPC status becomes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes. Scripts read them; they are stable."""

    OK = 0
    ERROR = 1
    """An error that has no code of its own."""
    USAGE = 2
    """The command is wrong: an unknown option, a bad name, a value of the wrong type."""
    NOT_FOUND = 3
    """No such job, variable, trigger, series or change."""
    CONFLICT = 4
    """It was changed meanwhile (--if-revision, undo), or again before the job took it."""
    REFUSED = 5
    """The value breaks the variable's constraint: nothing was changed."""
    NOT_ALLOWED = 6
    UNREACHABLE = 7
    """No daemon answers."""
    NOT_APPLIED = 8
    """Accepted and on disk, but not applied in time."""
    VETOED = 9
    """Accepted and on disk, but the job refused it: the value before is in use."""
    INTERRUPTED = 130
    """Ctrl-C."""


BY_STATUS: Mapping[str, Exit] = {
    "OK": Exit.OK,
    "CANCELLED": Exit.ERROR,
    "UNKNOWN": Exit.ERROR,
    "INVALID_ARGUMENT": Exit.USAGE,
    "DEADLINE_EXCEEDED": Exit.UNREACHABLE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "ALREADY_EXISTS": Exit.CONFLICT,
    "PERMISSION_DENIED": Exit.NOT_ALLOWED,
    "UNAUTHENTICATED": Exit.NOT_ALLOWED,
    "RESOURCE_EXHAUSTED": Exit.ERROR,
    "FAILED_PRECONDITION": Exit.ERROR,
    "ABORTED": Exit.CONFLICT,
    "OUT_OF_RANGE": Exit.REFUSED,
    "UNIMPLEMENTED": Exit.ERROR,
    "INTERNAL": Exit.ERROR,
    "UNAVAILABLE": Exit.UNREACHABLE,
    "DATA_LOSS": Exit.ERROR,
}
"""The exit code of every gRPC status, by the status's name (so that importing this does not load gRPC)."""

EXIT_HELP = (
    "Exit codes: 0 ok, 1 error, 2 usage (also a value of the wrong type), 3 not found, 4 conflict, "
    "5 refused by a constraint, 6 not allowed, 7 daemon unreachable, 8 accepted but not applied in time, "
    "9 accepted but refused by the job, 130 interrupted."
)


class CommandError(Exception):
    """Ends the command with a message on stderr and an exit code."""

    def __init__(self, code: Exit, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        """The cause as the daemon names it, ``""`` if it is not the daemon's."""


class ReaderLeftError(Exception):
    """Nobody reads the output any more, as after `| head`: no error, he has what he wanted."""
