"""Owns a replay: it gives a job what a record says, at the steps that the record says. Sans I/O but for reading it.

It stands where the session stands in a live job, takes the same events and returns the same actions, so that values,
callbacks and the job's own list of changes take the same path.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from livetune import messages as m
from livetune.errors import DeclarationError
from livetune.records import Entry, Recording, read
from livetune.specs import Scalar, TriggerSpec, VariableSpec
from livetune.standin import Standin

__all__ = ["Replay"]


class Replay(Standin):
    """What a job is given instead of a daemon. Not thread-safe: the job holds its lock.

    Args:
        recording: What is to happen.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording
        self._entries = recording.entries
        self._next = 0
        """Index of the first entry whose step has not come."""
        self._due: list[Entry] = []
        self._held: defaultdict[str, list[Entry]] = defaultdict(list)
        """By name: entries whose step has come, for what is not declared."""
        self._triggers: set[str] = set()
        self._departed: set[str] = set()
        """Variables that were found to have another value than the record says."""
        self._of: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self._entries:
            for name in entry.values or (entry.trigger,):
                self._of[name].append(entry)
        self.store_id = recording.store_id
        """The store that the newest revision given belongs to; "" if it is not known."""

    @classmethod
    def read(cls, path: str, rank: int) -> Replay:
        """Read what is to be replayed.

        Args:
            path: A record, or a file of what ``ltctl history JOB -o jsonl`` printed.
            rank: Whose applies count in a history.

        Raises:
            ReplayError: It can't be replayed; the message has file and line, the rule and the value.
        """
        return cls(read(path, rank))

    @property
    def path(self) -> str:
        """The file."""
        return self._recording.path

    @property
    def warnings(self) -> list[str]:
        """What the user must know of the file."""
        return self._recording.warnings

    def check(self, spec: VariableSpec | TriggerSpec) -> None:
        """Check that what is about to be declared can take what the record holds for it.

        Raises:
            DeclarationError: It can't.
        """
        where, kind, _ = self._recording.declared.get(spec.name, ("", None, None))
        now = spec.kind if isinstance(spec, VariableSpec) else None
        if where and kind is not now:
            raise DeclarationError(f"{where}: {spec.name!r} was recorded as {_noun(kind)}, now it is {_noun(now)}")
        for entry in self._of[spec.name]:
            if bool(entry.trigger) is isinstance(spec, VariableSpec):
                was = "trigger" if entry.trigger else "variable"
                raise DeclarationError(f"{entry.where}: {spec.name!r} was recorded as a {was}, now it is {_noun(now)}")
            refusal = spec.refusal(entry.values[spec.name]) if isinstance(spec, VariableSpec) else None
            if refusal is not None:
                raise DeclarationError(f"{entry.where}: the value recorded is not allowed: {refusal}")

    def handle(self, event: m.Event) -> list[m.Action]:
        """Take an event and return what is to be done, in order."""
        if isinstance(event, m.SafePoint):
            return self._safe_point(event.step)
        if isinstance(event, m.VariableDeclared):
            return self._variable_declared(event.spec)
        if isinstance(event, m.TriggerDeclared):
            self._triggers.add(event.spec.name)
            return self._release(event.spec.name)
        if isinstance(event, m.Restored):
            return self.restored(event)
        return []

    def _variable_declared(self, spec: VariableSpec) -> list[m.Action]:
        self._in_use[spec.name] = spec.initial
        where, _, initial = self._recording.declared.get(spec.name, ("", None, None))
        actions: list[m.Action] = []
        if where and initial != spec.initial:
            self._departed.add(spec.name)
            text = f"variable {spec.name!r} began with {initial!r} there, now it begins with {spec.initial!r}"
            actions.append(m.Warn(f"the replay departs from {where}: {text}"))
        return actions + self._release(spec.name)

    def _release(self, name: str) -> list[m.Action]:
        self._due += self._held.pop(name, ())
        return [m.Pending()] if self._due else []

    def _safe_point(self, step: int) -> list[m.Action]:
        due, self._due = self._due, []
        while self._next < len(self._entries) and self._entries[self._next].step <= step:
            due.append(self._entries[self._next])
            self._next += 1
        # Steps that jump make several due: as in a live job, the last one of each variable takes effect, no other.
        last = {name: entry for entry in due for name in entry.values}
        actions: list[m.Action] = []
        for entry in due:
            self.store_id = entry.store_id
            actions += self._take_effect(entry, step, last)
        return actions + ([m.Pending()] if self._next < len(self._entries) else [])

    def _take_effect(self, entry: Entry, step: int, last: dict[str, Entry]) -> list[m.Action]:
        if entry.trigger:
            if entry.trigger not in self._triggers:
                return self._hold(entry.trigger, entry)
            return [m.Show(entry.trigger, 1, entry.revision, entry.reason, entry.actor)]
        actions: list[m.Action] = []
        values: dict[str, tuple[Scalar, Scalar]] = {}
        for name, value in entry.values.items():
            if name not in self._in_use:
                actions += self._hold(name, replace(entry, values={name: value}))
            elif last[name] is entry:
                old, self._in_use[name] = self._in_use[name], value
                actions += self._compare(entry, name, old)
                actions.append(m.Assign(name, value, entry.revision, step, changed=old != value))
                values[name] = old, value
        if values:
            actions.append(m.Record(m.AppliedChange(entry.revision, step, values, entry.reason, entry.actor)))
        return actions

    def _hold(self, name: str, entry: Entry) -> list[m.Action]:
        told = name in self._held
        self._held[name].append(entry)
        what = f"{name!r}, recorded at step {entry.step}, is not declared by the program"
        return [] if told else [m.Warn(f"{entry.where}: {what}: it is left out until it is")]

    def _compare(self, entry: Entry, name: str, old: Scalar) -> list[m.Action]:
        """Say once that a variable is not where the record has it: another program, or a record with gaps."""
        if entry.olds.get(name, old) == old or name in self._departed:
            return []
        self._departed.add(name)
        text = f"variable {name!r} was {entry.olds[name]!r} there before step {entry.step}, here it is {old!r}"
        return [m.Warn(f"the replay departs from {entry.where}: {text}; is a part of the record missing?")]


def _noun(kind: object) -> str:
    return "a trigger" if kind is None else f"a variable of type {getattr(kind, 'value', kind)}"
