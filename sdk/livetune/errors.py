"""Owns every exception the SDK raises on purpose.

    LiveTuneError
    ├── InvalidNameError     (also ValueError)      a name breaks the rule for names
    ├── DeclarationError     (also ValueError)      a variable or trigger is declared wrongly, or contradicts itself
    ├── JobExistsError       (also RuntimeError)    a second live job of one name in one process
    ├── JobFinishedError     (also RuntimeError)    something is declared or waited for after the end
    ├── EndpointError        (also ValueError)      the text of an endpoint cannot be read
    ├── DaemonUnreachableError (also ConnectionError) nobody answers at any endpoint
    ├── WireError            (also ValueError)      a message of the daemon cannot be understood
    ├── CheckpointError      (also ValueError)      a job can't go on from what a checkpoint has of it
    ├── ReplayError          (also ValueError)      what was recorded can't be replayed, or nothing be recorded as asked
    └── Veto                                        raised by a program's own callback, to refuse a value

Nothing of this is ever raised by ``job.step()``, by reading a variable or by asking a trigger.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DaemonUnreachableError",
    "DeclarationError",
    "EndpointError",
    "InvalidNameError",
    "JobExistsError",
    "JobFinishedError",
    "LiveTuneError",
    "ReplayError",
    "Veto",
    "WireError",
]


class LiveTuneError(Exception):
    """Base of all errors that LiveTune raises on purpose; catch it to catch them all."""


class InvalidNameError(LiveTuneError, ValueError):
    """A job, variable or trigger name breaks the rule for names; the message carries the rule and the name."""


class DeclarationError(LiveTuneError, ValueError):
    """A declaration is wrong in itself, or says something else than an earlier one of the same name."""


class JobExistsError(LiveTuneError, RuntimeError):
    """This process has a live job of that name already."""


class JobFinishedError(LiveTuneError, RuntimeError):
    """The job has ended: nothing can be declared in it any more, and nothing that is waited for will happen."""


class EndpointError(LiveTuneError, ValueError):
    """The text given as endpoint is neither ``unix:/path`` nor ``host:port``."""


class DaemonUnreachableError(LiveTuneError, ConnectionError):
    """No daemon accepts connections at any of the endpoints; the message lists what was tried."""


class WireError(LiveTuneError, ValueError):
    """A message or resource name of the daemon cannot be understood."""


class CheckpointError(LiveTuneError, ValueError):
    """What a checkpoint has of a job can't be read, or is not allowed by what the program declares now."""


class ReplayError(LiveTuneError, ValueError):
    """A file can't be replayed, or a record can't be made as asked; the message names the file, the rule, the value."""


class Veto(LiveTuneError):  # noqa: N818 - it is what a program says, not what went wrong
    """Raise it in a `Variable.on_set` or `Variable.pre_set` callback to refuse a value.

    The text is the reason: it is recorded, and shown to whoever asked for the change.
    """
