"""Owns the record of what a process applied at which step: its lines, and reading them back. Pure but for `read`.

A record is JSON, one object a line. The first is a header, with the version of the format; each line after it has a
``kind``. A process that is started again adds a header and its own lines to the file: the last header counts. What
``ltctl history JOB -o jsonl`` prints is read as well, and comes to the same `Entry`.

Everything is read strictly: fields that are not known are left alone, those that are known must be right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from livetune.errors import InvalidNameError, ReplayError
from livetune.messages import AppliedChange
from livetune.specs import INT64_MAX, INT64_MIN, Kind, Scalar, TriggerSpec, VariableSpec, check_name, shown

__all__ = ["Entry", "Recording", "entries_of_history", "read"]

VERSION = 1
"""Version of the format that is written; newer ones are refused."""

_HEADER = "livetune_record"
_TRIGGER = "trigger"
_WHOLE_RUN = "write all changes of one run: ltctl history JOB --after REVISION -n 1000000 -o jsonl"


@dataclass(frozen=True)
class Who:
    """The process that a record is of."""

    job: str
    rank: int
    world_size: int


@dataclass(frozen=True)
class Entry:
    """Something that took effect in one process: a change's values, or one firing that the program consumed."""

    where: str
    """Where it was read, as in ``run.jsonl:7``."""
    revision: int
    step: int
    """The job's step at whose safe point the values took effect, or at which the firing was consumed."""
    values: Mapping[str, Scalar] = field(default_factory=dict)
    """What was in use from then on, by variable; empty for a firing."""
    olds: Mapping[str, Scalar] = field(default_factory=dict)
    """What was in use before, by variable, where that is known."""
    trigger: str = ""
    """The trigger; "" if it is no firing."""
    reason: str = ""
    actor: str = ""
    store_id: str = ""
    """The daemon's store that the revision belongs to; "" if it is not known."""


@dataclass
class Recording:
    """What a file says of one process, in the order in which it happened."""

    path: str
    store_id: str = ""
    """The store when the record began; "" if it is not known."""
    entries: list[Entry] = field(default_factory=list)
    declared: dict[str, tuple[str, Kind | None, Scalar | None]] = field(default_factory=dict)
    """By name: where it was read, type and initial value of a variable; neither for a trigger."""
    warnings: list[str] = field(default_factory=list)
    """What the user must know of the file."""


# --- Writing ----------------------------------------------------------------------------------------------------------


def header_line(
    who: Who, *, sdk_version: str, store_id: str, specs: Iterable[VariableSpec | TriggerSpec]
) -> dict[str, Any]:
    """Return the first line of a process: who it is, and what it declared before its first safe point."""
    return {
        _HEADER: VERSION,
        "job": who.job,
        "rank": who.rank,
        "world_size": who.world_size,
        "sdk_version": sdk_version,
        "store_id": store_id,
        "declared": [_declaration(spec) for spec in specs],
    }


def declared_line(spec: VariableSpec | TriggerSpec) -> dict[str, Any]:
    """Return the line of a declaration that came after the first safe point."""
    return {"kind": "declared", "declared": [_declaration(spec)]}


def _declaration(spec: VariableSpec | TriggerSpec) -> dict[str, Any]:
    if isinstance(spec, TriggerSpec):
        return {"name": spec.name, "type": _TRIGGER}
    return {"name": spec.name, "type": spec.kind.value, "initial": spec.initial}


def store_line(store_id: str) -> dict[str, Any]:
    """Return the line that says which store the revisions after it belong to."""
    return {"kind": "store", "store_id": store_id}


def change_line(change: AppliedChange) -> dict[str, Any]:
    """Return the line of a change that took effect."""
    return {
        "kind": "change",
        "revision": change.revision,
        "step": change.step,
        "values": {name: {"old": old, "new": new} for name, (old, new) in change.values.items()},
        "reason": change.reason,
        "actor": change.actor,
    }


