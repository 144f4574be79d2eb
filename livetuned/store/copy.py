"""Writes a store's file from its beginning to its end: the copy that a backup is, a restore makes, or a doctor saves.

Rows in, rows out: they are chained anew, from an identity of the new file's own, so that nobody takes it for the store
that it is a copy of.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from livetuned.domain.job import Job
from livetuned.domain.records import Applied, Changed, Record, Removed
from livetuned.store import codec, schema
from livetuned.store.interface import StoreError, StoreFullError

COPY_NOTE = "copy"
"""The note that tells of what a store is a copy."""

_Row = tuple[int, int, str, str, int, str, bytes]


class CopyError(StoreError):
    """What was to be copied is no store's content."""


class WriteError(StoreError):
    """The copy can't be written."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as its two ends know it: text, with no checksum yet."""

    revision: int
    time_us: int
    job: str
    kind: str
    payload: str


class Chain:
    """Gives records their places in a new log.

    Args:
        identity: The store's identity, 32 hexadecimal digits.
        origin: The revision before the first record.
    """

    def __init__(self, identity: str, origin: int) -> None:
        self.revision = origin
        """The last record's."""
        self._checksum = bytes.fromhex(identity)
        self._changes: dict[str, int] = {}

    def rows(self, records: Iterable[Raw]) -> Iterator[_Row]:
        """Yields the rows of records.

        Raises:
            ValueError: One is not the next one, or can't be understood.
        """
        for raw in records:
            if raw.revision != self.revision + 1:
                raise ValueError(f"record {self.revision + 1} is missing, {raw.revision} came")
            record = Record(raw.revision, raw.time_us, raw.job, codec.decode(raw.kind, raw.payload))
            subject = self._subject(record)
            self._checksum = codec.checksum(
                self._checksum, raw.revision, raw.time_us, raw.job, raw.kind, subject, raw.payload
            )
            self.revision = raw.revision
            yield raw.revision, raw.time_us, raw.job, raw.kind, subject, raw.payload, self._checksum

    def _subject(self, record: Record) -> int:
        if isinstance(record.payload, Applied):
            return record.payload.change_revision
        if isinstance(record.payload, Changed):
            before = self._changes.get(record.job, 0)
            self._changes[record.job] = record.revision
            return before
        if isinstance(record.payload, Removed):
            # A new job of the name begins a new history.
            self._changes.pop(record.job, None)
        return 0


class StoreWriter:
    """A store's file that is being written. It is a store once `finish` returned and the file is on disk.

    Args:
        path: The file, empty.
        origin: The revision before the first record.

    Raises:
        WriteError: It can't be written.
    """

    def __init__(self, path: Path, origin: int) -> None:
        self.store_id = secrets.token_hex(16)
        self._path = path
        self._origin = origin
        self._chain = Chain(self.store_id, origin)
        # Nobody else knows of the file: no locks, which some file systems do not have, and no journal; and what breaks
        # off is thrown away, so that one flush at the end is enough.
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        try:
            for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                self._connection.execute(f"PRAGMA {setting}")
            self._connection.execute("BEGIN")
            schema.create(self._connection, self.store_id)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file; it is of no use unless it was finished."""
        self._connection.close()

    @property
    def revision(self) -> int:
        """Revision of the last record written."""
        return self._chain.revision

    @property
    def records(self) -> int:
        """How many records were written."""
        return self._chain.revision - self._origin

    def add(self, records: Iterable[Raw]) -> None:
        """Writes the next records.

        Raises:
            CopyError: One is not the next one, or can't be understood.
            WriteError: It can't be written.
            StoreFullError: No room.
        """
        try:
            self._connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", self._chain.rows(records))
        except (ValueError, OverflowError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def finish(self, jobs: Iterable[Job], notes: Mapping[str, str]) -> None:
        """Writes the jobs and what is noted, and ends the file.

        Args:
            jobs: As of the last record.
            notes: Text by key.

        Raises:
            CopyError: A job is of a later revision, or comes twice.
            WriteError: It can't be written.
            StoreFullError: No room.
        """
        head, checksums, connection = self._chain.revision, {}, self._connection
        try:
            for job in jobs:
                if job.revision > head:
                    raise ValueError(f"job {job.name!r} is of revision {job.revision}, the last record is {head}")
                text = codec.encode_job(job)
                checksums[job.name] = codec.checksum_of(job.name, str(job.revision), text)
                row = (job.name, job.revision, text, checksums[job.name])
                connection.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?)", row)
            beginning = schema.origin_text(self._origin, bytes.fromhex(self.store_id))
            schema.put_meta(connection, "origin", beginning)
            schema.put_meta(connection, "covered", str(head))
            schema.put_meta(connection, "snapshots", schema.snapshots_digest(checksums))
            for key, note in notes.items():
                schema.put_meta(connection, f"note {key}", note)
            connection.execute("COMMIT")
        except (ValueError, OverflowError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        if schema.FULL in str(error):
            return StoreFullError(f"{self._path}: no room to write ({error})")
        written = isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError)
        return WriteError(f"{self._path}: {error}") if written else CopyError(f"what was to be copied: {error}")


def copy_note(store_id: str, revision: int, now_us: int) -> dict[str, str]:
    """Returns the note that tells of what a store is a copy, by its key.

    Args:
        store_id: The store that was copied.
        revision: Its revision.
        now_us: The wall time, microseconds since the Unix epoch.
    """
    return {COPY_NOTE: json.dumps({"store_id": store_id, "revision": revision, "made_us": now_us})}
