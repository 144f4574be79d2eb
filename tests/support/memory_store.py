"""A store without a disk, for tests of what is above it: its next append can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from livetuned.domain.job import Job
from livetuned.domain.records import Applied, Changed, Draft, Record
from livetuned.store.interface import CompactedError, Loaded, Store


class MemoryStore(Store):
    """Keeps records in a list."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.failure: Exception | None = None
        self.snapshots: dict[str, Job] = {}
        self.covered = 0
        self.dropped = 0
        self.notes: dict[str, str] = {}
        self._followers: list[Callable[[list[Record]], None]] = []

    @property
    def store_id(self) -> str:
        return "memory"

    @property
    def head(self) -> int:
        return len(self.records)

    @property
    def compacted(self) -> int:
        return self.dropped

    @property
    def verified(self) -> int:
        return self.dropped

    @property
    def size_bytes(self) -> int:
        return 0

    async def append(self, drafts: Sequence[Draft]) -> list[Record]:
        await asyncio.sleep(0)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        records = [Record(self.head + n, d.time_us, d.job, d.payload) for n, d in enumerate(drafts, 1)]
        self.records += records
        for deliver in self._followers:
            deliver(records)
        return records

    async def load(self) -> Loaded:
        return Loaded(list(self.snapshots.values()), self.covered)

    async def save(self, jobs: Sequence[Job], removed: Sequence[str], covered: int) -> None:
        await asyncio.sleep(0)
        for name in removed:
            self.snapshots.pop(name, None)
        self.snapshots.update({job.name: job for job in jobs})
        self.covered = covered

    async def compact(self, through: int) -> None:
        if through > self.covered:
            raise ValueError(f"{through} is not covered")
        self.dropped = max(self.dropped, through)

    async def verify(self, after: int, limit: int) -> int:
        return self.head

    async def note(self, key: str) -> str:
        return self.notes.get(key, "")

    async def put_note(self, key: str, text: str) -> None:
        self.notes[key] = text

    async def follow(self, after: int, deliver: Callable[[list[Record]], None]) -> None:
        if self.records[after:]:
            deliver(self.records[after:])
        self._followers.append(deliver)
        await asyncio.Event().wait()

    async def read(self, after: int, limit: int, job: str = "") -> list[Record]:
        if after < self.dropped:
            raise CompactedError(str(self.dropped))
        return [r for r in self.records[after:] if job in ("", r.job)][:limit]

    def _kept(self, job: str, kind: type) -> list[Record]:
        return [r for r in self.records[self.dropped :] if job in ("", r.job) and isinstance(r.payload, kind)]

    async def changes(self, job: str, before: int, limit: int) -> list[Record]:
        return [record for record in self._kept(job, Changed) if record.revision < before][-limit:]

    async def applies(self, job: str, first: int, last: int) -> list[Record]:
        return [
            record
            for record in self._kept(job, Applied)
            if isinstance(record.payload, Applied) and first <= record.payload.change_revision <= last
        ]

    async def close(self) -> None:
        pass
