"""Looks at everything in a store's file that can be looked at, and tells what is well and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

from livetuned.domain.job import Job
from livetuned.domain.records import Applied, Record
from livetuned.domain.state import State
from livetuned.store import schema
from livetuned.store.headmark import HeadMark
from livetuned.store.refold import Refold
from livetuned.store.source import UNREADABLE, ChainError, Line, Source
from livetuned.store.wal import WalReport, examine_wal

_NOTE = "note "
_MAGIC = b"SQLite format 3\0"
_SHOWN = 3
"""How many things of a kind a line names."""


class Status(Enum):
    """How a check went."""

    OK = "OK"
    FAILED = "FAILED"
    LEFT_OUT = "LEFT OUT"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    words: str


@dataclass(slots=True)
class Examination:
    """What was found. Filled while `examine` runs."""

    checks: list[Check] = field(default_factory=list)
    readable: bool = False
    """Whether it is a store of a schema that is known."""
    store_id: str = ""
    origin: int = 0
    """Records up to this revision are not kept."""
    origin_known: bool = True
    """Whether it was the store that said so; else what was found begins there."""
    anchor: bytes | None = None
    """The checksum to which the record after `origin` is chained; None if it is not known."""
    covered: int | None = None
    """Every record up to this revision is part of the snapshots; None if that is not known."""
    head: int = 0
    """The highest revision found."""
    log_readable: bool = True
    """Whether that could be told."""
    acknowledged: int = 0
    """The last revision that the daemon acknowledged, as far as it noted that."""
    snapshots: dict[str, Job] = field(default_factory=dict)
    """Those that can be trusted."""
    bad_snapshots: list[str] = field(default_factory=list)
    """Jobs whose snapshots can't."""
    snapshots_complete: bool = True
    """Whether it is sure that no snapshot is missing."""
    digest: str = ""
    """One checksum over all snapshots, ``""`` if it is not known."""
    notes: dict[str, str] = field(default_factory=dict)
    """What is noted, by key."""
    good: int = 0
    """The chain holds, and folds, up to this revision."""
    state: dict[str, Job] | None = None
    """The jobs as of `head`; None unless the snapshots and the records after them give it."""

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status is Status.FAILED]


def utc(time_us: int) -> str:
    """Returns a time, in microseconds since the Unix epoch, for people: UTC, to the second."""
    try:
        time = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=time_us)
    except OverflowError:
        return "an impossible time"
    return time.strftime("%Y-%m-%d %H:%M:%SZ")


def span(first: int, last: int) -> str:
    """Returns a range of revisions for people."""
    return f"{first}" if first == last else f"{first}-{last}"


def number(count: int, noun: str) -> str:
    """Returns a count of something for people."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(names: list[str]) -> str:
    """Returns a list for people: the first few, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def examine(path: Path, found: Examination) -> Iterator[Check]:
    """Looks at a store's file and yields what it finds, check by check.

    Args:
        path: The file, a private copy, with what belongs beside it.
        found: Filled on the way.
    """
    for check in _examine(path, found):
        found.checks.append(check)
        yield check


def _examine(path: Path, found: Examination) -> Iterator[Check]:
    log = examine_wal(path.with_name(f"{path.name}-wal"))
    damage = _mended_header(path)
    try:
        source = Source(path)
    except ValueError as error:
        yield Check("file", Status.FAILED, f"no store of livetuned can be read in it: {damage or error}")
        return
    with closing(source):
        if not damage and source.application != schema.APPLICATION_ID:
            damage = f"application id {source.application:#x} is not that of livetuned"
        if damage and "meta" not in source.tables:
            yield Check("file", Status.FAILED, f"not a store of livetuned: {damage}")
            return
        yield _check("file", damage, "SQLite, with livetuned's application id")
        yield _schema(source, found)
        if not found.readable:
            return
        problems = source.integrity()
        yield _check("integrity", some(problems), "SQLite finds nothing wrong with the file")
        yield from _contents(source, path, log, found)


def _check(name: str, damage: str, well: str) -> Check:
    return Check(name, Status.FAILED if damage else Status.OK, damage or well)


def _mended_header(path: Path) -> str:
    """Lets SQLite read a copy whose first bytes are damaged, and tells what is wrong with them."""
    with path.open("r+b") as file:
        start = file.read(len(_MAGIC))
        if not start:
            return "it is empty"
        if start == _MAGIC:
            return ""
        file.seek(0)
        file.write(_MAGIC)
    return "it does not begin as a SQLite database does"


