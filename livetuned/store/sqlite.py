"""The embedded store: one SQLite file, one connection, one thread that uses it. SQL is here and in `schema` only."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

from livetuned.domain.job import Job
from livetuned.domain.records import Applied, Changed, Draft, Record, Removed
from livetuned.store import codec, schema
from livetuned.store.headmark import HeadMark
from livetuned.store.interface import (
    CompactedError,
    Loaded,
    Store,
    StoreDamagedError,
    StoreFailedError,
    StoreFullError,
)

T = TypeVar("T")
_Row = tuple[int, int, str, str, int, str, bytes, bytes | None]
"""A line of the log, and the checksum of the line before it, if that is there."""

VERIFIED_AT_OPEN = 20_000
"""How many of the newest records are checked before a store is served, a count; `verify` looks at the older ones."""

_LOG_KEPT_BYTES = 256 * 1024 * 1024
"""Largest write-ahead log that is put back when a damaged store is refused, in bytes; it is a few MB as a rule."""

_PAGE = 1_000
_WINDOW = 2_000
"""Most records that one turn of the thread looks at, a count: commits wait for it."""

_SLOW_COMMIT_SECONDS = 0.005
"""A commit on the event loop that took longer tells that the disk is slow, in seconds."""
_SLOW_REST_SECONDS = 10.0
"""How long then no commit is made on the event loop, in seconds."""

_INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)"
_BY_INDEX = (
    "SELECT 1 FROM log INDEXED BY log_applies WHERE kind = 'applied' AND job = ? AND subject = ? AND revision = ?"
)
_LINES = (
    "SELECT l.revision, l.time_us, l.job, l.kind, l.subject, l.payload, l.checksum, p.checksum "
    "FROM log l LEFT JOIN log p ON p.revision = l.revision - 1 "
)


class SqliteStore(Store):
    """A `Store` in a SQLite file in WAL mode with synchronous=FULL: a commit is on disk when it returns.

    The connection is exclusive: SQLite before 3.51.3 may corrupt a WAL that two connections write, and a second daemon
    on the same file must be noticed.

    Args:
        path: The file; created, with mode 0600, if it does not exist. Its folder must exist.
        fsync: False gives up durability. Only for benchmarks that measure what fsync costs.
        verified_at_open: How many of the newest records are checked now.

    Raises:
        StoreLockedError: Another daemon holds the file.
        StoreOpenError: Not a file of ours, of a newer schema, or not accessible.
        StoreDamagedError: What was looked at is not what was written, or what was acknowledged is missing.
    """

    def __init__(self, path: Path, *, fsync: bool = True, verified_at_open: int = VERIFIED_AT_OPEN) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._followers: list[Callable[[list[Record]], None]] = []
        self._closed = self._failed = False
        self._under_way = 0
        """What the thread has still to do."""
        self._slow_until = 0.0
        self._last_change: dict[str, int] = {}
        self._mark = HeadMark(path)
        self._log = path.with_name(path.name + "-wal")
        log_before = self._read_log()
        try:
            self._check_not_emptied()
            self._connection = self._thread.submit(schema.connect, path, fsync=fsync).result()
            try:
                self._thread.submit(self._recover, verified_at_open).result()
            except BaseException:
                self._thread.submit(self._connection.close).result()
                raise
        except BaseException as error:
            self._thread.shutdown()
            if isinstance(error, StoreDamagedError) and log_before:
                # SQLite moved what it could read of its log into the file, and removed it: what it could not read is
                # what somebody will want to look at. To replay the same log once more changes nothing.
                self._log.write_bytes(log_before)
            raise

    # -- opening --

    def _read_log(self) -> bytes:
        try:
            return self._log.read_bytes() if self._log.stat().st_size <= _LOG_KEPT_BYTES else b""
        except OSError:
            return b""

    def _check_not_emptied(self) -> None:
        """Refuses to begin a new store where one stood whose file was emptied or taken away."""
        acknowledged = self._mark.read()
        if acknowledged and not (self._path.exists() and self._path.stat().st_size):
            raise StoreDamagedError(
                f"{self._path} is empty or gone, and {acknowledged} records were acknowledged in it; "
                f"to begin a new store on purpose, remove {self._mark.path.name}"
            )

    def _recover(self, verified_at_open: int) -> None:
        """Reads where the store stands, and checks the end of the log and everything that stands for its beginning."""
        try:
            # A key that its index has lost reads as if nothing had ever been noted under it.
            if self._connection.execute("PRAGMA integrity_check('meta')").fetchone()[0] != "ok":
                raise ValueError("the notes are damaged")
            self._store_id = self._meta("store_id")
            revision, checksum = self._meta("origin").split()
            self._origin, self._origin_checksum = int(revision), bytes.fromhex(checksum)
            self._covered = int(self._meta("covered"))
            rows = self._connection.execute("SELECT job, checksum FROM snapshots").fetchall()
            self._snapshots = dict(rows)
            if schema.snapshots_digest(self._snapshots) != self._meta("snapshots"):
                raise ValueError("a snapshot is missing, or one too many")
            (last,) = self._connection.execute("SELECT max(revision) FROM log").fetchone()
            # The thread's own count: it may be ahead of `_head`, which the event loop moves when it learns of a commit.
            self._head = self._written = self._origin if last is None else last
            self._verified = max(self._origin, min(self._covered, self._head - verified_at_open))
            if self._covered > self._head:
                raise ValueError(f"records up to {self._covered} were stored, the last one found is {self._head}")
            self._loaded: Loaded | None = self._read_snapshots()
            self._last_change = {job.name: job.changed for job in self._loaded.jobs}
            for number, job, kind in self._check_range(self._verified, self._head):
                if kind in ("changed", "removed"):
                    self._last_change[job] = number if kind == "changed" else 0
            self._last_checksum = self._checksum_at(self._head)
        except (sqlite3.Error, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreDamagedError(f"{self._path}: {error}") from error
        acknowledged = self._mark.read(self._store_id)
        if acknowledged > self._head:
            raise StoreDamagedError(
                f"{self._path}: records up to {acknowledged} were acknowledged, the last one found is {self._head}"
            )
        self._mark.write(self._store_id, self._head)

    def _meta(self, key: str) -> str:
        value = schema.get_meta(self._connection, key)
        if value is None:
            raise ValueError(f"meta line {key!r} is missing")
        return value

    def _checksum_at(self, revision: int) -> bytes:
        if revision == self._origin:
            return self._origin_checksum
        row = self._connection.execute("SELECT checksum FROM log WHERE revision = ?", (revision,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise ValueError(f"record {revision} is missing")
        return row[0]

    def _check_range(self, after: int, last: int) -> Iterator[tuple[int, str, str]]:
        """Checks that the records after one, up to another, are all there, intact, and found by the index.

        Yields:
            Revision, job and kind of each.

        Raises:
            ValueError: They are not.
        """
        previous, expected = self._checksum_at(after), after
        rows = self._connection.execute(
            "SELECT revision, time_us, job, kind, subject, payload, checksum FROM log "
            "WHERE revision > ? AND revision <= ? ORDER BY revision",
            (after, last),
        )
        for revision, time_us, job, kind, subject, payload, checksum in rows:
            expected += 1
            previous = codec.checksum(previous, revision, time_us, job, kind, subject, payload)
            if revision != expected or checksum != previous:
                raise ValueError(f"record {expected} is missing or does not keep its checksum")
            if kind == "applied" and not self._connection.execute(_BY_INDEX, (job, subject, revision)).fetchone():
                raise ValueError(f"record {revision} is missing in the index of acknowledgements")
            yield revision, job, kind
        if expected != last:
            raise ValueError(f"record {expected + 1} is missing")

    # -- where it stands --

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def head(self) -> int:
        return self._head

    @property
    def compacted(self) -> int:
        return self._origin

    @property
    def verified(self) -> int:
        return self._verified

    @property
    def size_bytes(self) -> int:
        files = (self._path, self._log)
        return sum(file.stat().st_size for file in files if file.exists())

    # -- writing --

    async def append(self, drafts: Sequence[Draft]) -> list[Record]:
        if not drafts:
            return []
        return self._deliver(await self._call(lambda: self._append(drafts)))

    @property
    def quick(self) -> bool:
        return not self._under_way and monotonic() >= self._slow_until

    def append_now(self, drafts: Sequence[Draft]) -> list[Record]:
        begun = monotonic()
        records = self._append(drafts)
        if monotonic() - begun > _SLOW_COMMIT_SECONDS:
            self._slow_until = monotonic() + _SLOW_REST_SECONDS
        return self._deliver(records)

    def _deliver(self, records: list[Record]) -> list[Record]:
        self._head = records[-1].revision
        for follower in self._followers:
            follower(records)
        return records

    def _append(self, drafts: Sequence[Draft]) -> list[Record]:
        records, rows = [], []
        revision, last = self._written, self._last_checksum
        changed: dict[str, int] = {}
        for draft in drafts:
            revision += 1
            payload, job = draft.payload, draft.job
            kind, text, subject = codec.kind_of(payload), codec.encode(payload), 0
            if isinstance(payload, Applied):
                subject = payload.change_revision
            elif isinstance(payload, Changed):
                subject = changed[job] if job in changed else self._last_change.get(job, 0)
                changed[job] = revision
            elif isinstance(payload, Removed):
                changed[job] = 0
            last = codec.checksum(last, revision, draft.time_us, job, kind, subject, text)
            rows.append((revision, draft.time_us, job, kind, subject, text, last))
            records.append(Record(revision, draft.time_us, job, payload))
        if len(rows) == 1:  # a transaction by itself
            self._transact(lambda: self._connection.execute(_INSERT, rows[0]), single=True)
        else:
            self._transact(lambda: self._connection.executemany(_INSERT, rows))
        self._written, self._last_checksum = revision, last
        self._last_change.update(changed)
        self._mark.write(self._store_id, revision)
        return records

    def _transact(self, work: Callable[[], object], *, single: bool = False) -> None:
        """Does something in a transaction of its own: all of it or, if it raises, nothing. `single`: one statement."""
        if self._failed:
            raise StoreFailedError(f"{self._path} failed earlier and must be opened anew")
        try:
            if single:
                work()
                return
            self._connection.execute("BEGIN IMMEDIATE")
            work()
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(error)

    def _roll_back(self, error: sqlite3.Error) -> None:
        # A full disk is clean: SQLite rolls back, and the next commit may succeed. After anything else, a failed fsync
        # above all, what is on disk is unknown until the file is opened and verified anew.
        full = schema.FULL in str(error)
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            full = False
        if full:
            raise StoreFullError(f"{self._path}: no room to write ({error})") from error
        self._failed = True
        raise StoreFailedError(f"{self._path}: commit failed ({error})") from error

    async def save(self, jobs: Sequence[Job], removed: Sequence[str], covered: int) -> None:
        await self._call(lambda: self._save(jobs, removed, covered))

    def _save(self, jobs: Sequence[Job], removed: Sequence[str], covered: int) -> None:
        rows = []
        for job in jobs:
            text = codec.encode_job(job)
            rows.append((job.name, job.revision, text, codec.checksum_of(job.name, str(job.revision), text)))
        snapshots = {name: checksum for name, checksum in self._snapshots.items() if name not in removed}
        snapshots.update((name, checksum) for name, _, _, checksum in rows)

        def write() -> None:
            self._connection.executemany("DELETE FROM snapshots WHERE job = ?", [(name,) for name in removed])
            self._connection.executemany("REPLACE INTO snapshots VALUES (?, ?, ?, ?)", rows)
            schema.put_meta(self._connection, "snapshots", schema.snapshots_digest(snapshots))
            schema.put_meta(self._connection, "covered", str(covered))

        self._transact(write)
        self._snapshots, self._covered = snapshots, covered

    async def compact(self, through: int) -> None:
        if not 0 <= through <= self._covered:
            raise ValueError(f"revision {through} is not covered by snapshots: they cover {self._covered}")
        while self._origin < through:
            target = min(self._origin + _WINDOW, through)
            await self._call(partial(self._compact, target))

    def _compact(self, through: int) -> None:
        try:
            checksum = self._checksum_at(through)
        except ValueError as error:
            raise StoreDamagedError(f"{self._path}: {error}") from error

        def write() -> None:
            self._connection.execute("DELETE FROM log WHERE revision <= ?", (through,))
            schema.put_meta(self._connection, "origin", schema.origin_text(through, checksum))

        self._transact(write)
        self._origin, self._origin_checksum = through, checksum

    async def put_note(self, key: str, text: str) -> None:
        await self._call(lambda: self._transact(lambda: schema.put_meta(self._connection, f"note {key}", text)))

    # -- reading --

    async def note(self, key: str) -> str:
        return await self._reading(lambda: schema.get_meta(self._connection, f"note {key}") or "")

    async def load(self) -> Loaded:
        return await self._reading(self._load)

    def _load(self) -> Loaded:
        loaded, self._loaded = self._loaded, None  # read when the store was opened; not to be held for ever
        if loaded is not None and loaded.covered == self._covered:
            return loaded
        return self._read_snapshots()

    def _read_snapshots(self) -> Loaded:
        jobs = []
        for name, revision, text, checksum in self._connection.execute("SELECT * FROM snapshots ORDER BY job"):
            if checksum != codec.checksum_of(name, str(revision), text) or self._snapshots.get(name) != checksum:
                raise ValueError(f"the snapshot of job {name!r} does not keep its checksum")
            jobs.append(codec.decode_job(text))
        if len(jobs) != len(self._snapshots):
            raise ValueError("a snapshot is missing")
        return Loaded(jobs, self._covered)

    async def verify(self, after: int, limit: int) -> int:
        def check() -> int:
            # What was compacted meanwhile need not be looked at.
            first = max(after, self._origin)
            last = min(first + limit, self._written)
            for _ in self._check_range(first, last):
                pass
            return last

        return await self._reading(check)

    async def follow(self, after: int, deliver: Callable[[list[Record]], None]) -> None:
        while after < self._head:
            page = [record for record in await self.read(after, _PAGE) if record.revision <= self._head]
            after = page[-1].revision
            deliver(page)
        # Nothing is awaited between the last look at the head and this line: no batch is left out.
        self._followers.append(deliver)
        try:
            await asyncio.Event().wait()
        finally:
            self._followers.remove(deliver)

    async def read(self, after: int, limit: int, job: str = "") -> list[Record]:
        found: list[Record] = []
        while len(found) < limit:
            window = _WINDOW if job else min(limit - len(found), _WINDOW)
            records, after, more = await self._reading(partial(self._read, after, window, job))
            found += records
            if not more:
                break
        return found[:limit]

    def _read(self, after: int, window: int, job: str) -> tuple[list[Record], int, bool]:
        """Returns the job's records in a window of the log, the window's last revision, and whether more follow it.

        The window is read whole and each record of it checked: an index could leave one out unnoticed.
        """
        if after < self._origin:
            raise CompactedError(f"records up to {self._origin} are not kept any more")
        last = min(after + window, self._written)
        rows: list[_Row] = self._connection.execute(
            _LINES + "WHERE l.revision > ? AND l.revision <= ? ORDER BY l.revision", (after, last)
        ).fetchall()
        if [row[0] for row in rows] != list(range(after + 1, max(after, last) + 1)):
            raise ValueError(f"a record between {after + 1} and {last} is missing")
        return self._records(rows, job), max(after, last), last < self._written

    async def changes(self, job: str, before: int, limit: int) -> list[Record]:
        found: list[Record] = []
        end = min(before, self._written + 1)
        while len(found) < limit and end > self._origin + 1:
            turn = partial(self._changes, job, end, limit - len(found)) if job else partial(self._any_changes, end)
            records, end = await self._reading(turn)
            found = records + found
        return found[-limit:]

    def _changes(self, job: str, end: int, limit: int) -> tuple[list[Record], int]:
        """Returns changes of a job before a revision, and the revision before which to go on.

        Each change names the one before it; the newest is named by the one that follows it, if that is where the page
        ends, or it is found by going back through the log.
        """
        newest = self._last_change.get(job, 0)
        if newest >= end:
            following = self._line(end)
            if following is not None and following[2:4] == (job, "changed"):
                self._records([following], job)  # what it says of the change before it is what was written
                newest = following[4]
            else:
                first = max(self._origin, end - 1 - _WINDOW)
                window, _, _ = self._read(first, end - 1 - first, job)
                newest = max((record.revision for record in window if isinstance(record.payload, Changed)), default=0)
                if not newest:
                    return [], first + 1
        rows: list[_Row] = []
        while newest > self._origin and len(rows) < min(limit, _WINDOW):
            row = self._line(newest)
            if row is None or row[2:4] != (job, "changed") or row[4] >= newest:
                raise ValueError(f"change {newest} of job {job!r} is missing")
            rows.append(row)
            newest = row[4]
        records = self._records(rows[::-1], job)
        return records, records[0].revision if records and newest > self._origin else 0

    def _line(self, revision: int) -> _Row | None:
        row: _Row | None = self._connection.execute(_LINES + "WHERE l.revision = ?", (revision,)).fetchone()
        return row

    def _any_changes(self, end: int) -> tuple[list[Record], int]:
        """Returns the changes of all jobs in a window before a revision, and the window's begin."""
        after = max(self._origin, end - 1 - _WINDOW)
        records, _, _ = self._read(after, end - 1 - after, "")
        return [record for record in records if isinstance(record.payload, Changed)], after + 1

    async def applies(self, job: str, first: int, last: int) -> list[Record]:
        sql = _LINES + "WHERE l.kind = 'applied' AND l.job = ? AND l.subject BETWEEN ? AND ? ORDER BY l.revision"
        return await self._reading(
            lambda: self._records(self._connection.execute(sql, (job, first, last)).fetchall(), job)
        )

    def _records(self, rows: Iterable[_Row], job: str) -> list[Record]:
        """Checks lines of the log and returns those of one job, or (``""``) all, as records."""
        records = []
        for revision, time_us, row_job, kind, subject, text, checksum, chained_to in rows:
            previous = self._origin_checksum if revision == self._origin + 1 else chained_to
            if previous is None or checksum != codec.checksum(
                previous, revision, time_us, row_job, kind, subject, text
            ):
                raise ValueError(f"record {revision} does not keep its checksum")
            if not job or row_job == job:
                records.append(Record(revision, time_us, row_job, codec.decode(kind, text)))
        return records

    async def _reading(self, work: Callable[[], T]) -> T:
        def read() -> T:
            try:
                return work()
            except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise StoreDamagedError(f"{self._path}: {error}") from error

        return await self._call(read)

    async def _call(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future = self._thread.submit(work)
        # Counted until the thread is done, even if whoever waits is cancelled: `append_now` must not meet it.
        self._under_way += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self._under_way -= 1

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._call(self._connection.close)
            self._thread.shutdown()
            self._mark.close()
