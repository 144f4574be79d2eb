"""A copy of any store has its records, jobs, changes and acknowledgements, and another identity."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from livetuned.domain.records import Record
from livetuned.domain.state import State
from livetuned.store import codec
from livetuned.store.copy import CopyError, Raw, StoreWriter
from livetuned.store.interface import Store
from livetuned.store.sqlite import SqliteStore
from support.keeping import Story
from support.memory_store import MemoryStore
from support.stories import JOBS, story

ENGINES: dict[str, Callable[[Path], Store]] = {
    "sqlite": lambda folder: SqliteStore(folder / "livetuned.db"),
    "memory": lambda _: MemoryStore(),
}


def raw(record: Record) -> Raw:
    payload = codec.encode(record.payload)
    return Raw(record.revision, record.time_us, record.job, codec.kind_of(record.payload), payload)


async def state_of(store: Store) -> tuple[State, list[Record]]:
    loaded = await store.load()
    state = State(loaded.jobs, loaded.covered)
    records = await store.read(store.compacted, 10_000)
    for record in records:
        if record.revision > state.revision:
            state.fold(record)
    return state, records


@pytest.mark.parametrize("compacted", [0, 120], ids=["whole", "compacted"])
@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("seed", [1, 2])
def test_a_copy_is_the_same_store_under_another_name(tmp_path: Path, engine: str, seed: int, compacted: int) -> None:
    async def run() -> None:
        original = ENGINES[engine](tmp_path)
        await original.append(story(seed, 300))
        state, _ = await state_of(original)
        await original.save(list(state.jobs.values()), [], original.head)
        await original.compact(compacted)
        await original.append(story(seed, 400)[300:])
        state, records = await state_of(original)

        copy_path = tmp_path / "copy.db"
        with closing(StoreWriter(copy_path, original.compacted)) as writer:
            position = 0
            generator = random.Random(seed)
            while position < len(records):
                count = generator.randrange(1, 50)
                writer.add(map(raw, records[position : position + count]))
                position += count
            writer.finish(state.jobs.values(), {"retention": "text"})
        copy = SqliteStore(copy_path)
        copied, copied_records = await state_of(copy)
        assert (original.head, original.compacted) == (copy.head, copy.compacted)
        assert records == copied_records
        assert {name: codec.encode_job(job) for name, job in state.jobs.items()} == {
            name: codec.encode_job(job) for name, job in copied.jobs.items()
        }
        for job in ("", *JOBS):
            assert await original.changes(job, 10_000, 10_000) == await copy.changes(job, 10_000, 10_000)
        for job in JOBS:
            assert await original.applies(job, 1, 10_000) == await copy.applies(job, 1, 10_000)
        assert "text" == await copy.note("retention")
        assert original.store_id != copy.store_id == writer.store_id
        # It goes on as the original does.
        (record,) = await copy.append(story(seed, 401)[400:])
        assert original.head + 1 == record.revision
        for store in (original, copy):
            await store.close()
        await reopened(copy_path)

    async def reopened(path: Path) -> None:
        store = SqliteStore(path)
        assert store.head == 401
        await store.close()

    asyncio.run(run())


def test_a_writer_takes_nothing_that_is_no_log(tmp_path: Path) -> None:
    records = [raw(Record(number, 1, draft.job, draft.payload)) for number, draft in enumerate(story(1, 20), 1)]
    for number, (wrong, words) in enumerate(
        [
            (records[1:], "record 1 is missing, 2 came"),
            ([records[0], *records[2:]], "record 2 is missing, 3 came"),
            ([records[0], records[0]], "record 2 is missing, 1 came"),
            ([Raw(1, 1, "vgg", "renamed", "{}")], "not a record of kind 'renamed'"),
            ([Raw(1, 1, "vgg", "changed", "{")], "Expecting property name"),
            ([Raw(1, 2**63, "vgg", records[0].kind, records[0].payload)], "too large"),
        ]
    ):
        with closing(StoreWriter(tmp_path / f"{number}.db", 0)) as writer, pytest.raises(CopyError, match=words):
            writer.add(wrong)


def test_a_job_that_was_removed_and_came_back_has_its_new_history_only(tmp_path: Path) -> None:
    with Story(tmp_path / "original.db") as original:
        for _ in range(2):
            original.begin("a")
            original.change("a", 2)
            original.remove("a")
        original.begin("a")
        original.change("a", 3)
    with closing(StoreWriter(tmp_path / "copy.db", 0)) as writer:
        writer.add(map(raw, original.records))
        writer.finish(original.state.jobs.values(), {})

    async def changes(path: Path) -> list[int]:
        store = SqliteStore(path)
        found = await store.changes("a", 1_000, 1_000)
        await store.close()
        return [record.revision for record in found]

    kept = asyncio.run(changes(tmp_path / "original.db"))
    assert 3 == len(kept)
    assert kept == asyncio.run(changes(tmp_path / "copy.db"))
