"""The embedded store: one SQLite file, one connection, one thread that uses it. The only place with SQL."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from livetuned.domain.records import Applied, Draft, Record
from livetuned.store import codec
from livetuned.store.interface import (
    Store,
    StoreDamagedError,
    StoreFailedError,
    StoreFullError,
    StoreLockedError,
    StoreOpenError,
)

T = TypeVar("T")

APPLICATION_ID = 0x4C54554E
"""Marks the file as ours ("LTUN" in the SQLite header)."""

SCHEMA_VERSION = 1

_PAGE = 1_000

# SQLite's own words (sqlite3ErrStr): Python tells the codes from 3.11 on only.
_FULL = "database or disk is full"
_LOCKED = "database is locked"

_SCHEMA = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    time_us  INTEGER NOT NULL,
    job      TEXT NOT NULL,
    kind     TEXT NOT NULL,
    subject  INTEGER NOT NULL, -- of an acknowledgement: the change's revision; else 0
    payload  TEXT NOT NULL,
    checksum BLOB NOT NULL
) STRICT;
CREATE INDEX log_by_job ON log (job, revision);
CREATE INDEX log_changes ON log (job, revision) WHERE kind = 'changed';
CREATE INDEX log_applies ON log (job, subject) WHERE kind = 'applied';
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class SqliteStore(Store):
    """A `Store` in a SQLite file in WAL mode with synchronous=FULL: a commit is on disk when it returns.

    The connection is exclusive: SQLite before 3.51.3 may corrupt a WAL that two connections write, and a second daemon
    on the same file must be noticed.

    Args:
        path: The file; created, with mode 0600, if it does not exist. Its folder must exist.
        fsync: False gives up durability. Only for benchmarks that measure what fsync costs.

    Raises:
        StoreLockedError: Another daemon holds the file.
        StoreOpenError: Not a file of ours, of a newer schema, or not accessible.
        StoreDamagedError: The last record does not keep its checksum, or can't be read.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._followers: list[asyncio.Queue[list[Record]]] = []
        self._closed = self._failed = False
        try:
            self._connection = self._thread.submit(_open, path, fsync).result()
            self._store_id, self._head, self._last_checksum = self._thread.submit(_recover, self._connection).result()
            # The thread's own count: it may be ahead of `_head`, which the event loop moves when it learns of a commit.
            self._written = self._head
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def store_id(self) -> str:
        return self._store_id

    @property
    def head(self) -> int:
        return self._head

    async def append(self, drafts: Sequence[Draft]) -> list[Record]:
        if self._failed:
            raise StoreFailedError(f"{self._path} failed earlier and must be opened anew")
        records = await self._call(lambda: self._append(drafts))
        self._head = records[-1].revision if records else self._head
        for follower in self._followers:
            follower.put_nowait(records)
        return records

    def _append(self, drafts: Sequence[Draft]) -> list[Record]:
        records, rows = [], []
        revision, last = self._written, self._last_checksum
        for draft in drafts:
            revision += 1
            payload = draft.payload
            kind, text = codec.kind_of(payload), codec.encode(payload)
            last = codec.checksum(last, revision, draft.time_us, draft.job, kind, text)
            subject = payload.change_revision if isinstance(payload, Applied) else 0
            rows.append((revision, draft.time_us, draft.job, kind, subject, text, last))
            records.append(Record(revision, draft.time_us, draft.job, payload))
        cursor = self._connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            cursor.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(error)
        self._written, self._last_checksum = revision, last
        return records

    def _roll_back(self, error: sqlite3.Error) -> None:
        # A full disk is clean: SQLite rolls back, and the next commit may succeed. After anything else, a failed fsync
        # above all, what is on disk is unknown until the file is opened and verified anew.
        full = _FULL in str(error)
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            full = False
        if full:
            raise StoreFullError(f"{self._path}: no room for more records ({error})") from error
        self._failed = True
        raise StoreFailedError(f"{self._path}: commit failed ({error})") from error

    async def follow(self, after: int) -> AsyncIterator[list[Record]]:
        queue: asyncio.Queue[list[Record]] = asyncio.Queue()
        self._followers.append(queue)
        try:
            target = self._head
            while after < target:
                page = await self.read(after, _PAGE)
                after = page[-1].revision
                yield page
            while True:
                batch = [record for record in await queue.get() if record.revision > after]
                if batch:
                    after = batch[-1].revision
                    yield batch
        finally:
            self._followers.remove(queue)

    async def read(self, after: int, limit: int, job: str = "") -> list[Record]:
        if job:
            sql = "SELECT * FROM log WHERE job = ? AND revision > ? ORDER BY revision LIMIT ?"
            return await self._select(sql, (job, after, limit))
        return await self._select("SELECT * FROM log WHERE revision > ? ORDER BY revision LIMIT ?", (after, limit))

    async def changes(self, job: str, before: int, limit: int) -> list[Record]:
        newest_first = await self._select(
            "SELECT * FROM log WHERE job = ? AND kind = 'changed' AND revision < ? ORDER BY revision DESC LIMIT ?",
            (job, before, limit),
        )
        return newest_first[::-1]

    async def applies(self, job: str, first: int, last: int) -> list[Record]:
        return await self._select(
            "SELECT * FROM log WHERE kind = 'applied' AND job = ? AND subject BETWEEN ? AND ? ORDER BY revision",
            (job, first, last),
        )

    async def _select(self, sql: str, parameters: tuple[object, ...]) -> list[Record]:
        return await self._call(lambda: _records(self._connection.execute(sql, parameters).fetchall(), self._path))

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.DatabaseError as error:
            raise StoreDamagedError(f"{self._path}: {error}") from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._thread.shutdown()