def _schema(source: Source, found: Examination) -> Check:
    version = source.stored_version
    if version > schema.SCHEMA_VERSION:
        words = f"version {version}, of a newer livetuned; this one knows versions up to {schema.SCHEMA_VERSION}"
        return Check("schema", Status.FAILED, words)
    found.readable = True
    if version < 1:
        return Check("schema", Status.FAILED, f"version {version}; by its tables it is {source.version}")
    wanted = {"log", "meta", "snapshots"} if version > 1 else {"log", "meta"}
    missing = sorted(wanted - source.tables)
    old = f", is brought to version {schema.SCHEMA_VERSION} when a daemon opens it"
    words = f"version {version}{'' if version == schema.SCHEMA_VERSION else old}"
    problems = [f"missing: {some(missing)}"] if missing else []
    if source.altered:
        problems.append(f"not defined as livetuned does: {some(source.altered)}")
    return _check("schema", f"{words}; {'; '.join(problems)}" if problems else "", words)


def _contents(source: Source, path: Path, log: WalReport, found: Examination) -> Iterator[Check]:
    try:
        found.head = source.last()
    except ValueError:
        found.log_readable = False
    meta = _meta(source, found)
    mark = _head_mark(path, found)
    yield _wal(log, mark, found)
    yield mark
    yield meta
    yield _snapshots(source, found)
    yield from _Scan(source, found).checks()
    yield _retention(found)
    if "copy" in found.notes:
        yield _provenance(found.notes["copy"])


def _meta(source: Source, found: Examination) -> Check:
    problems: list[str] = []
    try:
        lines, bad = source.meta()
    except ValueError as error:
        lines, bad = {}, []
        problems.append(f"can't be read: {error}")
    problems += [f"{key!r} does not keep its checksum" for key in bad]
    wanted = ("store_id", "origin", "covered", "snapshots") if source.version > 1 else ("store_id",)
    problems += [f"{key!r} is missing" for key in wanted if key not in lines and key not in bad]
    found.notes = {key.removeprefix(_NOTE): text for key, text in lines.items() if key.startswith(_NOTE)}
    found.digest = lines.get("snapshots", "")
    try:
        found.store_id = lines.get("store_id", "")
        identity = bytes.fromhex(found.store_id)
        if source.version > 1:
            _begin(source, lines, identity, found)
        else:
            found.origin, found.anchor, found.covered = 0, identity or None, 0
    except ValueError as error:
        problems.append(str(error))
    found.head = max(found.head, found.origin, 0 if found.log_readable else found.covered or 0)
    if found.covered is not None and not found.origin <= found.covered <= found.head:
        problems.append(f"snapshots cover records up to {found.covered}, of {found.origin} to {found.head}")
        found.covered = None
    well = number(len(lines), "line") + (" that keep their checksums" if source.version > 1 else "")
    return _check("meta", "; ".join(problems), well)


def _begin(source: Source, lines: dict[str, str], identity: bytes, found: Examination) -> None:
    """Finds out where the log begins, and to what its first record is chained."""
    if "covered" in lines:
        found.covered = int(lines["covered"])
    if "origin" in lines:
        revision, checksum = lines["origin"].split()
        found.origin, found.anchor = int(revision), bytes.fromhex(checksum)
        return
    first, found.origin_known = source.first(), False
    if first == 1 and identity:
        found.origin, found.anchor = 0, identity
    else:
        # The first record can't be checked; but the ones after it can, by its checksum.
        found.origin, found.anchor = first, source.checksum_at(first)


def _head_mark(path: Path, found: Examination) -> Check:
    mark = HeadMark(path)
    found.acknowledged = mark.read(found.store_id)
    name, head = "head mark", found.head
    if not mark.path.exists():
        return Check(name, Status.LEFT_OUT, "there is none; a backup has none")
    if not found.acknowledged:
        return Check(name, Status.LEFT_OUT, "it is of another store, empty, or can't be read")
    if not found.log_readable:
        return Check(name, Status.LEFT_OUT, f"at revision {found.acknowledged}, the log can't be read")
    if found.acknowledged > head:
        lost = span(head + 1, found.acknowledged)
        words = f"records up to {found.acknowledged} were acknowledged, the last one found is {head}: {lost} missing"
        return Check(name, Status.FAILED, words)
    behind = ", as a power cut leaves it" if found.acknowledged < head else ""
    return Check(name, Status.OK, f"at revision {found.acknowledged}, the last record is {head}{behind}")