def firing_line(trigger: str, revision: int, step: int, reason: str, actor: str) -> dict[str, Any]:
    """Return the line of a firing that the program consumed."""
    return {
        "kind": "firing",
        "revision": revision,
        "step": step,
        "trigger": trigger,
        "reason": reason,
        "actor": actor,
    }


def end_line(step: int, *, failed: bool) -> dict[str, Any]:
    """Return the line that says that nothing is missing: the program ended, at this step."""
    return {"kind": "end", "step": step, "failed": failed}


def to_bytes(line: Mapping[str, Any]) -> bytes:
    """Return a line as it is written: ASCII, so that no cut falls into a character; floats exactly, by repr."""
    return json.dumps(line, allow_nan=False).encode() + b"\n"


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(path: str, rank: int) -> Recording:
    """Read a record, or what ``ltctl history JOB -o jsonl`` printed.

    Args:
        path: The file.
        rank: Whose applies count in a history, which has those of all ranks.

    Raises:
        ReplayError: The file can't be read, is empty, is of a newer version, or has a line that is wrong; the message
            has file and line, the rule and the value.
    """
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise ReplayError(f"{path!r} can't be read: {why}") from error
    lines = list(_lines(path, text))
    warnings = []
    if lines and isinstance(lines[-1][1], ReplayError) and not text.endswith(b"\n"):
        # Whoever wrote it was stopped within the line: nothing of it had been said before.
        warnings.append(f"{lines.pop()[0]}: the last line breaks off and is left out")
    if not lines:
        raise ReplayError(f"{path}: has no line: a record begins with a header, and a history with a change")
    last = max((at for at, (_, line) in enumerate(lines) if isinstance(line, dict) and _HEADER in line), default=None)
    if last is None:
        _check_is_history(*lines[0])
        return Recording(path, entries=entries_of_history(lines, rank), warnings=warnings)
    recording = _read_record(path, lines[last:])
    recording.warnings[:0] = warnings
    return recording


def _lines(path: str, text: bytes) -> Iterator[tuple[str, object]]:
    """Yield where each line is, and what it says; the error instead where it is no JSON."""
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                yield where, ReplayError(f"{where}: a line must be one JSON object, got {shown(line)} ({error})")


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _check_is_history(where: str, line: object) -> None:
    if isinstance(line, ReplayError):
        raise line
    if not (isinstance(line, dict) and "applies" in line):
        raise ReplayError(
            f"{where}: the first line must be the header of a record ({_HEADER!r}), or a change as "
            f"`ltctl history JOB -o jsonl` prints it, got {shown(line)}"
        )


class _Fields:
    """Reads the fields of one object, strictly."""

    def __init__(self, where: str, data: object, what: str = "a line") -> None:
        if isinstance(data, ReplayError):
            raise data
        self.where = where
        if not isinstance(data, dict):
            raise self.wrong(what, "a JSON object", data)
        self.data: dict[str, Any] = data

    def wrong(self, what: str, rule: str, value: object) -> ReplayError:
        return ReplayError(f"{self.where}: {what} must be {rule}, got {shown(value)}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(repr(key), "text", value)
        return value

    def whole(self, key: str) -> int:
        value = self.data.get(key)
        if type(value) is not int or not 0 <= value <= INT64_MAX:
            raise self.wrong(repr(key), "a whole number from 0 to 2**63 - 1", value)
        return value

    def name(self, key: str) -> str:
        return self.as_name(self.data.get(key))

    def as_name(self, value: Any) -> str:
        try:
            return check_name("variable or trigger", value)
        except InvalidNameError as error:
            raise ReplayError(f"{self.where}: {error}") from None

    def scalar(self, key: str, of: str) -> Scalar:
        value = self.data.get(key)
        if (isinstance(value, float) and math.isfinite(value)) or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int) and INT64_MIN <= value <= INT64_MAX:
            return value
        raise self.wrong(f"{key!r} of {of!r}", "a finite float, an int of 64 bits, a bool or text", value)

    def items(self, key: str, what: str) -> Iterator[_Fields]:
        value = self.data.get(key)
        if not isinstance(value, list):
            raise self.wrong(repr(key), "a list", value)
        return (_Fields(self.where, item, what) for item in value)


