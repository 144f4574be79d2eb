"""Owns what one process and the daemon know of each other. Sans I/O: no thread, no clock, no network, no protobuf.

`Session.handle` takes an event and returns the actions that follow from it. The caller performs them: the driver
sends, the job assigns. Whatever the order of breaks and repeats, a change is applied once, in the order of revisions,
and its report is repeated until the daemon says that it is recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from livetune import messages as m
from livetune.specs import Scalar, TriggerSpec, VariableSpec

__all__ = ["Session"]


@dataclass
class _Variable:
    spec: VariableSpec
    value: Scalar
    seen: int = 0
    """Revision of the newest record that the value follows, in the daemon's present store."""
    refused: bool = False
    """The daemon refused the declaration: nothing can change the variable."""


@dataclass
class _Trigger:
    spec: TriggerSpec
    visible: deque[int] = field(default_factory=deque)
    """Revisions of firings that were shown and not consumed, oldest first."""
    seen: set[int] = field(default_factory=set)
    """Revisions of firings received and not yet recorded as consumed: what must not be shown again."""
    refused: bool = False


@dataclass
class _Waiting:
    """A change that waits for the safe point."""

    assignments: dict[str, Scalar | None] = field(default_factory=dict)
    firings: list[str] = field(default_factory=list)
    reason: str = ""
    actor: str = ""
    report: bool = True
    """False for a value taken over that no change had set: there is nothing to acknowledge."""


