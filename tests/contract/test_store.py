"""What every store must keep. An engine joins by adding itself to `ENGINES`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from livetuned.domain.records import (
    Applied,
    ApplyStatus,
    Assignment,
    Changed,
    Declared,
    DeclaredVariable,
    Ended,
    Firing,
    Outcome,
    Payload,
    PortMoved,
    Record,
    Registered,
)
from livetuned.domain.specs import Scale, TriggerSpec, VariableSpec
from livetuned.domain.values import ValueType
from livetuned.store.interface import Store
from livetuned.store.sqlite import SqliteStore
from support.domain import PROCESS, draft

T = TypeVar("T")
Open = Callable[[], Store]

ENGINES: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: SqliteStore(folder / "livetuned.db")}

PAYLOADS: list[Payload] = [
    Registered(1, 21000, 0, 2, "instance", False, PROCESS),
    Declared(
        "instance",
        (
            DeclaredVariable(
                VariableSpec("lr", ValueType.FLOAT, 0.1, 5e-324, 1.7976931348623157e308, (), Scale.LOG), 0.1
            ),
            DeclaredVariable(VariableSpec("n", ValueType.INT, 2**63 - 1, -(2**63), None, doc='ä"\\\n\x00'), -(2**63)),
            DeclaredVariable(VariableSpec("m", ValueType.STRING, "a", choices=("a", "é")), "é"),
            DeclaredVariable(VariableSpec("b", ValueType.BOOL, True), False),
        ),
        (TriggerSpec("save", "doc"),),
    ),
    Changed("ann@host", "why\n", "id", (Assignment("lr", 0.1, 0.30000000000000004), Assignment("b", True, False)), ()),
    Changed("", "", "", (), (Firing("save", 1),)),
    Applied(
        3,
        1,
        8042,
        (
            Outcome("lr", False, ApplyStatus.APPLIED, 0.30000000000000004),
            Outcome("b", False, ApplyStatus.REFUSED, True, "no"),
        ),
    ),
    Applied(4, 0, 8043, (Outcome("save", True, ApplyStatus.APPLIED, None),)),
    PortMoved(21001, 21000),
    Ended(True, "boom", 9000),
]


@pytest.fixture(params=sorted(ENGINES))
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda: ENGINES[request.param](tmp_path)


def with_store(reopen: Open, work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        store = reopen()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def change(number: int) -> Changed:
    return Changed("", "", "", (Assignment("n", number - 1, number),), ())


def test_records_come_back_exactly_as_they_went_in(reopen: Open) -> None:
    async def write(store: Store) -> None:
        records = await store.append([draft(payload) for payload in PAYLOADS])
        assert list(range(1, len(PAYLOADS) + 1)) == [record.revision for record in records]

    async def read(store: Store) -> None:
        records = await store.read(0, 100)
        assert PAYLOADS == [record.payload for record in records]
        assert [repr(payload) for payload in PAYLOADS] == [repr(record.payload) for record in records]
        assert {("vgg", 1_000_000)} == {(record.job, record.time_us) for record in records}

    with_store(reopen, write)
    with_store(reopen, read)


def test_identity_and_head_survive_and_revisions_are_never_given_twice(reopen: Open) -> None:
    async def first(store: Store) -> tuple[str, int]:
        assert 0 == store.head
        await store.append([draft(change(1)), draft(change(2))])
        return store.store_id, store.head

    async def second(store: Store) -> tuple[str, int]:
        identity = store.store_id, store.head
        assert [3] == [record.revision for record in await store.append([draft(change(3))])]
        return identity

    assert with_store(reopen, first) == with_store(reopen, second)


def test_concurrent_appends_get_consecutive_revisions(reopen: Open) -> None:
    async def work(store: Store) -> None:
        batches = await asyncio.gather(*(store.append([draft(change(i)), draft(change(i))]) for i in range(20)))
        revisions = [[record.revision for record in batch] for batch in batches]
        assert all(second == first + 1 for first, second in revisions)
        assert list(range(1, 41)) == sorted(revision for pair in revisions for revision in pair)
        assert 40 == store.head

    with_store(reopen, work)


def test_follow_yields_history_then_what_comes_once_and_in_order(reopen: Open) -> None:
    async def work(store: Store) -> None:
        await store.append([draft(change(i)) for i in range(1, 1_501)])
        seen: list[int] = []
        complete = asyncio.Event()

        def deliver(batch: list[Record]) -> None:
            seen.extend(record.revision for record in batch)
            if seen[-1] == 1_503:
                complete.set()

        task = asyncio.create_task(store.follow(10, deliver))
        await store.append([draft(change(1_501))])
        await asyncio.sleep(0)
        await store.append([draft(change(1_502)), draft(change(1_503))])
        await asyncio.wait_for(complete.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list(range(11, 1_504)) == seen

    with_store(reopen, work)


def test_read_pages_and_filters_by_job(reopen: Open) -> None:
    async def work(store: Store) -> None:
        await store.append([draft(change(i), job="even" if i % 2 == 0 else "odd") for i in range(1, 11)])
        assert [4, 5, 6] == [record.revision for record in await store.read(3, 3)]
        assert [4, 6] == [record.revision for record in await store.read(3, 2, "even")]
        assert [] == await store.read(10, 5)
        assert [] == await store.read(0, 5, "other")

    with_store(reopen, work)


def test_changes_and_their_acknowledgements(reopen: Open) -> None:
    async def work(store: Store) -> None:
        applied = [
            Applied(revision, 0, revision, (Outcome("n", False, ApplyStatus.APPLIED, 1),)) for revision in (1, 2, 3)
        ]
        await store.append([draft(change(1)), draft(change(2)), draft(change(3))])
        await store.append([draft(change(4), job="other"), *(draft(payload) for payload in applied)])
        assert [2, 3] == [record.revision for record in await store.changes("vgg", 100, 2)]
        assert [1] == [record.revision for record in await store.changes("vgg", 2, 5)]
        assert [applied[1], applied[2]] == [record.payload for record in await store.applies("vgg", 2, 3)]
        assert [] == await store.applies("other", 1, 9)

    with_store(reopen, work)


def test_an_empty_batch_stores_nothing_and_closing_twice_is_harmless(reopen: Open) -> None:
    async def work(store: Store) -> None:
        assert [] == await store.append([])
        assert 0 == store.head
        await store.close()

    with_store(reopen, work)
