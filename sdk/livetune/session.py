"""Owns what one process and the daemon know of each other. Sans I/O: no thread, no clock, no network, no protobuf.

`Session.handle` takes an event and returns the actions that follow from it. The caller performs them: the driver
sends, the job assigns. Whatever the order of breaks and repeats, a change is applied once, in the order of revisions,
and its report is repeated until the daemon says that it is recorded.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from livetune import messages as m
from livetune.agenda import Agenda, Waiting
from livetune.logged import Logged
from livetune.specs import MAX_DECLARATION_BYTES, Scalar, TriggerSpec, VariableSpec
from livetune.witnesses import Key, Witnesses

__all__ = ["Session"]


@dataclass
class _Variable:
    spec: VariableSpec
    value: Scalar
    seen: int = 0
    """Revision of the newest record that was taken or refused, in the daemon's present store."""
    refused: bool = False
    """The daemon refused the declaration: nothing can change the variable."""
    changed: int = 0
    """Revision of the change that the value comes from, in the daemon's present store; that at which it was scheduled
    while the daemon has told no other; 0 if it comes from none."""
    asked: int = 0
    """How many of its declarations on this stream are not answered yet."""
    restored: m.Position | None = None
    """Where its value stood in the checkpoint that it comes from, until the daemon knows."""


@dataclass
class _Trigger:
    spec: TriggerSpec
    visible: deque[int] = field(default_factory=deque)
    """Revisions of firings that were shown and not consumed, oldest first; 0 for one of a store that was replaced."""
    seen: set[int] = field(default_factory=set)
    """Revisions of firings received and not yet recorded as consumed: what must not be shown again."""
    ahead: set[int] = field(default_factory=set)
    """Revisions of firings that came with an answer and are recorded already, but whose change is still to come."""
    refused: bool = False


@dataclass
class _Verdict:
    """What a change comes to, before anything of it is done."""

    values: dict[str, Scalar] = field(default_factory=dict)
    """What it assigns, as the program rewrote it; empty if it is refused."""
    refusals: dict[str, str] = field(default_factory=dict)
    """By name, why a part is refused."""
    questions: list[m.Question] = field(default_factory=list)
    """What other ranks are to be asked of its values."""


@dataclass
class _Proposed:
    """Changes that are to take effect at the coming safe point, and what they come to."""

    changes: list[tuple[int, Waiting, _Verdict]] = field(default_factory=list)
    winners: dict[str, int] = field(default_factory=dict)
    """Revision of the change that gives a variable its value."""
    in_use: dict[str, Scalar] = field(default_factory=dict)
    """Values after all of it."""


Judge = Callable[[str, Scalar, Scalar], "Scalar | m.Refusal"]
"""What the program says of a new value of a variable, given also the one in use: the value to use, or a refusal."""


def _accept(_name: str, value: Scalar, _old: Scalar) -> Scalar:
    return value


