"""Looks at everything in a store's file that can be looked at, and tells what is well and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from livetuned.store import schema
from livetuned.store.findings import Check, Examination, Status, check, number, some, span, utc
from livetuned.store.headmark import HeadMark
from livetuned.store.scan import Scan
from livetuned.store.source import UNREADABLE, Source
from livetuned.store.wal import WalReport, examine_wal

_NOTE = "note "
_MAGIC = b"SQLite format 3\0"


def examine(path: Path, found: Examination) -> Iterator[Check]:
    """Looks at a store's file and yields what it finds, check by check.

    Args:
        path: The file, a private copy, with what belongs beside it.
        found: Filled on the way.
    """
    for finding in _examine(path, found):
        found.checks.append(finding)
        yield finding


def _examine(path: Path, found: Examination) -> Iterator[Check]:
    log = examine_wal(path.with_name(f"{path.name}-wal"))
    damage = _mended_header(path)
    try:
        source = Source(path)
    except ValueError as error:
        yield Check("file", Status.FAILED, f"no store of livetuned can be read in it: {damage or error}")
        if log.bad_frame or log.header_damaged:
            yield _wal(log, Check("", Status.LEFT_OUT, ""), found)
        return
    with closing(source):
        if not damage and source.application != schema.APPLICATION_ID:
            damage = f"application id {source.application:#x} is not that of livetuned"
        if damage and "meta" not in source.tables:
            yield Check("file", Status.FAILED, f"not a store of livetuned: {damage}")
            return
        yield check("file", damage, "SQLite, with livetuned's application id")
        yield _schema(source, found)
        if not found.readable:
            return
        problems = source.integrity()
        yield check("integrity", some(problems), "SQLite finds nothing wrong with the file")
        yield from _contents(source, path, log, found)


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
    return check("schema", f"{words}; {'; '.join(problems)}" if problems else "", words)


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
    yield from Scan(source, found).checks()
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
    return check("meta", "; ".join(problems), well)


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
    return check(
        name, "; ".join(problems), f"{number(len(found.snapshots), 'job')}; they cover records up to {covered}"
    )


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
    return check(name, damage, f"ages are noted, over {hours:.1f} h of running")


def _provenance(text: str) -> Check:
    try:
        note = json.loads(text)
        words = f"of store {note['store_id']} at revision {note['revision']}, made {utc(note['made_us'])}"
    except UNREADABLE as error:
        return Check("copy", Status.FAILED, f"the note of what it is a copy of can't be read: {error!r}")
    return Check("copy", Status.OK, words)
