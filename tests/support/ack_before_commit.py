"""A daemon with a planted bug, for the control of the kill test: it answers first and commits a little later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livetuned.daemon.cli import main
from livetuned.domain.records import Changed, Draft, Record
from livetuned.store.sqlite import SqliteStore

_append = SqliteStore.append
_late: set[asyncio.Task[list[Record]]] = set()


async def append(self: SqliteStore, drafts: Sequence[Draft]) -> list[Record]:
    if not all(isinstance(draft.payload, Changed) for draft in drafts):
        return await _append(self, drafts)  # registration and declaration are not what the bug is about
    records = [
        Record(self._head + number, draft.time_us, draft.job, draft.payload) for number, draft in enumerate(drafts, 1)
    ]
    self._deliver(records)

    async def late() -> list[Record]:
        await asyncio.sleep(0.02)
        waiting, self._followers = self._followers, []
        try:
            return await _append(self, drafts)
        finally:
            self._followers = waiting

    task = asyncio.create_task(late())
    _late.add(task)
    return records


SqliteStore.append = append  # type: ignore[method-assign]
SqliteStore.quick = False  # type: ignore[assignment, method-assign] # every commit goes by way of `append`
main(prog_name="livetuned")