# -- a record --


def _read_record(path: str, lines: list[tuple[str, object]]) -> Recording:
    head = _Fields(*lines[0])
    version = head.data[_HEADER]
    if type(version) is not int or version < 1:
        raise head.wrong(repr(_HEADER), "the version of the format, a whole number from 1 on", version)
    if version > VERSION:
        raise head.wrong("the record's format", f"of version {VERSION} or older: use a newer livetune", version)
    recording = Recording(path, head.text("store_id", ""))
    _read_declarations(recording, head)
    store_id, step, ended = recording.store_id, 0, False
    for line in lines[1:]:
        fields = _Fields(*line)
        kind = fields.data.get("kind")
        if kind == "declared":
            _read_declarations(recording, fields)
        elif kind == "store":
            store_id = fields.text("store_id")
        elif kind in ("change", "firing"):
            entry = replace((_change if kind == "change" else _firing)(fields), store_id=store_id)
            step = _rising(entry, step, "a program that counts its steps anew can't be replayed")
            recording.entries.append(entry)
        elif kind == "end":
            ended = True
        else:
            raise fields.wrong("'kind'", "'change', 'firing', 'declared', 'store' or 'end'", kind)
    if not ended:
        recording.warnings.append(
            f"{path}: the record has no end, its program was killed or could not write on: what came after step {step} "
            "may be missing"
        )
    return recording


def _read_declarations(recording: Recording, fields: _Fields) -> None:
    for item in fields.items("declared", "a declaration"):
        name, word = item.name("name"), item.text("type")
        if word == _TRIGGER:
            recording.declared[name] = fields.where, None, None
            continue
        try:
            kind = Kind(word)
        except ValueError:
            raise item.wrong(f"'type' of {name!r}", "'float', 'int', 'bool', 'str' or 'trigger'", word) from None
        recording.declared[name] = fields.where, kind, item.scalar("initial", name)


def _change(fields: _Fields) -> Entry:
    assigned = fields.data.get("values")
    if not isinstance(assigned, dict) or not assigned:
        raise fields.wrong("'values'", "an object with one variable or more", assigned)
    values, olds = {}, {}
    for name, item in assigned.items():
        fields.as_name(name)
        pair = _Fields(fields.where, item, f"the values of {name!r}")
        values[name], olds[name] = pair.scalar("new", name), pair.scalar("old", name)
    return Entry(
        fields.where,
        fields.whole("revision"),
        fields.whole("step"),
        values,
        olds,
        reason=fields.text("reason", ""),
        actor=fields.text("actor", ""),
    )


def _firing(fields: _Fields) -> Entry:
    return Entry(
        fields.where,
        fields.whole("revision"),
        fields.whole("step"),
        trigger=fields.name("trigger"),
        reason=fields.text("reason", ""),
        actor=fields.text("actor", ""),
    )


def _rising(entry: Entry, step: int, why: str) -> int:
    """Return the entry's step, which must not be below the one before."""
    if entry.step < step:
        raise ReplayError(f"{entry.where}: steps must not fall, got {entry.step} after {step}: {why}")
    return entry.step


# -- a history --


