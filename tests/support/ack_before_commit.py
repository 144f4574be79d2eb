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
        return await self._call(lambda: self._append(drafts))  # without telling anybody again

    task = asyncio.create_task(late())
    _late.add(task)
    return records


def plant() -> None:
    """Puts the bug in."""
    SqliteStore.append = append  # type: ignore[method-assign]
    SqliteStore.quick = False  # type: ignore[assignment, method-assign] # every commit goes by way of `append`


if __name__ == "__main__":
    plant()
    main(prog_name="livetuned")
