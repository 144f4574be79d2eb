"""The SDK's session against the daemon's own pure state, with breaks at any point: each change once, in order, acknowledged."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from livetune import messages as m
from livetune.session import Session
from livetune.specs import TriggerSpec as SdkTriggerSpec
from livetune.specs import VariableSpec as SdkVariableSpec
from livetuned.domain import decide
from livetuned.domain.records import ApplyStatus, Cancelled, Changed, Outcome, Payload, Scheduled
from livetuned.domain.specs import TriggerSpec
from support.domain import JobLog, spec

NAMES = ("lr", "wd")


class SessionMachine(RuleBasedStateMachine):
    """The wire between them is two queues that a break empties."""

    def __init__(self) -> None:
        super().__init__()
        self.log = JobLog()
        self.records: list[tuple[int, Payload]] = []
        self.session = Session()
        self.up: list[m.Message] = []
        self.down: list[m.DaemonEvent] = []
        self.values = dict.fromkeys(NAMES, 0.0)
        self.applied: list[int] = []
        self.visible = self.shown = 0
        self.step = 0
        self.waits: dict[int, int] = {}
        """Steps of what was scheduled, by the revisions at which it was."""
        self.told = 0
        """Revision up to which the daemon has put changes on the wire of this stream."""

    def do(self, event: m.Event) -> None:
        for action in self.session.handle(event):
            if isinstance(action, m.Send):
                self.up.append(action.message)
            elif isinstance(action, m.Assign):
                self.values[action.name] = float(action.value)
                if action.revision not in self.waits and (not self.applied or self.applied[-1] != action.revision):
                    self.applied.append(action.revision)
                assert self.step >= self.waits.get(action.revision, 0), "before its step"
            elif isinstance(action, m.Show):
                self.visible += action.firings
                self.shown += action.firings
        self.session.validate()

    @initialize()
    def begin(self) -> None:
        for name in NAMES:
            self.do(m.VariableDeclared(SdkVariableSpec.declare(name, 0.0)))
        self.do(m.TriggerDeclared(SdkTriggerSpec("save")))
        self.connect()

    def connect(self) -> None:
        self.log.register()
        assert self.log.job is not None
        self.do(m.Registered("store", 1, 21_000, self.log.job.ranks[0].revision))
        opening = self.up.pop(0)
        assert isinstance(opening, m.Open)
        self.told = opening.after_revision
        waiting = list(self.log.job.waiting())
        self.down.append(m.Opened("store", self.log.revision, scheduled=tuple(revision for revision, _ in waiting)))
        for revision, state in waiting:
            self.down.append(m.ScheduledReceived(_scheduled(revision, state.scheduled)))

    @rule(values=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), min_size=1))
    def change(self, values: dict[str, int]) -> None:
        if self.log.job is not None and self.log.job.variables:
            updates = [decide.Update(name, value=float(value)) for name, value in values.items()]
            self.keep(decide.set_variables(self.log.job, updates))

    def keep(self, payload: Payload | None) -> None:
        self.log.record(payload)
        if payload is not None:
            self.records.append((self.log.revision, payload))

    @rule(
        values=st.dictionaries(st.sampled_from(NAMES), st.integers(10, 19)),
        fires=st.booleans(),
        steps=st.integers(1, 5),
    )
    def schedule(self, values: dict[str, int], fires: bool, steps: int) -> None:
        if self.log.job is None or not self.log.job.variables or not self.log.job.triggers or not (values or fires):
            return
        updates = [decide.Update(name, value=float(value)) for name, value in values.items()]
        change = (
            decide.set_variables(self.log.job, updates) if updates else decide.fire_triggers(self.log.job, ["save"])
        )
        assert change is not None
        self.keep(decide.schedule(self.log.job, change, decide.When(steps, relative=True), self.step))
        self.waits[self.log.revision] = self.step + steps

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        waiting = [] if self.log.job is None else [revision for revision, _ in self.log.job.waiting()]
        if waiting and self.log.job is not None:
            self.keep(decide.cancel(self.log.job, waiting[which % len(waiting)]))

    @rule()
    def fire(self) -> None:
        if self.log.job is not None and self.log.job.triggers:
            self.keep(decide.fire_triggers(self.log.job, ["save"]))

    @rule()
    def daemon_tells(self) -> None:
        assert self.log.job is not None
        for revision, payload in self.records:
            if revision <= self.told:
                continue
            if isinstance(payload, Changed):
                assignments = tuple((item.variable, item.new) for item in payload.assignments)
                firings = tuple(item.trigger for item in payload.firings)
                self.down.append(m.ChangeReceived(revision, assignments, firings, scheduled=payload.scheduled))
            elif isinstance(payload, Scheduled) and revision in dict(self.log.job.waiting()):
                self.down.append(m.ScheduledReceived(_scheduled(revision, payload)))
            elif isinstance(payload, Cancelled):
                self.down.append(m.ScheduledCancelled(payload.scheduled))
        self.told = max(self.told, self.log.revision)

    @rule(back=st.integers(1, 3))
    def daemon_repeats(self, back: int) -> None:
        self.told -= back

    @rule(count=st.integers(1, 4))
    def daemon_hears(self, count: int) -> None:
        for _ in range(min(count, len(self.up))):
            message = self.up.pop(0)
            if isinstance(message, m.Declare):
                self.answer_declaration(message)
            elif isinstance(message, m.Report):
                self.record_report(message)

    def answer_declaration(self, message: m.Declare) -> None:
        assert self.log.job is not None
        declared, errors = decide.declare(
            self.log.job,
            0,
            "a",
            [decide.Declaration(spec(item.name, item.initial), current) for item, current in message.variables],
            [TriggerSpec(item.name) for item in message.triggers],
        )
        assert {} == errors
        job = self.log.record(declared)
        states = [(item.name, job.variables[item.name]) for item, _ in message.variables]
        self.down.append(
            m.Declared(
                tuple(m.VariableAnswer(name, s.desired, s.revision, s.from_change) for name, s in states),
                tuple(m.TriggerAnswer(item.name, job.triggers[item.name].pending) for item in message.triggers),
            )
        )

    def record_report(self, report: m.Report) -> None:
        assert self.log.job is not None
        outcomes = [
            Outcome(o.name, bool(report.trigger), ApplyStatus(o.status.value), o.effective) for o in report.outcomes
        ]
        revision, scheduled = report.revision, 0
        if report.scheduled:
            scheduled = report.revision
            self.keep(decide.due(self.log.job, 0, "a", scheduled))
            revision = self.log.job.scheduled[scheduled].made
        if outcomes:
            self.log.record(decide.report_apply(self.log.job, 0, "a", revision, report.step, outcomes))
        self.down.append(m.ReportRecorded(revision, report.trigger, scheduled))

    @rule(count=st.integers(1, 4))
    def process_hears(self, count: int) -> None:
        for _ in range(min(count, len(self.down))):
            self.do(self.down.pop(0))

    @rule(consume=st.booleans())
    def safe_point(self, consume: bool) -> None:
        self.step += 1
        self.do(m.SafePoint(self.step))
        if consume and self.visible:
            self.visible -= 1
            self.do(m.FiringConsumed("save", self.step))

    @rule()
    def cut(self) -> None:
        self.up.clear()
        self.down.clear()
        self.do(m.Disconnected())
        self.connect()

    def teardown(self) -> None:
        if self.log.job is None:
            return
        for _ in range(9):  # calm: everything arrives, and every step comes
            self.process_hears(10_000)
            self.daemon_hears(10_000)
            self.daemon_tells()
            self.safe_point(consume=False)
        job = self.log.job
        consumed = 0
        while self.visible:
            self.safe_point(consume=True)
            consumed += 1
        for _ in range(2):
            self.daemon_hears(10_000)
            self.process_hears(10_000)
        job = self.log.job
        assert {name: job.variables[name].desired for name in NAMES} == self.values
        assert self.applied == sorted(set(self.applied))
        assert () == job.triggers["save"].pending
        assert 0 == self.session.unreported
        assert job.triggers["save"].fired == self.shown
        assert [] == list(job.waiting())
        for revision, state in job.scheduled.items():
            assert state.cancelled or state.made, f"{revision} was lost"
        changes = [(revision, payload) for revision, payload in self.records if isinstance(payload, Changed)]
        made = [changed.scheduled for _, changed in changes if changed.scheduled]
        assert len(made) == len(set(made))
        newest = {item.variable: revision for revision, changed in changes for item in changed.assignments}
        for name, revision in newest.items():
            assert (revision, job.variables[name].desired) == (
                job.variables[name].applied[0].revision,
                job.variables[name].applied[0].value,
            )
            assert revision == job.variables[name].acknowledged[0]


def _scheduled(revision: int, scheduled: Scheduled) -> m.ScheduledChange:
    change = scheduled.change
    assignments = tuple((item.variable, item.new) for item in change.assignments)
    return m.ScheduledChange(revision, scheduled.step, assignments, tuple(item.trigger for item in change.firings))


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, print_blob=True)
