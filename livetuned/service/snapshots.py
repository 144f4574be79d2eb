"""Keeps the part of the log that a start must fold short: saves jobs, those first that were saved longest ago."""

from __future__ import annotations

import asyncio
import logging

from livetuned.domain import limits
from livetuned.domain.records import Record, Removed
from livetuned.domain.state import State
from livetuned.store.interface import Store, StoreFullError

log = logging.getLogger(__name__)

_NAMES_AT_ONCE = 1_000
"""How many variables and triggers one save takes, roughly: commits wait for it."""
_FULL_SECONDS = 5.0
"""Pause after the disk was full, in seconds."""


class Snapshots:
    """Belongs to one event loop. `seen` is told of every record, after it was folded.

    Args:
        store: Where jobs are saved.
        state: The state that is saved.
        lag: How many of the newest records may be part of no snapshot.
    """

    def __init__(self, store: Store, state: State, lag: int = limits.SNAPSHOT_LAG) -> None:
        self._store = store
        self._state = state
        self._lag = lag
        self._first: dict[str, int] = {}
        """By job: its first record that no snapshot holds."""
        self._removed: dict[str, int] = {}
        """By job: the record that removed it, while its snapshot is still there."""
        self._due = asyncio.Event()
        self.covered = state.revision

    def seen(self, record: Record) -> None:
        """Notes that the state was moved by a record."""
        if isinstance(record.payload, Removed):
            self._first.pop(record.job, None)
            self._removed[record.job] = record.revision
        else:
            self._first.setdefault(record.job, record.revision)
        if record.revision - self.covered > self._lag:
            self._due.set()

    async def run(self) -> None:
        """Saves whenever the lag is exceeded. Ends when cancelled, or with what `Store.save` raises."""
        while True:
            await self._due.wait()
            while self._state.revision - self.covered > self._lag:
                try:
                    await self.save_oldest()
                except StoreFullError as error:
                    log.warning("disk full, no snapshot: %s", error)
                    await asyncio.sleep(_FULL_SECONDS)
            self._due.clear()

    async def save_oldest(self) -> None:
        """Saves the jobs that were saved longest ago, about a thousand variables of them.

        Raises:
            StoreFullError: No room; nothing was saved.
            StoreFailedError: The store takes nothing more.
        """
        chosen: dict[str, int] = {}
        names = 0
        for name, first in sorted(self._first.items(), key=lambda item: item[1]):
            if chosen and names >= _NAMES_AT_ONCE:
                break
            job = self._state.jobs[name]
            names += len(job.variables) + len(job.triggers) + 1
            chosen[name] = first
        jobs = [self._state.jobs[name] for name in chosen]
        for name in chosen:
            del self._first[name]  # what comes while they are being saved makes them due again
        covered = min(self._first.values(), default=self._state.revision + 1) - 1
        removed = [name for name, revision in self._removed.items() if revision <= covered and name not in chosen]
        try:
            await self._store.save(jobs, removed, covered)
        except BaseException:
            for name, first in chosen.items():
                if name in self._state.jobs:
                    self._first[name] = first
            raise
        self.covered = covered
        for name in (*removed, *chosen):
            if self._removed.get(name, covered + 1) <= covered:
                del self._removed[name]