def _open(path: Path, fsync: bool) -> sqlite3.Connection:
    connection: sqlite3.Connection | None = None
    try:
        # SQLite gives its -wal and -shm files the mode of the main file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA mmap_size = 0")
        # Before anything is written: what is not ours must stay as it is.
        empty = _check_schema(connection, path)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreOpenError(f"{path}: this file system does not allow SQLite's write-ahead log")
        connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'OFF'}")
        # WAL takes its lock with the first transaction.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        if empty:
            _create_schema(connection)
    except (OSError, sqlite3.Error, StoreOpenError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, StoreOpenError):
            raise
        if _LOCKED in str(error):
            raise StoreLockedError(f"{path} is in use by another livetuned") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreOpenError(f"{path} can't be opened as a store: {reason}") from error
    return connection


def _create_schema(connection: sqlite3.Connection) -> None:
    connection.executescript(_SCHEMA)
    connection.execute("INSERT INTO meta VALUES ('store_id', ?)", (secrets.token_hex(16),))
    connection.execute("COMMIT")


def _check_schema(connection: sqlite3.Connection, path: Path) -> bool:
    """Returns whether the file is empty, to become a store."""
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreOpenError(f"{path} is a SQLite database, but not one of livetuned")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise StoreOpenError(f"{path} has schema version {version}; this livetuned knows version {SCHEMA_VERSION}")
    return False


def _recover(connection: sqlite3.Connection) -> tuple[str, int, bytes]:
    """Verifies the whole chain and returns store id, head and last checksum."""
    path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
    try:
        (store_id,) = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
        revision, last = 0, bytes.fromhex(store_id)
        rows = connection.execute("SELECT revision, time_us, job, kind, payload, checksum FROM log ORDER BY revision")
        for row_revision, time_us, job, kind, payload, stored in rows:
            revision += 1
            last = codec.checksum(last, revision, time_us, job, kind, payload)
            if row_revision != revision or stored != last:
                raise StoreDamagedError(f"{path}: record {revision} is missing or does not keep its checksum")
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise StoreDamagedError(f"{path}: {error}") from error
    return store_id, revision, last


def _records(rows: list[tuple[int, int, str, str, int, str, bytes]], path: Path) -> list[Record]:
    try:
        return [
            Record(revision, time_us, job, codec.decode(kind, text))
            for revision, time_us, job, kind, _, text, _ in rows
        ]
    except ValueError as error:
        raise StoreDamagedError(f"{path}: {error}") from error
