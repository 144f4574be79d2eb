"""The SQLite file's schema: how it is opened, created, brought up from older versions, and refused."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from livetuned.store import codec
from livetuned.store.interface import StoreDamagedError, StoreError, StoreLockedError, StoreOpenError
from livetuned.store.wal import examine_wal

APPLICATION_ID = 0x4C54554E
"""Marks the file as ours ("LTUN" in the SQLite header)."""

SCHEMA_VERSION = 2

# SQLite's own words (sqlite3ErrStr): Python tells the codes from 3.11 on only.
FULL = "database or disk is full"
_LOCKED = "database is locked"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL) STRICT;
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    time_us  INTEGER NOT NULL,
    job      TEXT NOT NULL,
    kind     TEXT NOT NULL,
    subject  INTEGER NOT NULL, -- of an 'applied': its change; of a 'changed': the job's change before; else 0
    payload  TEXT NOT NULL,
    checksum BLOB NOT NULL     -- chained to the record before
) STRICT;
CREATE INDEX log_applies ON log (job, subject) WHERE kind = 'applied';
CREATE TABLE snapshots (
    job      TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    payload  TEXT NOT NULL,
    checksum BLOB NOT NULL
) STRICT;
"""


def connect(path: Path, *, fsync: bool = True) -> sqlite3.Connection:
    """Opens a store's file alone, creating it (mode 0600) or bringing it to this version's schema if need be.

    Raises:
        StoreLockedError: Another daemon holds it.
        StoreOpenError: Not a file of ours, of a newer schema, or not accessible; it is as it was.
        StoreDamagedError: It is of an older schema and not what was written; it is as it was.
    """
    connection: sqlite3.Connection | None = None
    try:
        # Before SQLite touches it: it would tidy up the write-ahead log of a file that is not ours to touch.
        _check_header(path)
        # SQLite gives its -wal and -shm files the mode of the main file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # Two threads use it, never at the same time: the store's own, and the event loop's for a quick commit.
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA mmap_size = 0")
        version = _version(connection, path)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreOpenError(f"{path}: this file system does not allow SQLite's write-ahead log")
        connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'OFF'}")
        # WAL takes its lock with the first transaction.
        connection.execute("BEGIN IMMEDIATE")
        _bring_up(connection, version, path)
        connection.execute("COMMIT")
    except (OSError, sqlite3.Error, StoreError, UnicodeDecodeError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, StoreError):
            raise
        if _LOCKED in str(error):
            raise StoreLockedError(f"{path} is in use by another livetuned") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreOpenError(f"{path} can't be opened as a store: {reason}") from error
    return connection


def _check_header(path: Path) -> None:
    """Refuses, by the first 100 bytes (SQLite's file format, section 1.3), what is newer than this program."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    # A newer daemon that brought it up and died may have left the header of its schema there only.
    newer = examine_wal(Path(f"{path.resolve()}-wal")).first_page[:100]
    for first in (header, newer):
        if len(first) == 100:
            version, application = struct.unpack(">60xi4xi28x", first)
            if application == APPLICATION_ID:
                _check_version(version, path)


def _check_version(version: int, path: Path) -> None:
    if version > SCHEMA_VERSION:
        raise StoreOpenError(
            f"{path} has schema version {version}, of a newer livetuned; this one knows versions up to {SCHEMA_VERSION}"
        )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Returns the schema's version, 0 if the file is empty, to become a store."""
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        return 0
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreOpenError(f"{path} is a SQLite database, but not one of livetuned")
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    _check_version(version, path)
    if version < 1:
        raise StoreOpenError(f"{path} has schema version {version}; the first one is 1")
    return version


def _bring_up(connection: sqlite3.Connection, version: int, path: Path) -> None:
    """Creates or migrates the schema, within the caller's transaction."""
    if version == 0:
        create(connection, secrets.token_hex(16))
    for step in range(version, SCHEMA_VERSION) if version else ():
        try:
            _MIGRATIONS[step](connection)
        except ValueError as error:
            raise StoreDamagedError(f"{path} (schema {step}): {error}") from error


def create(connection: sqlite3.Connection, store_id: str) -> None:
    """Creates the tables of an empty store, within the caller's transaction."""
    _tables(connection)
    put_meta(connection, "store_id", store_id)
    put_meta(connection, "origin", origin_text(0, bytes.fromhex(store_id)))
    put_meta(connection, "covered", "0")
    put_meta(connection, "snapshots", snapshots_digest({}))


def _tables(connection: sqlite3.Connection) -> None:
    # Not executescript: that commits first.
    for statement in _SCHEMA.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def definitions() -> dict[str, str]:
    """Returns the SQL of the tables and indexes of this version's schema, by name, as SQLite keeps it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        _tables(connection)
        return dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())


def put_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Writes a line of `meta` with its checksum, within the caller's transaction."""
    connection.execute("REPLACE INTO meta VALUES (?, ?, ?)", (key, value, codec.checksum_of(key, value)))


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """Returns a line of `meta`, None if there is none.

    Raises:
        ValueError: It does not keep its checksum.
    """
    row = connection.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    if row[1] != codec.checksum_of(key, row[0]):
        raise ValueError(f"meta line {key!r} does not keep its checksum")
    return str(row[0])


def origin_text(revision: int, checksum: bytes) -> str:
    """Returns the text of the `origin` line: the last record that is not kept, and its checksum, to chain on from."""
    return f"{revision} {checksum.hex()}"


def snapshots_digest(checksums: dict[str, bytes]) -> str:
    """Returns the text of the `snapshots` line: one checksum over all snapshots, so that a missing one is noticed."""
    return codec.checksum_of(*(f"{job} {checksums[job].hex()}" for job in sorted(checksums))).hex()


def _from_1(connection: sqlite3.Connection) -> None:
    """Schema 1 had no snapshots and no compaction; its checksums left out `subject` and began with the store's id.

    Raises:
        ValueError: A record is not what was written.
    """
    (store_id,) = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    connection.execute("ALTER TABLE log RENAME TO log_1")
    for index in ("log_by_job", "log_changes", "log_applies"):
        connection.execute(f"DROP INDEX {index}")
    connection.execute("DROP TABLE meta")
    create(connection, store_id)
    old = new = bytes.fromhex(store_id)
    last_change: dict[str, int] = {}
    rows = connection.execute("SELECT revision, time_us, job, kind, payload, checksum FROM log_1 ORDER BY revision")
    for number, (revision, time_us, job, kind, payload, checksum) in enumerate(rows.fetchall(), 1):
        old = codec.checksum_v1(old, revision, time_us, job, kind, payload)
        if revision != number or checksum != old:
            raise ValueError(f"record {number} is missing or does not keep its checksum")
        # Its own column was not covered by the checksum.
        link = json.loads(payload)["change_revision"] if kind == "applied" else 0
        if kind == "changed":
            link, last_change[job] = last_change.get(job, 0), revision
        new = codec.checksum(new, revision, time_us, job, kind, link, payload)
        connection.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", (revision, time_us, job, kind, link, payload, new)
        )
    connection.execute("DROP TABLE log_1")


_MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1}
"""What brings a schema to the next version, by the version it starts from."""