def _wal(log: WalReport, mark: Check, found: Examination) -> Check:
    name = "write-ahead log"
    if not log.size:
        return Check(name, Status.OK, "there is none")
    commits = number(log.commits, "commit")
    if not (log.bad_frame or log.header_damaged):
        return Check(name, Status.OK, f"{commits} in {log.size} bytes")
    if mark.status is Status.OK and found.acknowledged == found.head:
        return Check(name, Status.OK, f"{commits}; it ends in what was cut off, and nothing acknowledged is missing")
    if log.header_damaged:
        return Check(name, Status.FAILED, f"{log.size} bytes with a damaged header: SQLite takes nothing of it")
    behind = number(log.commits_behind, "commit")
    if log.damaged or mark.status is Status.FAILED:
        words = f"damaged at frame {log.bad_frame}: SQLite takes nothing from there on, {behind}"
        return Check(name, Status.FAILED, words)
    return Check(name, Status.OK, f"{commits}; it ends in one that was cut off, as a power cut does")


def _snapshots(source: Source, found: Examination) -> Check:
    name = "snapshots"
    if source.version < 2:
        return Check(name, Status.LEFT_OUT, f"schema {source.version} has none")
    try:
        found.snapshots, checksums, found.bad_snapshots = source.snapshots()
    except ValueError as error:
        found.snapshots_complete = False
        return Check(name, Status.FAILED, f"can't be read: {error}")
    found.snapshots_complete = bool(found.digest) and schema.snapshots_digest(checksums) == found.digest
    problems = []
    if found.bad_snapshots:
        problems.append(f"not what was written: those of jobs {some(found.bad_snapshots)}")
    if not found.digest:
        problems.append("whether one is missing can't be told")
    elif not found.snapshots_complete and not found.bad_snapshots:
        problems.append("one is missing, or there is one too many")
    covered = "an unknown revision" if found.covered is None else found.covered
    return _check(
        name, "; ".join(problems), f"{number(len(found.snapshots), 'job')}; they cover records up to {covered}"
    )


