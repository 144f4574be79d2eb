"""Owns the vocabulary of the session: events that it takes, actions that it asks for, messages. Data only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from livetune.specs import Scalar, TriggerSpec, VariableSpec

# --- Verdicts of the program ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """Why a program does not take a value."""

    reason: str


# --- Messages to the daemon -------------------------------------------------------------------------------------------


class Status(enum.Enum):
    """What became of one part of a change."""

    APPLIED = "applied"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Open:
    """First message of a stream: who speaks, and from which revision on it wants changes."""

    after_revision: int
    declared_store_id: str = ""
    """The store that last took what this process declared; "" for none."""


@dataclass(frozen=True)
class Position:
    """Where a variable stood: the newest record of it that had been taken."""

    store_id: str
    revision: int


@dataclass(frozen=True)
class Declare:
    """Variables with the value in use, and triggers."""

    variables: tuple[tuple[VariableSpec, Scalar], ...]
    triggers: tuple[TriggerSpec, ...]
    restored: tuple[tuple[str, Position], ...] = ()
    """By name: those of the values that come from a checkpoint, and where they stood then."""


@dataclass(frozen=True)
class Outcome:
    """What became of one assignment or firing."""

    name: str
    status: Status
    effective: Scalar | None = None
    """The value in use from here on; None for a trigger."""
    reason: str = ""
    used: tuple[float, ...] = ()
    """What the first step after it really used, where the program knows."""


@dataclass(frozen=True)
class Report:
    """Acknowledges the assignments of a change, or one firing of it (`trigger` then names the trigger)."""

    revision: int
    step: int
    outcomes: tuple[Outcome, ...]
    trigger: str = ""
    scheduled: bool = False
    """`revision` is the one at which the change was scheduled: its step has come, and the daemon is to make it."""


@dataclass(frozen=True)
class Progress:
    """Where the program is."""

    step: int


@dataclass(frozen=True)
class End:
    """The program is about to leave for good."""

    failed: bool
    message: str
    step: int


@dataclass(frozen=True)
class Sample:
    """A value that the program logged."""

    name: str
    step: int
    value: float
    """May be NaN or infinite."""


@dataclass(frozen=True)
class Metrics:
    """What was logged since the last such message, and how many values were not kept since then."""

    samples: tuple[Sample, ...]
    refused: int


@dataclass(frozen=True)
class ScheduledChange:
    """A change that waits for its step. A value is None where one was sent that can't be read."""

    revision: int
    """At which it was scheduled."""
    step: int
    assignments: tuple[tuple[str, Scalar | None], ...] = ()
    firings: tuple[str, ...] = ()
    reason: str = ""
    actor: str = ""


@dataclass(frozen=True)
class Reschedule:
    """A change that a checkpoint has waiting, and of which the daemon does not know in this run."""

    change: ScheduledChange


Message = Open | Declare | Report | Progress | Metrics | Reschedule | End

# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VariableDeclared:
    """The program declared a variable."""

    spec: VariableSpec


@dataclass(frozen=True)
class TriggerDeclared:
    """The program declared a trigger."""

    spec: TriggerSpec


@dataclass(frozen=True)
class SafePoint:
    """The program is at its safe point."""

    step: int


@dataclass(frozen=True)
class FiringConsumed:
    """The program consumed the oldest visible firing of a trigger."""

    trigger: str
    step: int


@dataclass(frozen=True)
class Tick:
    """About a second has passed; `step` is where the program is."""

    step: int


@dataclass(frozen=True)
class Finish:
    """The program ends."""

    failed: bool
    message: str
    step: int


@dataclass(frozen=True)
class Restored:
    """The program goes on from a checkpoint."""

    store_id: str
    """The store that its revisions belong to; "" if it never had one."""
    run: int
    variables: tuple[tuple[str, Scalar, int], ...]
    """Name, value, and revision of the newest record of it that had been taken; only of variables that are declared."""
    scheduled: tuple[ScheduledChange, ...]
    step: int


@dataclass(frozen=True)
class Witnessed:
    """The program tells what the first step after a change of a variable really used: somebody more, or less, does."""

    name: str
    more: bool


@dataclass(frozen=True)
class Used:
    """The first step after a change of a variable used this, by parameter group."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Registered:
    """The daemon registered this process."""

    store_id: str
    run: int
    port: int
    revision: int


@dataclass(frozen=True)
class Opened:
    """The daemon opened the stream."""

    store_id: str
    revision: int
    takes_metrics: bool = False
    """The daemon keeps what programs log; an older one would end the stream."""
    scheduled: tuple[int, ...] = ()
    """All changes that wait for their step, by the revisions at which they were scheduled."""


@dataclass(frozen=True)
class VariableAnswer:
    """Where a declared variable stands at the daemon."""

    name: str
    desired: Scalar | None
    revision: int
    from_change: bool
    error: str = ""
    scheduled: int = 0
    """If it comes from a change that had waited for its step: the revision at which that was scheduled."""


@dataclass(frozen=True)
class TriggerAnswer:
    """Where a declared trigger stands at the daemon."""

    name: str
    pending: tuple[int, ...]
    error: str = ""


@dataclass(frozen=True)
class Declared:
    """The daemon's answer to one `Declare`."""

    variables: tuple[VariableAnswer, ...] = ()
    triggers: tuple[TriggerAnswer, ...] = ()