def entries_of_history(lines: Iterable[tuple[str, object]], rank: int, *, only: str | None = None) -> list[Entry]:
    """Return what took effect in one rank, from changes as ``ltctl history -o jsonl`` prints them.

    Args:
        lines: Of each change, where it stands, and the object.
        rank: Whose applies count.
        only: The only variable that counts; None for all, and triggers.

    Raises:
        ReplayError: A change is wrong; or they are not those of one run of one job, without a gap.
    """
    run = _Run()
    found: list[tuple[datetime, Entry]] = []
    ranks: set[int] = set()
    for line in lines:
        fields = _Fields(*line)
        olds = run.follow(fields, only)
        for apply in fields.items("applies", "an apply"):
            of = apply.whole("rank")
            ranks.add(of)
            if of == rank:
                found += ((_time(apply), entry) for entry in _applied(fields, apply, olds, only))
    if ranks and rank not in ranks:
        raise ReplayError(f"{fields.where}: no change was applied by rank {rank}, only by {_ranks(ranks)}")
    # A rank reports in the order in which things took effect; what one commit recorded has one time.
    found.sort(key=lambda item: (item[0], item[1].step, bool(item[1].trigger), item[1].revision))
    step = 0
    for _, entry in found:
        step = _rising(entry, step, f"the history holds more than one process; {_WHOLE_RUN}")
    return [entry for _, entry in found]


class _Run:
    """Finds where changes are missing, or belong to another run: each must begin with what the one before made."""

    def __init__(self) -> None:
        self._job = ""
        self._revision = 0
        self._desired: dict[str, tuple[Scalar, int]] = {}
        self._fired: dict[str, int] = {}

    def follow(self, fields: _Fields, only: str | None) -> dict[str, Scalar]:
        """Take the next change; return the values before it, of variables that it is the first to change."""
        job, revision = fields.text("job"), fields.whole("revision")
        if self._job not in ("", job):
            raise fields.wrong("'job'", f"that of the lines before, {self._job!r}: {_WHOLE_RUN}", job)
        if revision <= self._revision:
            raise fields.wrong("'revision'", f"above the {self._revision} of the line before", revision)
        self._job, self._revision = job, revision
        firsts: dict[str, Scalar] = {}
        for item in fields.items("assignments", "an assignment"):
            name = item.name("variable")
            if only not in (None, name):
                continue
            old, new = item.scalar("old", name), item.scalar("new", name)
            if name not in self._desired:
                firsts[name] = old
            elif not _same(old, self._desired[name][0]):
                before = self._desired[name]
                rule = f"{before[0]!r}, which revision {before[1]} made it"
                raise ReplayError(
                    f"{fields.where}: 'old' of {name!r} must be {rule}, got {old!r}: changes between are missing, or "
                    f"another run began; {_WHOLE_RUN}"
                )
            self._desired[name] = new, revision
        for item in fields.items("firings", "a firing"):
            name, number = item.name("trigger"), item.whole("number")
            if number <= self._fired.get(name, 0):
                raise fields.wrong(
                    f"'number' of {name!r}",
                    f"above the {self._fired[name]} before it, or another run began; {_WHOLE_RUN}",
                    number,
                )
            self._fired[name] = number
        return firsts


def _time(apply: _Fields) -> datetime:
    text = apply.text("time")
    try:
        # Before Python 3.11 it reads no Z.
        time = datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
        if time.tzinfo is not None:
            return time
    except ValueError:
        pass
    raise apply.wrong("'time'", "ISO 8601 with an offset", text)


def _applied(change: _Fields, apply: _Fields, olds: Mapping[str, Scalar], only: str | None) -> Iterator[Entry]:
    """Yield what an apply says took effect: the values of variables together, each firing by itself."""
    told = Entry(
        change.where,
        change.whole("revision"),
        apply.whole("step"),
        reason=change.text("reason", ""),
        actor=change.text("actor", ""),
    )
    values: dict[str, Scalar] = {}
    for outcome in apply.items("outcomes", "an outcome"):
        if outcome.text("status") != "applied":
            continue
        if _TRIGGER in outcome.data:
            if only is None:
                yield replace(told, trigger=outcome.name(_TRIGGER))
        elif only in (None, name := outcome.name("variable")):
            values[name] = outcome.scalar("effective", name)
    if values:
        yield replace(told, values=values, olds={name: olds[name] for name in values if name in olds})


def _ranks(ranks: Iterable[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in sorted(ranks))


def _same(one: Scalar, other: Scalar) -> bool:
    # True == 1 == 1.0 in Python.
    return type(one) is type(other) and one == other
