"""What the tests of backup, restore and doctor share: the command line, and stores with a story in them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from livetuned.domain.job import Job
from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Assignment,
    Changed,
    Declared,
    DeclaredVariable,
    Ended,
    Outcome,
    Record,
    Registered,
    Removed,
)
from livetuned.domain.state import State
from livetuned.store.sqlite import SqliteStore
from support.domain import PROCESS, draft, spec


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "livetuned", *map(str, arguments)]


def livetuned(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification times of all files of a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


def execute(path: Path, *statements: str) -> None:
    """Does something to a database that a store would not do."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def wipe(path: Path, table: str) -> None:
    """Wipes the first page of a table or an index."""
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4_096)
        file.write(bytes(4_096))


class Story:
    """A store of several jobs that is written by the store's own code.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State()
        self.records: list[Record] = []
        self._store: SqliteStore | None = None
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Story:  # noqa: PYI034 - typing.Self came with Python 3.11
        self._store = SqliteStore(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._loop.run_until_complete(self._store.close())
        self._loop.close()

    def crashed(self, folder: Path) -> Path:
        """Copies the files as a daemon that died leaves them: the last commits in the write-ahead log only."""
        folder.mkdir()
        for file in self.path.parent.glob(f"{self.path.name}*"):
            shutil.copyfile(file, folder / file.name)
        return folder / self.path.name

    def _append(self, job: str, payloads: Sequence[Any]) -> None:
        assert self._store is not None
        drafts = [draft(payload, job, 1_790_000_000_000_000 + len(self.records) * 1_000_000) for payload in payloads]
        for record in self._loop.run_until_complete(self._store.append(drafts)):
            self.records.append(record)
            self.state.fold(record)

    def begin(self, *jobs: str) -> None:
        """Registers jobs with a variable `n` that is 0: two records each."""
        for number, name in enumerate(jobs):
            registered = Registered(1, 21_000 + number, 0, 1, "a", False, PROCESS)
            self._append(name, [registered, Declared("a", (DeclaredVariable(spec("n", 0), 0),), ())])

    def change(self, job: str, times: int = 1) -> None:
        """Changes `n` of a job, by one, so many times, and acknowledges each: two records each."""
        for _ in range(times):
            old = self.state.jobs[job].variables["n"].desired
            assert isinstance(old, int)
            self._append(job, [Changed("ann", "", "", (Assignment("n", old, old + 1),), ())])
            outcome = Outcome("n", False, ApplyStatus.APPLIED, old + 1)
            self._append(job, [Applied(self.state.revision, 0, old, (outcome,))])

    def end(self, job: str) -> None:
        self._append(job, [Ended(False, "", 7)])

    def remove(self, job: str) -> None:
        self._append(job, [Removed("ann", "")])

    def save(self, *jobs: str, removed: Sequence[str] = (), covered: int | None = None) -> None:
        """Saves snapshots of jobs."""
        assert self._store is not None
        wanted = self.state.revision if covered is None else covered
        chosen = [self.state.jobs[name] for name in jobs]
        self._loop.run_until_complete(self._store.save(chosen, removed, wanted))

    def compact(self, through: int) -> None:
        assert self._store is not None
        self._loop.run_until_complete(self._store.compact(through))

    def note(self, key: str, text: str) -> None:
        assert self._store is not None
        self._loop.run_until_complete(self._store.put_note(key, text))


def state_of(path: Path) -> tuple[dict[str, Job], list[Record]]:
    """Opens a store and returns its jobs and records."""

    async def read() -> tuple[dict[str, Job], list[Record]]:
        store = SqliteStore(path)
        try:
            loaded = await store.load()
            state = State(loaded.jobs, loaded.covered)
            records = await store.read(store.compacted, 1_000_000)
            for record in records:
                if record.revision > state.revision:
                    state.fold(record)
            return state.jobs, records
        finally:
            await store.close()

    return asyncio.run(read())