@dataclass(frozen=True)
class ChangeReceived:
    """A change of this job. A value is None where the daemon sent none that can be read."""

    revision: int
    assignments: tuple[tuple[str, Scalar | None], ...] = ()
    firings: tuple[str, ...] = ()
    reason: str = ""
    actor: str = ""
    scheduled: int = 0
    """Revision at which it was scheduled, 0 if it was made at once."""


@dataclass(frozen=True)
class ScheduledReceived:
    """A change of this job that waits for its step."""

    change: ScheduledChange
    restores: int = 0
    """It is the one that this process had rescheduled, known there by this revision."""


@dataclass(frozen=True)
class ScheduledCancelled:
    """It does not wait any more."""

    revision: int


@dataclass(frozen=True)
class ReportRecorded:
    """The daemon has a report on disk."""

    revision: int
    """Of the change; 0 if it made none of one that was scheduled."""
    trigger: str = ""
    scheduled: int = 0
    """As in the report, if that was of a change whose step had come; 0 otherwise."""


@dataclass(frozen=True)
class EndRecorded:
    """The daemon has the end on disk."""


@dataclass(frozen=True)
class Disconnected:
    """The stream or the registration broke. `position_refused` if the daemon refused our `after_revision`."""

    position_refused: bool = False


ProgramEvent = (
    VariableDeclared | TriggerDeclared | SafePoint | FiringConsumed | Restored | Witnessed | Used | Tick | Finish
)
DaemonEvent = (
    Registered
    | Opened
    | Declared
    | ChangeReceived
    | ScheduledReceived
    | ScheduledCancelled
    | ReportRecorded
    | EndRecorded
    | Disconnected
)
Event = ProgramEvent | DaemonEvent

# --- Actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Put a message on the stream."""

    message: Message


@dataclass(frozen=True)
class Pending:
    """There is something to do at the next safe point, or at the first one that is not before a step."""

    step: int = 0


@dataclass(frozen=True)
class Assign:
    """Give a variable a value."""

    name: str
    value: Scalar
    revision: int
    step: int
    changed: bool
    inherited: bool = False
    """It was taken over when the process came to the job; nobody said it for this step."""


@dataclass(frozen=True)
class Show:
    """Make firings of a trigger visible, and what is known of the change that fired it."""

    trigger: str
    firings: int
    revision: int
    reason: str
    actor: str


@dataclass(frozen=True)
class AppliedChange:
    """A change that took effect in this process.

    Attributes:
        revision: revision of the change, or that at which it was scheduled; 0 if the value was taken over from the run
            that this process continues, and no change had set it.
        step: the job's step at whose safe point it took effect.
        values: old and new value per variable.
        reason: why, in the words of whoever asked.
        actor: who asked for it.
    """

    revision: int
    step: int
    values: dict[str, tuple[Scalar, Scalar]] = field(default_factory=dict)
    reason: str = ""
    actor: str = ""


@dataclass(frozen=True)
class Record:
    """Add a change to the job's list of applied changes."""

    change: AppliedChange


@dataclass(frozen=True)
class Warn:
    """Tell the user something, once."""

    text: str


@dataclass(frozen=True)
class Reconnect:
    """Give up this stream and begin anew with a registration."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """The daemon knows that the program ended; nothing is left to say."""


Action = Send | Pending | Assign | Show | Record | Warn | Reconnect | Ended

# --- Between ranks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Whether another rank's program takes a value, too."""

    revision: int
    name: str
    value: Scalar
    old: Scalar
    """The value that it would be used instead of."""


@dataclass(frozen=True)
class Effect:
    """What a change brings at the safe point at which it takes effect, whichever step that will be."""

    revision: int
    """0 if no change had set the value that is taken over."""
    values: dict[str, tuple[Scalar, Scalar]]
    """Old and new value per variable."""
    firings: tuple[str, ...]
    reason: str
    actor: str
    inherited: bool

    def actions(self, step: int) -> list[Action]:
        """Return what is to be done at the safe point of a step."""
        actions: list[Action] = [
            Assign(name, new, self.revision, step, old != new, self.inherited)
            for name, (old, new) in self.values.items()
        ]
        if self.values:
            actions.append(Record(AppliedChange(self.revision, step, self.values, self.reason, self.actor)))
        return actions + [Show(trigger, 1, self.revision, self.reason, self.actor) for trigger in self.firings]


@dataclass(frozen=True)
class Proposal:
    """What is to take effect on all ranks, and what the others are asked before."""

    effects: tuple[Effect, ...]
    questions: tuple[Question, ...]
    step: int = 0
    """The highest step that a part of it waits for, 0 for none: not before that is it to take effect."""
