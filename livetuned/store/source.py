"""A store's file as it is read row by row, of any schema and in any condition: every row is checked on its own.

Only ever given a private copy: SQLite may write to what it opens.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livetuned.domain.job import Job
from livetuned.domain.records import Record
from livetuned.store import codec, schema

UNREADABLE = (sqlite3.Error, ValueError, TypeError, AttributeError, OverflowError, KeyError)
"""What reading a damaged file may raise."""


class ChainError(ValueError):
    """The chain of records ends before the log does.

    Args:
        revision: The first record that can't be trusted.
        why: What is wrong with it, as a sentence without subject.
    """

    def __init__(self, revision: int, why: str) -> None:
        super().__init__(f"record {revision} {why}")
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Line:
    """A record as it is stored."""

    revision: int
    time_us: int
    job: str
    kind: str
    subject: int
    payload: str

    def record(self) -> Record:
        """Returns what it says.

        Raises:
            ValueError: It is of an unknown kind, or can't be read.
        """
        return Record(self.revision, self.time_us, self.job, codec.decode(self.kind, self.payload))


class Source:
    """A store's file.

    Args:
        path: The file, a private copy.

    Attributes:
        stored_version: Its schema's version as the header tells it; not necessarily one that is known.
        version: The schema as which it is read: the same, or what its tables look like if the header tells nonsense.
        application: The application id in its header.
        tables: Names of its tables.
        altered: Names of tables and indexes whose definition is not what it was; they are read as they were.

    Raises:
        ValueError: SQLite can't read it, or it has no table `log`.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        # A damaged letter costs its row, not the whole reading.
        self._connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            # A database may come from anywhere: what it defines is not run. Damaged definitions are read, to be mended.
            for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "writable_schema = ON"):
                self._connection.execute(f"PRAGMA {setting}")
            self.stored_version = self._number("PRAGMA user_version")
            self.application = self._number("PRAGMA application_id")
            defined = {
                str(name): (kind, sql) for name, kind, sql in self._rows("SELECT name, type, sql FROM sqlite_schema")
            }
            self.tables = {name for name, (kind, _) in defined.items() if kind == "table"}
            guess = 2 if "snapshots" in self.tables else 1
            self.version = self.stored_version if self.stored_version > 0 else guess
            if "log" not in self.tables:
                raise ValueError("it has no table 'log'")
            self.altered = self._mend({name: sql for name, (_, sql) in defined.items() if sql is not None})
            self._connection.execute("PRAGMA writable_schema = RESET")
        except UNREADABLE as error:
            self.close()
            raise ValueError(str(error)) from error

    def _mend(self, defined: dict[str, object]) -> list[str]:
        """Makes the definitions of a copy of the current schema what they were, and returns which ones were not."""
        if self.version != schema.SCHEMA_VERSION:
            return []
        right = schema.definitions()
        altered = [name for name, sql in defined.items() if right.get(name) != sql]
        for name in altered:
            if name in right:
                self._connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (right[name], name))
        return altered

    def close(self) -> None:
        """Closes it."""
        self._connection.close()

    def _number(self, sql: str) -> int:
        (number,) = self._connection.execute(sql).fetchone()
        return 0 if number is None else int(number)

    def integrity(self) -> list[str]:
        """Returns what SQLite finds wrong with the file, at most a hundred findings; none if all is well."""
        try:
            rows = self._connection.execute("PRAGMA integrity_check").fetchall()
        except UNREADABLE as error:
            return [str(error)]
        return [str(text) for (text,) in rows if text != "ok"]

    def meta(self) -> tuple[dict[str, str], list[str]]:
        """Returns the lines of `meta` that keep their checksum, and the keys of those that do not.

        Raises:
            ValueError: The table can't be read.
        """
        good: dict[str, str] = {}
        bad: list[str] = []
        for key, value, *checksum in self._rows("SELECT * FROM meta"):
            texts = isinstance(key, str) and isinstance(value, str)
            # Schema 1 kept none here.
            if texts and (self.version < 2 or checksum == [codec.checksum_of(key, value)]):
                good[key] = value
            else:
                bad.append(str(key))
        return good, bad

    def snapshots(self) -> tuple[dict[str, Job], dict[str, bytes], list[str]]:
        """Returns the snapshots that can be trusted, the checksums of all, and the names of those that can't.

        Raises:
            ValueError: The table can't be read.
        """
        jobs: dict[str, Job] = {}
        checksums: dict[str, bytes] = {}
        bad: list[str] = []
        if self.version < 2:
            return jobs, checksums, bad
        for name, revision, text, checksum in self._rows("SELECT * FROM snapshots ORDER BY job"):
            try:
                if isinstance(checksum, bytes):
                    checksums[str(name)] = checksum
                if checksum != codec.checksum_of(name, str(revision), text):
                    raise ValueError("it does not keep its checksum")
                job = codec.decode_job(text)
                if (job.name, job.revision) != (name, revision):
                    raise ValueError("it is of another job or revision")
            except UNREADABLE:
                bad.append(str(name))
            else:
                jobs[job.name] = job
        return jobs, checksums, bad

    def last(self) -> int:
        """Returns the highest revision that is found, 0 for none.

        Raises:
            ValueError: The log can't be read at all.
        """
        return int(self._rows("SELECT max(revision) FROM log")[0][0] or 0)

    def first(self) -> int:
        """Returns the lowest revision that is found, 0 for none.

        Raises:
            ValueError: The log can't be read at all.
        """
        return int(self._rows("SELECT min(revision) FROM log")[0][0] or 0)

    def checksum_at(self, revision: int) -> bytes | None:
        """Returns the checksum that is stored with a record, None if there is none."""
        try:
            rows = self._rows("SELECT checksum FROM log WHERE revision = ?", revision)
        except ValueError:
            return None
        return rows[0][0] if rows and isinstance(rows[0][0], bytes) else None

    def lines(self, after: int, checksum: bytes, last: int) -> Iterator[Line]:
        """Yields the records after one, up to another, each checked.

        Args:
            after: The revision after which to begin.
            checksum: The checksum of that record.
            last: The last revision wanted.

        Raises:
            ChainError: One is missing, can't be read or does not keep its checksum; those before it were yielded.
        """
        sql = (
            "SELECT revision, time_us, job, kind, subject, payload, checksum FROM log "
            "WHERE revision > ? ORDER BY revision"
        )
        if after >= last:
            return
        done = after
        try:
            # Not limited to the last one wanted: where the page is damaged, looking for that could go astray.
            with closing(self._connection.execute(sql, (after,))) as rows:
                for *fields, stored in rows:
                    line = Line(*fields)
                    if line.revision != done + 1:
                        raise ChainError(done + 1, "is missing")
                    checksum = self._checksum(checksum, line)
                    if stored != checksum:
                        raise ChainError(done + 1, "does not keep its checksum")
                    yield line
                    done += 1
                    if done == last:
                        return  # a damaged page may hold anything after it
        except ChainError:
            raise
        except UNREADABLE as error:
            raise ChainError(done + 1, f"can't be read ({error})") from error
        if done < last:
            raise ChainError(done + 1, "is missing")

    def _checksum(self, previous: bytes, line: Line) -> bytes:
        text = (line.job, line.kind)
        if self.version < 2:
            return codec.checksum_v1(previous, line.revision, line.time_us, *text, line.payload)
        return codec.checksum(previous, line.revision, line.time_us, *text, line.subject, line.payload)

    def start_of_run(self, last: int) -> int:
        """Returns after which record the chain holds, without a break, up to a record that is found."""
        sql = "SELECT revision, checksum FROM log WHERE revision < ? ORDER BY revision DESC"
        start = last
        try:
            with closing(self._connection.execute(sql, (last,))) as rows:
                for revision, checksum in rows:
                    if revision != start - 1 or not isinstance(checksum, bytes):
                        break
                    if not any(self.lines(revision, checksum, start)):
                        break
                    start = revision
        except UNREADABLE:
            pass
        return start

    def unchecked(self, after: int, last: int) -> Iterator[tuple[int, int, str, str]]:
        """Yields revision, time, job and kind of what can be read of the records in between, true or not."""
        sql = "SELECT revision, time_us, job, kind FROM log WHERE revision > ? AND revision <= ? ORDER BY revision "
        end = last
        for direction in ("ASC", "DESC"):
            try:
                with closing(self._connection.execute(sql + direction, (after, end))) as rows:
                    for revision, time_us, job, kind in rows:
                        yield int(revision), int(time_us), str(job), str(kind)
                        after = max(after, revision) if direction == "ASC" else after
            except UNREADABLE:
                continue
            return

    def indexed(self, kind: str, job: str, subject: int, revision: int) -> bool:
        """Tells whether a record is found by the index of its kind alone, if its kind has one."""
        if kind == "applied":
            sql = (
                "SELECT 1 FROM log INDEXED BY log_applies "
                "WHERE kind = 'applied' AND job = ? AND subject = ? AND revision = ?"
            )
            return bool(self._rows(sql, job, subject, revision))
        return True

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except UNREADABLE as error:
            raise ValueError(str(error)) from error
