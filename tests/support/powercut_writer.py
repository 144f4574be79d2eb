"""The program whose power is cut: fills a store with a story in several sessions and says what it has been promised.

Arguments: folder, seed of the story, number of records, pages after which SQLite moves its log into the file, and the value
of SQLite's ``synchronous`` (FULL is what the store asks for; another one is a planted bug).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sqlite3
import sys
from functools import partial
from pathlib import Path

from livetuned.store.sqlite import SqliteStore
from support import stories

folder, seed, length, checkpoint, synchronous = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]


class Tuned(sqlite3.Connection):
    """A connection with the settings asked for."""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:  # type: ignore[override]
        found = re.fullmatch(r"PRAGMA synchronous ?= ?(\w+)", sql)
        if found:
            super().execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
            assert found[1] == "FULL"
            sql = f"PRAGMA synchronous = {synchronous}"
        return super().execute(sql, *parameters)


sqlite3.connect = partial(sqlite3.connect, factory=Tuned)  # type: ignore[assignment]


async def write() -> None:
    generator = random.Random(seed)
    drafts = stories.story(seed, length)
    history = stories.records(drafts)
    sessions = sorted(generator.sample(range(10, length), 3))
    snapshots = set(generator.sample(range(20, length), 4))
    store = SqliteStore(folder / "livetuned.db")
    covered = 0

    def say() -> None:
        promised = {"store_id": store.store_id, "head": store.head, "covered": covered, "compacted": store.compacted}
        os.write(1, json.dumps(promised).encode() + b"\n")

    say()
    while store.head < length:
        before = store.head
        batch = drafts[before : before + generator.randint(1, 8)]
        if store.quick and generator.random() < 0.5:
            store.append_now(batch)
        else:
            await store.append(batch)
        say()
        if snapshots & set(range(before, store.head)):
            covered = store.head
            await store.save(list(stories.fold(history[:covered]).values()), [], covered)
            say()
            await store.compact(generator.randint(store.compacted, covered))
            say()
        if sessions and store.head >= sessions[0]:
            sessions.pop(0)
            await store.close()
            store = SqliteStore(folder / "livetuned.db")
    await store.close()


asyncio.run(write())
