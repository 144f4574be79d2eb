"""Compacts the store of a daemon that does not run, as its retention would."""

from __future__ import annotations

import asyncio
from pathlib import Path

from livetuned.daemon.app import DATABASE
from livetuned.domain.state import State
from livetuned.store.sqlite import SqliteStore


def compact(state_folder: Path, through: int) -> None:
    """Takes snapshots of all jobs, and drops the records up to a revision."""
    asyncio.run(_compact(SqliteStore(state_folder / DATABASE), through))


async def _compact(store: SqliteStore, through: int) -> None:
    try:
        loaded = await store.load()
        state = State(loaded.jobs, loaded.covered)
        for record in (
            await store.read(loaded.covered, store.head - loaded.covered) if loaded.covered < store.head else []
        ):
            state.fold(record)
        await store.save(list(state.jobs.values()), [], store.head)
        await store.compact(through)
    finally:
        await store.close()