class Session:
    """The state machine of one process in one job. Not thread-safe: the job holds its lock."""

    def __init__(self) -> None:
        self._variables: dict[str, _Variable] = {}
        self._triggers: dict[str, _Trigger] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._outbox: dict[tuple[int, str], m.Report] = {}
        self._store_id = ""
        self._received = 0
        self._open = False
        self._told_step = -1
        self._end: m.End | None = None
        self._ended = False
        self._handlers: dict[type, Callable[[Any], list[m.Action]]] = {
            m.VariableDeclared: self._variable_declared,
            m.TriggerDeclared: self._trigger_declared,
            m.SafePoint: self._safe_point,
            m.FiringConsumed: self._firing_consumed,
            m.Tick: self._tick,
            m.Finish: self._finish,
            m.Registered: self._registered,
            m.Opened: self._opened,
            m.Declared: self._declared,
            m.ChangeReceived: self._change_received,
            m.ReportRecorded: self._report_recorded,
            m.EndRecorded: self._end_recorded,
            m.Disconnected: self._disconnected,
        }

    @property
    def connected(self) -> bool:
        """Whether the stream is open."""
        return self._open

    @property
    def unreported(self) -> int:
        """How many reports the daemon has not recorded yet."""
        return len(self._outbox)

    def handle(self, event: m.Event) -> list[m.Action]:
        """Take an event and return what is to be done, in order."""
        return self._handlers[type(event)](event)

    def validate(self) -> None:
        """Check what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        for trigger in self._triggers.values():
            assert set(trigger.visible) <= trigger.seen  # noqa: S101
            assert list(trigger.visible) == sorted(set(trigger.visible))  # noqa: S101
        assert not (self._open and not self._store_id)  # noqa: S101

    # -- the program --

    def _variable_declared(self, event: m.VariableDeclared) -> list[m.Action]:
        spec = event.spec
        self._variables[spec.name] = _Variable(spec, spec.initial)
        return self._if_open(m.Declare(((spec, spec.initial),), ()))

    def _trigger_declared(self, event: m.TriggerDeclared) -> list[m.Action]:
        self._triggers[event.spec.name] = _Trigger(event.spec)
        return self._if_open(m.Declare((), (event.spec,)))

    def _safe_point(self, event: m.SafePoint) -> list[m.Action]:
        actions: list[m.Action] = []
        waiting = sorted(self._waiting.items())
        self._waiting = {}
        # The last change of a variable that it can take: what comes before it at this safe point was never in effect.
        last = {
            name: revision
            for revision, change in waiting
            for name, value in change.assignments.items()
            if self._refusal(name, value) is None
        }
        for revision, change in waiting:
            outcomes = []
            values: dict[str, tuple[Scalar, Scalar]] = {}
            for name, value in change.assignments.items():
                variable = self._variables.get(name)
                refusal = self._refusal(name, value)
                if variable is None or value is None or refusal is not None:
                    effective = None if variable is None else variable.value
                    outcomes.append(m.Outcome(name, m.Status.REFUSED, effective, refusal or ""))
                elif last[name] > revision or variable.seen > revision:
                    outcomes.append(m.Outcome(name, m.Status.SUPERSEDED, value))
                else:
                    old, variable.value, variable.seen = variable.value, value, revision
                    of = revision if change.report else 0
                    actions.append(m.Assign(name, value, of, event.step, changed=old != value))
                    outcomes.append(m.Outcome(name, m.Status.APPLIED, value))
                    values[name] = (old, value)
            if values:
                of = revision if change.report else 0
                actions.append(m.Record(m.AppliedChange(of, event.step, values, change.reason, change.actor)))
            for name in change.firings:
                self._triggers[name].visible.append(revision)
                actions.append(m.Show(name, 1))
            if outcomes and change.report:
                actions += self._report(m.Report(revision, event.step, tuple(outcomes)))
        return actions

    def _refusal(self, name: str, value: Scalar | None) -> str | None:
        variable = self._variables.get(name)
        if variable is None:
            return f"the program has no variable {name!r}"
        if value is None:
            return f"variable {name!r}: the value sent has no type that this SDK knows"
        return variable.spec.refusal(value)

    def _firing_consumed(self, event: m.FiringConsumed) -> list[m.Action]:
        revision = self._triggers[event.trigger].visible.popleft()
        outcome = m.Outcome(event.trigger, m.Status.APPLIED)
        return self._report(m.Report(revision, event.step, (outcome,), event.trigger))

    def _report(self, report: m.Report) -> list[m.Action]:
        self._outbox[report.revision, report.trigger] = report
        return self._if_open(report)

    def _tick(self, event: m.Tick) -> list[m.Action]:
        if not self._open or event.step == self._told_step:
            return []
        self._told_step = event.step
        return [m.Send(m.Progress(event.step))]

    def _finish(self, event: m.Finish) -> list[m.Action]:
        self._end = m.End(event.failed, event.message, event.step)
        return self._if_open(self._end)

    def _if_open(self, message: m.Message) -> list[m.Action]:
        # What is not sent now is said when the stream opens.
        return [m.Send(message)] if self._open else []

    # -- the daemon --

    def _registered(self, event: m.Registered) -> list[m.Action]:
        if event.store_id != self._store_id:
            self._forget_store()
            self._store_id = event.store_id
            self._received = event.revision
        return [m.Send(m.Open(self._received))]

    def _forget_store(self) -> None:
        # Revisions of another store mean nothing in this one. Values stay: the daemon learns them from declarations.
        for variable in self._variables.values():
            variable.seen = 0
            variable.refused = False
        for trigger in self._triggers.values():
            trigger.seen = set(trigger.visible)
            trigger.refused = False
        self._waiting.clear()
        self._outbox.clear()

    def _opened(self, _: m.Opened) -> list[m.Action]:
        self._open = True
        self._told_step = -1
        actions: list[m.Action] = []
        if self._variables or self._triggers:
            variables = tuple((variable.spec, variable.value) for variable in self._variables.values())
            triggers = tuple(trigger.spec for trigger in self._triggers.values())
            actions.append(m.Send(m.Declare(variables, triggers)))
        actions += [m.Send(report) for report in self._outbox.values()]
        if self._end is not None:
            actions.append(m.Send(self._end))
        return actions

    def _declared(self, event: m.Declared) -> list[m.Action]:
        actions: list[m.Action] = []
        for answer in event.variables:
            variable = self._variables[answer.name]
            if answer.error:
                if not variable.refused:
                    actions.append(
                        m.Warn(f"{answer.error}; {answer.name!r} works in this process, but can't be changed")
                    )
                variable.refused = True
            elif answer.revision > variable.seen:
                if answer.from_change or answer.desired != variable.value:
                    self._take_over(answer)
                else:
                    variable.seen = answer.revision
        for firing in event.triggers:
            trigger = self._triggers[firing.name]
            if firing.error:
                if not trigger.refused:
                    actions.append(m.Warn(f"{firing.error}; {firing.name!r} can't be fired"))
                trigger.refused = True
            for revision in firing.pending:
                self._take_firing(firing.name, revision)
        return actions + ([m.Pending()] if self._waiting else [])

    def _take_over(self, answer: m.VariableAnswer) -> None:
        waiting = self._waiting.setdefault(answer.revision, _Waiting(report=answer.from_change))
        waiting.assignments.setdefault(answer.name, answer.desired)

    def _take_firing(self, name: str, revision: int) -> None:
        trigger = self._triggers.get(name)
        if trigger is not None and revision not in trigger.seen:
            trigger.seen.add(revision)
            self._waiting.setdefault(revision, _Waiting()).firings.append(name)

    def _change_received(self, event: m.ChangeReceived) -> list[m.Action]:
        if event.revision <= self._received:
            return []
        self._received = event.revision
        waiting = self._waiting.setdefault(event.revision, _Waiting())
        waiting.reason, waiting.actor = event.reason, event.actor
        for name, value in event.assignments:
            variable = self._variables.get(name)
            # Taken over with the declaration's answer already, and reported then.
            if variable is None or variable.seen != event.revision:
                waiting.assignments[name] = value
        for name in event.firings:
            self._take_firing(name, event.revision)
        return [m.Pending()]

    def _report_recorded(self, event: m.ReportRecorded) -> list[m.Action]:
        self._outbox.pop((event.revision, event.trigger), None)
        if event.trigger in self._triggers:
            self._triggers[event.trigger].seen.discard(event.revision)
        return []

    def _end_recorded(self, _: m.EndRecorded) -> list[m.Action]:
        self._ended = True
        return [m.Ended()]

    def _disconnected(self, event: m.Disconnected) -> list[m.Action]:
        self._open = False
        if event.position_refused:
            self._store_id = ""
        return []