class _Scan:
    """Reads the log once, for three checks: its chain, its indexes, and that it folds to what the snapshots say."""

    def __init__(self, source: Source, found: Examination) -> None:
        self._source = source
        self._found = found
        self._damage: ChainError | None = None
        self._times: list[int] = []
        self._index: list[str] = []
        self._problem = ""
        """Why the records do not fold."""
        self._other: set[str] = set()
        """Jobs that are not what their snapshots say."""
        self._whole = Refold(complete=found.origin == 0)
        self._trusted = found.covered is not None and found.snapshots_complete and not found.bad_snapshots
        self._state = State(found.snapshots.values(), found.covered or 0)

    def checks(self) -> Iterator[Check]:
        """Reads it and yields the checks."""
        found = self._found
        found.good = found.origin
        try:
            if found.anchor is None:
                raise ChainError(found.origin + 1, "can't be checked: where the log begins is damaged")
            for line in self._source.lines(found.origin, found.anchor, found.head):
                self._see(line)
        except ChainError as error:
            self._damage = error
        yield self._chain()
        yield self._indexes()
        yield self._folded()

    def _see(self, line: Line) -> None:
        self._times = [*self._times[:1], line.time_us]
        try:
            record = line.record()
        except ValueError as error:
            raise ChainError(line.revision, f"can't be understood: {error}") from error
        subject = record.payload.change_revision if isinstance(record.payload, Applied) else None
        if subject is not None and subject != line.subject:
            self._index.append(f"record {line.revision} stands under change {line.subject}, and is of {subject}")
        else:
            self._look_up(line)
        self._fold(record)

    def _fold(self, record: Record) -> None:
        if self._problem:
            return
        try:
            self._whole.fold(record)
            self._found.good = record.revision
        except ValueError as error:
            self._problem = f"record {record.revision} does not follow from those before it: {error}"
            return
        snapshot = self._found.snapshots.get(record.job)
        if snapshot is not None and snapshot.revision == record.revision:
            if record.job in self._whole.jobs and self._whole.differs(snapshot):
                self._other.add(record.job)
        if self._trusted and record.revision > self._state.revision:
            try:
                self._state.fold(record)
            except (ValueError, KeyError) as error:
                self._trusted = False
                self._problem = f"record {record.revision} does not follow from the snapshots: {error}"

    def _look_up(self, line: Line) -> None:
        if len(self._index) > _SHOWN:
            return
        try:
            if not self._source.indexed(line.kind, line.job, line.subject, line.revision):
                self._index.append(f"record {line.revision} is missing in the index of its kind, {line.kind!r}")
        except ValueError as error:
            self._index += [str(error)] * (_SHOWN + 1)

    def _chain(self) -> Check:
        found = self._found
        count = found.head - found.origin
        if self._damage is not None:
            before = f"; {span(found.origin + 1, self._damage.revision - 1)} are well"
            last = f"; the last one found is {found.head}" if found.log_readable else ""
            words = f"{self._damage}{before if self._damage.revision > found.origin + 1 else ''}{last}"
            return Check("chain", Status.FAILED, words)
        if not count:
            return Check("chain", Status.OK, f"no records after revision {found.origin}")
        times = f"{utc(self._times[0])} to {utc(self._times[-1])}"
        compacted = ""
        if found.origin:
            compacted = "; those before were compacted" if found.origin_known else "; nothing is known of those before"
        words = f"{number(count, 'record')}, {span(found.origin + 1, found.head)}, of {times}{compacted}"
        return Check("chain", Status.OK, words)

    def _indexes(self) -> Check:
        well = "every record is found by them" if self._damage is None else "the records that are well are found"
        return _check("indexes", some(list(dict.fromkeys(self._index))), well)

    def _folded(self) -> Check:
        found, name = self._found, "fold"
        if self._problem:
            return Check(name, Status.FAILED, self._problem)
        if self._other:
            words = f"the snapshots say otherwise than the records: jobs {some(sorted(self._other))}"
            return Check(name, Status.FAILED, words)
        if self._damage is not None:
            return Check(name, Status.LEFT_OUT, "the chain is broken")
        if not self._trusted:
            return Check(name, Status.LEFT_OUT, "the snapshots are damaged")
        different = self._different()
        if not different:
            found.state = self._state.jobs
        own, older = len(self._whole.jobs), len(self._state.jobs) - len(self._whole.jobs)
        words = f"the records make {number(own, 'job')}"
        if self._source.version > 1:
            words += ", the same as the snapshots with the records after them"
        if older > 0:
            words += f"; {older} more began before the first record kept: their snapshots stand for that"
        return _check(name, "; ".join(different), words)

    def _different(self) -> list[str]:
        whole, state, origin = self._whole, self._state.jobs, self._found.origin
        absent = [name for name in whole.jobs if name not in state]
        other = [name for name, job in state.items() if name in whole.jobs and whole.differs(job)]
        older = {name for name, job in state.items() if name in whole.unknown or job.revision <= origin}
        extra = [name for name in state if name not in whole.jobs and name not in older]
        return [
            f"{words}: jobs {some(sorted(names))}"
            for names, words in (
                (absent, "in the records, not in the snapshots"),
                (other, "the snapshots say otherwise than the records"),
                (extra, "in the snapshots, not in the records"),
            )
            if names
        ]


def _retention(found: Examination) -> Check:
    name = "retention"
    if "retention" not in found.notes:
        return Check(name, Status.LEFT_OUT, "no ages are noted: they are counted anew")
    try:
        note = json.loads(found.notes["retention"])
        hours = float(note["uptime"]) / 3_600
        last = max((revision for _, revision in note["marks"]), default=0)
        damage = f"a mark at revision {last}, the last record is {found.head}" if last > found.head else ""
    except UNREADABLE as error:
        hours, damage = 0.0, f"the note of ages can't be read: {error!r}"
    return _check(name, damage, f"ages are noted, over {hours:.1f} h of running")


def _provenance(text: str) -> Check:
    try:
        note = json.loads(text)
        words = f"of store {note['store_id']} at revision {note['revision']}, made {utc(note['made_us'])}"
    except UNREADABLE as error:
        return Check("copy", Status.FAILED, f"the note of what it is a copy of can't be read: {error!r}")
    return Check("copy", Status.OK, words)