class Session:
    """The state machine of one process in one job. Not thread-safe: the job holds its lock.

    Args:
        judge: What the program says of new values, asked at the safe point only.
        logged: What the program logs; None for nothing.
    """

    def __init__(self, judge: Judge = _accept, logged: Logged | None = None) -> None:
        self._judge = judge
        self._logged = logged
        self._takes_metrics = False
        """The daemon of this stream keeps what programs log."""
        self._variables: dict[str, _Variable] = {}
        self._triggers: dict[str, _Trigger] = {}
        self._waiting: dict[int, Waiting] = {}
        self._agenda = Agenda()
        self._proposed: _Proposed | None = None
        self._outbox: dict[Key, m.Report] = {}
        """By revision, trigger and names: what is declared later takes up its part of a change later."""
        self._witnesses = Witnesses()
        self._unanswered = 0
        """Declarations on this stream that the daemon has not answered yet."""
        self._store_id = ""
        self._run = 0
        self._declared_store_id = ""
        """The store that last took what this process declared: its values come from there."""
        self._received = 0
        self._open = False
        self._known = False
        """The daemon has answered what was declared when this stream opened."""
        self._told_step = -1
        self._end: m.End | None = None
        self._handlers: dict[type, Callable[[Any], list[m.Action]]] = {
            m.VariableDeclared: self._variable_declared,
            m.TriggerDeclared: self._trigger_declared,
            m.SafePoint: self._safe_point,
            m.FiringConsumed: self._firing_consumed,
            m.Restored: self._restored,
            m.Witnessed: self._witnessed,
            m.Used: self._used,
            m.Tick: self._tick,
            m.Finish: self._finish,
            m.Registered: self._registered,
            m.Opened: self._opened,
            m.Declared: self._declared,
            m.ChangeReceived: self._change_received,
            m.ScheduledReceived: self._scheduled_received,
            m.ScheduledCancelled: self._scheduled_cancelled,
            m.ReportRecorded: self._report_recorded,
            m.EndRecorded: self._end_recorded,
            m.Disconnected: self._disconnected,
        }

    @property
    def connected(self) -> bool:
        """Whether the stream is open, and the daemon knows what was declared when it opened."""
        return self._open and self._known

    @property
    def store_id(self) -> str:
        """The daemon's store that revisions belong to; "" before the first registration."""
        return self._store_id

    @property
    def run(self) -> int:
        """The how-manieth run of the job this is; 0 before the first registration."""
        return self._run

    @property
    def agenda(self) -> Agenda:
        """The changes that wait for their step; to be read only."""
        return self._agenda

    def next_step(self, after: int) -> int:
        """Return the lowest step after a step that a change waits for; 0 if none does."""
        steps = [*(change.step for change in self._waiting.values()), *self._agenda.steps()]
        return min((step for step in steps if step > after), default=0)

    def revision_of(self, name: str) -> int:
        """Return the revision of the newest record of a declared variable that was taken."""
        return self._variables[name].seen

    @property
    def unreported(self) -> int:
        """How many reports the daemon has not recorded yet."""
        return len(self._outbox)

    def handle(self, event: m.Event) -> list[m.Action]:
        """Take an event and return what is to be done, in order."""
        return self._handlers[type(event)](event)

    def propose(self, refusals: Mapping[tuple[int, str], str], step: int) -> m.Proposal | None:
        """Decide what becomes of the changes that wait, for a job of several ranks; it is done at the next `SafePoint`.

        From here to there no event of the daemon may be handled; the program's may. Asked again, it decides anew.

        Args:
            refusals: What other ranks refuse of it, as a question's revision and name, with the reason.
            step: The step that will be reached by then.

        Returns:
            What the other ranks must be told; None if nothing waits.
        """
        proposed = self._decide(refusals, step) if self._waiting or self._agenda else _Proposed()
        if not proposed.changes:
            return None
        self._proposed = proposed
        effects = [self._effect(revision, change, proposed) for revision, change, _ in proposed.changes]
        return m.Proposal(
            tuple(effect for effect in effects if effect.values or effect.firings),
            tuple(question for _, _, verdict in proposed.changes for question in verdict.questions),
            max(change.step for _, change, _ in proposed.changes),
        )

    def validate(self) -> None:
        """Check what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        for trigger in self._triggers.values():
            visible = [rev for rev in trigger.visible if rev and not self._agenda.is_unsettled(rev)]
            assert set(visible) <= trigger.seen  # noqa: S101
            assert visible == sorted(set(visible))  # noqa: S101
        assert not (self._open and not self._store_id)  # noqa: S101

    # -- the program --

    def _variable_declared(self, event: m.VariableDeclared) -> list[m.Action]:
        spec = event.spec
        self._variables[spec.name] = _Variable(spec, spec.initial)
        return self._declare(((spec, spec.initial),), ())

    def _trigger_declared(self, event: m.TriggerDeclared) -> list[m.Action]:
        self._triggers[event.spec.name] = _Trigger(event.spec)
        return self._declare((), (event.spec,))

    def _declare(
        self, variables: tuple[tuple[VariableSpec, Scalar], ...], triggers: tuple[TriggerSpec, ...]
    ) -> list[m.Action]:
        if not self._open:
            return []  # said when the stream opens
        messages = _split(variables, triggers)
        self._unanswered += len(messages)
        actions: list[m.Action] = []
        for message in messages:
            states = [self._variables[spec.name] for spec, _ in message.variables]
            for state in states:
                state.asked += 1
            restored = tuple((state.spec.name, state.restored) for state in states if state.restored is not None)
            actions.append(m.Send(replace(message, restored=restored)))
        return actions

    def _safe_point(self, event: m.SafePoint) -> list[m.Action]:
        proposed, self._proposed = self._proposed or self._decide({}, event.step), None
        for revision, change, _ in proposed.changes:
            if change.scheduled:
                self._agenda.done(revision)
            else:
                del self._waiting[revision]
        actions = self._more_waits(event.step)
        for revision, change, verdict in proposed.changes:
            effect = self._effect(revision, change, proposed)
            actions += self._take_effect(revision, change, event.step, verdict, effect, proposed.in_use)
        return actions

    def _more_waits(self, step: int) -> list[m.Action]:
        pending = [m.Pending()] if any(change.step <= step for change in self._waiting.values()) else []
        later = self.next_step(step)
        return [*pending, *([m.Pending(later)] if later else [])]

    def _decide(self, refusals: Mapping[tuple[int, str], str], step: int) -> _Proposed:
        """Say what the changes that wait for a step, or for none, come to there.

        Nothing is done: if a callback is interrupted, all is still there.
        """
        waiting = sorted(item for item in self._waiting.items() if item[1].step <= step)
        if self._agenda.unsettled:
            waiting = []
        if self._unanswered:
            # A change that comes in the answers to several declarations is whole when the last answer is there, and
            # what follows it must not overtake it.
            waiting = list(takewhile(lambda item: not item[1].from_answer, waiting))
        # What was scheduled takes its place in the order when its step has come: behind all that is there.
        waiting += self._agenda.due(step)
        proposed = _Proposed(in_use={name: variable.value for name, variable in self._variables.items()})
        for revision, change in waiting:
            verdict = self._verdict(revision, change, proposed.in_use, refusals)
            proposed.changes.append((revision, change, verdict))
            proposed.in_use.update(verdict.values)
            proposed.winners.update(dict.fromkeys(verdict.values, revision))
        return proposed

    def _verdict(
        self,
        revision: int,
        change: Waiting,
        in_use: Mapping[str, Scalar],
        refusals: Mapping[tuple[int, str], str],
    ) -> _Verdict:
        """Say what a change comes to after the ones before it: all of its values, or none."""
        verdict = _Verdict()
        refused = ""
        for name, value in change.assignments.items():
            refusal = refusals.get((revision, name)) or self._refusal(name, value)
            in_order = change.scheduled or (name in self._variables and revision > self._variables[name].seen)
            if refusal is None and value is not None and in_order:
                judged = self._judge(name, value, in_use[name])
                if not isinstance(judged, m.Refusal):
                    verdict.values[name] = judged
                    verdict.questions.append(m.Question(revision, name, judged, in_use[name]))
                    continue
                refusal = judged.reason
            if refusal is not None:
                verdict.refusals[name] = refusal
                # A variable that this process does not have is no reason to refuse those that it has.
                refused = refused or (name if name in self._variables else "")
        if refused:
            for name in verdict.values:
                verdict.refusals[name] = f"refused together with {refused!r}"
            verdict.values.clear()
            verdict.questions.clear()
        return verdict

    def _effect(self, revision: int, change: Waiting, proposed: _Proposed) -> m.Effect:
        values = {
            name: (self._variables[name].value, proposed.in_use[name])
            for name in change.assignments
            if proposed.winners.get(name) == revision
        }
        of = revision if change.report else 0
        return m.Effect(of, values, tuple(change.firings), change.reason, change.actor, change.from_answer)

    def _take_effect(
        self,
        revision: int,
        change: Waiting,
        step: int,
        verdict: _Verdict,
        effect: m.Effect,
        in_use: Mapping[str, Scalar],
    ) -> list[m.Action]:
        outcomes = []
        for name in change.assignments:
            # One that was declared after the decision takes its value over with the answer to that.
            variable = self._variables.get(name) if name in in_use else None
            if variable is not None and not change.scheduled:
                variable.seen = max(variable.seen, revision)  # what is refused is not asked again after a break
            if name in verdict.refusals:
                outcomes.append(m.Outcome(name, m.Status.REFUSED, in_use.get(name), verdict.refusals[name]))
            elif variable is None or name not in effect.values:
                outcomes.append(m.Outcome(name, m.Status.SUPERSEDED, in_use.get(name)))
            else:
                variable.value = in_use[name]
                variable.changed = revision if change.report else 0
                variable.restored = None
                outcomes.append(m.Outcome(name, m.Status.APPLIED, variable.value))
        for name in change.firings:
            trigger = self._triggers.get(name)
            if trigger is None:
                continue
            if change.scheduled:
                # What the daemon can't be told of has no revision there.
                trigger.visible.append(0 if change.strange else revision)
                trigger.seen.update(() if change.strange else (revision,))
            else:
                insort(trigger.visible, revision)
        actions = effect.actions(step)
        if (outcomes or change.scheduled) and change.report and not change.strange:
            actions += self._report(m.Report(revision, step, tuple(outcomes), scheduled=change.scheduled))
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
        if not revision:
            return []
        outcome = m.Outcome(event.trigger, m.Status.APPLIED)
        return self._report(m.Report(revision, event.step, (outcome,), event.trigger))

    def _report(self, report: m.Report) -> list[m.Action]:
        key = _key(report)
        self._outbox[key] = report
        if report.trigger:
            # A firing of a change whose revision is not known yet is reported when it is.
            return [] if self._agenda.is_unsettled(report.revision) else self._if_open(report)
        applied = [outcome.name for outcome in report.outcomes if outcome.status is m.Status.APPLIED]
        return [] if self._witnesses.hold(key, applied) else self._if_open(report)

    def _send_reports(self, keys: Iterable[Key]) -> list[m.Action]:
        return [action for key in keys if key in self._outbox for action in self._if_open(self._outbox[key])]

    def _witnessed(self, event: m.Witnessed) -> list[m.Action]:
        self._witnesses.promise(event.name, more=event.more)
        return []

    def _used(self, event: m.Used) -> list[m.Action]:
        for key in self._witnesses.waiting_for(event.name):
            report = self._outbox.get(key)
            if report is not None:
                outcomes = tuple(
                    replace(outcome, used=event.values) if outcome.name == event.name else outcome
                    for outcome in report.outcomes
                )
                self._outbox[key] = replace(report, outcomes=outcomes)
        return self._send_reports(self._witnesses.told(event.name))

    def _restored(self, event: m.Restored) -> list[m.Action]:
        actions: list[m.Action] = []
        taken: list[tuple[VariableSpec, Scalar]] = []
        same = event.store_id == self._store_id
        for name, value, revision in event.variables:
            variable = self._variables[name]
            if variable.changed and (not same or variable.changed > revision):
                actions.append(m.Warn(_wins(name, variable.value, variable.changed, value)))
                continue
            for change in self._waiting.values():
                if not change.report:  # what was declared before the checkpoint was read
                    change.assignments.pop(name, None)
            old, variable.value = variable.value, value
            variable.restored = m.Position(event.store_id, revision)
            taken.append((variable.spec, value))
            actions.append(m.Assign(name, value, revision, event.step, old != value, inherited=True))
        actions += self._declare(tuple(taken), ())
        told = self._agenda.restore(event.scheduled, event.store_id, event.run)
        actions += [m.Send(m.Reschedule(change)) for change in told]
        later = self.next_step(event.step)
        return [*actions, *([m.Pending(later)] if later else [])]

    def _tick(self, event: m.Tick) -> list[m.Action]:
        if not self._open:
            return []
        actions = [*self._metrics(), *self._send_reports(self._witnesses.tick())]
        if event.step != self._told_step:
            self._told_step = event.step
            actions.append(m.Send(m.Progress(event.step)))
        return actions

    def _metrics(self) -> list[m.Action]:
        """Send what was logged since it was sent last. Nothing waits for a daemon that is away: it gets the newest."""
        if self._logged is None or not self._takes_metrics:
            return []
        samples, refused = self._logged.take()
        return [m.Send(m.Metrics(samples, refused))] if samples or refused else []

    def _finish(self, event: m.Finish) -> list[m.Action]:
        self._end = m.End(event.failed, event.message, event.step)
        reports = self._send_reports(self._witnesses.let_go())
        return [*reports, *(self._metrics() if self._open else ()), *self._if_open(self._end)]

    def _if_open(self, message: m.Message) -> list[m.Action]:
        # What is not sent now is said when the stream opens.
        return [m.Send(message)] if self._open else []

    # -- the daemon --

    def _registered(self, event: m.Registered) -> list[m.Action]:
        actions: list[m.Action] = []
        self._run = event.run
        if self._agenda.registered(event.store_id, event.run):
            actions.append(m.Warn("the daemon has another store now: changes that waited for their step are forgotten"))
        if event.store_id != self._store_id:
            self._forget_store()
            self._store_id = event.store_id
            self._received = event.revision
        return [*actions, m.Send(m.Open(self._received, self._declared_store_id))]

    def _forget_store(self) -> None:
        # Revisions of another store mean nothing in this one. Values stay: the daemon learns them from declarations.
        for variable in self._variables.values():
            variable.seen = variable.changed = 0
            variable.refused = False
        for trigger in self._triggers.values():
            # Shown firings can still be consumed; there is nobody left who could be told.
            unsettled = set(filter(self._agenda.is_unsettled, trigger.seen))
            trigger.visible = deque(rev if rev in unsettled else 0 for rev in trigger.visible)
            trigger.seen = unsettled
            trigger.ahead = set()
            trigger.refused = False
        self._waiting.clear()
        # What comes from a checkpoint of this very run can be told still.
        self._outbox = {k: report for k, report in self._outbox.items() if self._agenda.is_unsettled(report.revision)}

    def _opened(self, event: m.Opened) -> list[m.Action]:
        self._open = True
        self._takes_metrics = event.takes_metrics
        if self._logged is not None:
            self._logged.repeat()
        self._told_step = -1
        self._unanswered = 0
        actions: list[m.Action] = []
        self._witnesses.let_go()
        rescheduled = self._agenda.opened(event.scheduled)
        for state in self._variables.values():
            state.asked = 0
        if self._variables or self._triggers:
            variables = tuple((variable.spec, variable.value) for variable in self._variables.values())
            triggers = tuple(trigger.spec for trigger in self._triggers.values())
            actions += self._declare(variables, triggers)
        self._known = not self._unanswered
        actions += [m.Send(m.Reschedule(change)) for change in rescheduled]
        actions += [
            m.Send(report)
            for report in self._outbox.values()
            if not (report.trigger and self._agenda.is_unsettled(report.revision))
        ]
        if self._end is not None:
            actions += [*self._metrics(), m.Send(self._end)]
        return actions

    def _declared(self, event: m.Declared) -> list[m.Action]:
        actions: list[m.Action] = []
        self._unanswered = max(0, self._unanswered - 1)
        self._known = self._known or not self._unanswered
        if self._known:
            self._declared_store_id = self._store_id
        for answer in event.variables:
            actions += self._variable_answered(answer)
        for firing in event.triggers:
            actions += self._trigger_answered(firing)
        return actions + ([m.Pending()] if self._waiting else [])

    def _variable_answered(self, answer: m.VariableAnswer) -> list[m.Action]:
        variable = self._variables.get(answer.name)
        if variable is None:
            return []
        variable.asked = max(0, variable.asked - 1)
        if answer.error:
            told, variable.refused = variable.refused, True
            text = f"{answer.error}; {answer.name!r} works in this process, but can't be changed"
            return [] if told else [m.Warn(text)]
        # An answer to what was declared before a checkpoint was read says nothing of the value that was in there.
        last, restored = not variable.asked, variable.restored
        actions: list[m.Action] = []
        if answer.revision > variable.seen:
            if answer.from_change or (last and answer.desired != variable.value):
                self._take_over(answer)
                if last and restored is not None and answer.desired != variable.value:
                    actions.append(m.Warn(_wins(answer.name, answer.desired, answer.revision, variable.value)))
            elif last:
                variable.seen = answer.revision
        if last:
            variable.restored = None
        return actions

    def _trigger_answered(self, answer: m.TriggerAnswer) -> list[m.Action]:
        trigger = self._triggers.get(answer.name)
        if trigger is None:
            return []
        for revision in answer.pending:
            self._take_firing(answer.name, revision)
        if not answer.error:
            return []
        told, trigger.refused = trigger.refused, True
        return [] if told else [m.Warn(f"{answer.error}; {answer.name!r} can't be fired")]

    def _take_over(self, answer: m.VariableAnswer) -> None:
        waiting = self._waiting.setdefault(answer.revision, Waiting(report=answer.from_change))
        waiting.from_answer = True
        waiting.step = self._agenda.ahead(answer.scheduled)
        waiting.assignments.setdefault(answer.name, answer.desired)

    def _take_firing(self, name: str, revision: int) -> None:
        trigger = self._triggers.get(name)
        if trigger is not None and revision not in trigger.seen | trigger.ahead:
            trigger.seen.add(revision)
            self._waiting.setdefault(revision, Waiting()).firings.append(name)

    def _change_received(self, event: m.ChangeReceived) -> list[m.Action]:
        if event.revision <= self._received:
            return []
        self._received = event.revision
        actions = self._settle(event.scheduled, event.revision)
        waiting = self._waiting.setdefault(event.revision, Waiting())
        waiting.reason, waiting.actor = event.reason, event.actor
        if event.scheduled:
            # Another rank was at its step before this one: here it takes effect at that step as well.
            waiting.step = max(waiting.step, self._agenda.take(event.scheduled))
        for name, value in event.assignments:
            variable = self._variables.get(name)
            # Taken over with the declaration's answer already, and reported then.
            if variable is None or variable.seen != event.revision:
                waiting.assignments[name] = value
        for name in event.firings:
            self._take_firing(name, event.revision)
            if name in self._triggers:
                self._triggers[name].ahead.discard(event.revision)
        return [*actions, m.Pending(waiting.step)]

    def _scheduled_received(self, event: m.ScheduledReceived) -> list[m.Action]:
        self._agenda.put(event)
        return [m.Pending(event.change.step)]

    def _scheduled_cancelled(self, event: m.ScheduledCancelled) -> list[m.Action]:
        self._agenda.take(event.revision)
        return []

    def _settle(self, scheduled: int, revision: int) -> list[m.Action]:
        """Learn the revision of a change that was scheduled, if it took effect here before the daemon made it.

        Args:
            scheduled: Revision at which it was scheduled, 0 for none.
            revision: Its own; 0 if the daemon could not make it.
        """
        if not self._agenda.settled(scheduled):
            return []
        for key, report in list(self._outbox.items()):
            if report.revision == scheduled and report.scheduled:
                for outcome in report.outcomes:
                    self._settle_outcome(outcome, scheduled, revision)
            elif report.revision == scheduled:
                del self._outbox[key]
                if revision:
                    settled = replace(report, revision=revision)
                    self._outbox[_key(settled)] = settled
        for trigger in self._triggers.values():
            if scheduled in trigger.seen:
                trigger.seen.remove(scheduled)
                trigger.seen.update({revision} if revision else ())
                trigger.visible = deque(sorted(revision if rev == scheduled else rev for rev in trigger.visible))
        return self._send_reports([key for key in self._outbox if revision and key[0] == revision and key[1]])

    def _settle_outcome(self, outcome: m.Outcome, scheduled: int, revision: int) -> None:
        variable = self._variables.get(outcome.name)
        if variable is None:
            return
        if outcome.status is m.Status.APPLIED and variable.changed != scheduled and revision:
            # The daemon was away, and what it had sent before took effect after it. By its order this is the newer one.
            self._waiting.setdefault(revision, Waiting()).assignments[outcome.name] = outcome.effective
            return
        variable.seen = max(variable.seen, revision)
        if variable.changed == scheduled:
            variable.changed = revision

    def _report_recorded(self, event: m.ReportRecorded) -> list[m.Action]:
        actions = self._settle(event.scheduled, event.revision)
        # Reports are recorded in the order in which they were sent.
        reported = (event.scheduled or event.revision, event.trigger)
        recorded = next((key for key in self._outbox if key[:2] == reported), None)
        if recorded is not None:
            del self._outbox[recorded]
        trigger = self._triggers.get(event.trigger)
        if trigger is not None and event.revision in trigger.seen:
            trigger.seen.discard(event.revision)
            if event.revision > self._received:
                trigger.ahead.add(event.revision)
        return [*actions, *([m.Pending()] if self._waiting else [])] if event.scheduled else actions

    def _end_recorded(self, _: m.EndRecorded) -> list[m.Action]:
        return [m.Ended()]

    def _disconnected(self, event: m.Disconnected) -> list[m.Action]:
        self._open = False
        self._agenda.closed()
        self._unanswered = 0
        if event.position_refused:
            self._store_id = ""
        # What the daemon was just being told of takes effect without it.
        return [m.Pending()] if self._agenda else []


def _key(report: m.Report) -> Key:
    return report.revision, report.trigger, tuple(outcome.name for outcome in report.outcomes)


def _wins(name: str, value: object, revision: int, saved: object) -> str:
    return f"variable {name!r} is {value!r}, set at revision {revision}: that wins over the checkpoint's {saved!r}"


def _split(variables: tuple[tuple[VariableSpec, Scalar], ...], triggers: tuple[TriggerSpec, ...]) -> list[m.Declare]:
    """Spread declarations over messages that the daemon accepts by their size."""
    messages: list[m.Declare] = []
    room = 0
    for spec, value in variables:
        if spec.weight > room:
            messages.append(m.Declare((), ()))
            room = MAX_DECLARATION_BYTES
        room -= spec.weight
        messages[-1] = m.Declare((*messages[-1].variables, (spec, value)), ())
    for trigger in triggers:
        if trigger.weight > room:
            messages.append(m.Declare((), ()))
            room = MAX_DECLARATION_BYTES
        room -= trigger.weight
        messages[-1] = m.Declare(messages[-1].variables, (*messages[-1].triggers, trigger))
    return messages
