"""The log: what can happen to a job, and the record of it. The state of every job is a fold over these."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from livetuned.domain.frozen import dataclass
from livetuned.domain.specs import TriggerSpec, VariableSpec
from livetuned.domain.values import Value


@dataclass(frozen=True, slots=True)
class Process:
    """Where and as what a rank runs. Descriptive only."""

    host: str = ""
    pid: int = 0
    user: str = ""
    command: str = ""
    sdk_version: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """A process took a rank of a job."""

    run: int
    """The how-manieth run under this name, from 1."""
    port: int
    """The port assigned to the job."""
    rank: int
    world_size: int
    instance_id: str
    """How the process is known again after a broken connection."""
    resumed: bool
    """True if the run goes on: another rank of it, or a new process that takes up a run that was lost."""
    process: Process
    token_hash: str = ""
    """Hash of the secret that opens the session of this registration; "" in records of schema 1."""
    leads: bool = False
    """It speaks for all ranks of the job, and acknowledges for them: the others do not register."""


@dataclass(frozen=True, slots=True)
class DeclaredVariable:
    """A variable that became known, or whose specification was replaced by a new process of the run."""

    spec: VariableSpec
    desired: Value
    in_use: bool = False
    """The process uses `desired` already, although its program begins with something else."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A process declared what was not known before."""

    instance_id: str
    variables: tuple[DeclaredVariable, ...]
    triggers: tuple[TriggerSpec, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One variable in a change."""

    variable: str
    old: Value
    new: Value


@dataclass(frozen=True, slots=True)
class Firing:
    """One firing of a trigger in a change."""

    trigger: str
    number: int
    """The how-manieth firing of this trigger in this run, from 1."""


@dataclass(frozen=True, slots=True)
class Changed:
    """An accepted change: assignments and firings that take effect together."""

    actor: str
    reason: str
    request_id: str
    assignments: tuple[Assignment, ...]
    firings: tuple[Firing, ...]
    undoes: int = 0
    """Revision of the change that this one undoes, 0 for none."""
    scheduled: int = 0
    """Revision at which it was scheduled, 0 if it was made at once. Of one that waits itself: the revision by which a
    checkpoint had it waiting, 0 if it comes from none."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A change that waits for its step. When the step has come, it is made: a record of its own then says so."""

    step: int
    """The step at which, or after which, a safe point lets it take effect."""
    change: Changed
    """What is to be made; its old values, and the numbers of its firings, are those of when it was scheduled."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A change that waited for its step does not wait any more."""

    scheduled: int
    """Revision at which it was scheduled."""
    actor: str
    reason: str


class ApplyStatus(Enum):
    """What became of an assignment or a firing on a rank."""

    APPLIED = "applied"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part of a change on a rank."""

    target: str
    """Name of the variable or trigger."""
    is_trigger: bool
    status: ApplyStatus
    effective: Value | None
    """What the rank uses from here on; None for a trigger."""
    reason: str = ""
    used: tuple[float, ...] = ()
    """What the first step after it really used, where the program knows: of a learning rate, by parameter group."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A rank acknowledged a change, or a part of it."""

    change_revision: int
    rank: int
    step: int
    """The job's step at whose safe point it took effect."""
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over: its program said so, or it was lost and given up."""

    failed: bool
    message: str
    step: int


@dataclass(frozen=True, slots=True)
class PortMoved:
    """The job's port was held by another program when the daemon came back."""

    port: int
    previous: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The job was forgotten: by request, or because it had ended longer ago than jobs are kept."""

    actor: str
    reason: str


Payload: TypeAlias = Registered | Declared | Changed | Scheduled | Cancelled | Applied | Ended | PortMoved | Removed


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to become a record: everything but its revision, which the store gives."""

    time_us: int
    """Wall clock, microseconds since the Unix epoch. For people: nothing is decided by it."""
    job: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the log."""

    revision: int
    """Rises by one with every record of the store, from 1."""
    time_us: int
    job: str
    payload: Payload
