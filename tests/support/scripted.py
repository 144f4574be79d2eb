"""The dialogue of one process with the daemon, for tests: events go in, and what came of them is kept."""

from __future__ import annotations

from livetune import messages as m
from livetune.session import Session
from livetune.specs import TriggerSpec, VariableSpec

LR = VariableSpec.declare("lr", 0.1, minimum=0.0, maximum=1.0)
WD = VariableSpec.declare("wd", 0.0)
SAVE = TriggerSpec("save")


class Script:
    """Feeds events and keeps what came of them."""

    def __init__(self) -> None:
        self.session = Session()
        self.sent: list[m.Message] = []
        self.assigned: list[tuple[str, object, int, int]] = []
        self.shown: list[str] = []
        self.others: list[m.Action] = []

    def feed(self, *events: m.Event) -> Script:
        for event in events:
            for action in self.session.handle(event):
                if isinstance(action, m.Send):
                    self.sent.append(action.message)
                elif isinstance(action, m.Assign):
                    self.assigned.append((action.name, action.value, action.revision, action.step))
                elif isinstance(action, m.Show):
                    self.shown += [action.trigger] * action.firings
                else:
                    self.others.append(action)
            self.session.validate()
        return self

    def take_sent(self) -> list[m.Message]:
        sent, self.sent = self.sent, []
        return sent


def connected(*specs: VariableSpec | TriggerSpec) -> Script:
    script = Script()
    for spec in specs:
        script.feed(m.VariableDeclared(spec) if isinstance(spec, VariableSpec) else m.TriggerDeclared(spec))
    script.feed(m.Registered("store", 1, 21_000, 10), m.Opened("store", 10))
    script.take_sent()
    return script


def change(revision: int, *firings: str, **values: object) -> m.ChangeReceived:
    return m.ChangeReceived(revision, tuple(values.items()), firings, "why", "ann")  # type: ignore[arg-type]


def applied(revision: int, step: int, **values: float) -> m.Report:
    return m.Report(revision, step, tuple(m.Outcome(name, m.Status.APPLIED, value) for name, value in values.items()))
