"""What every store must keep. An engine joins by adding itself to `ENGINES`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from livetuned.domain.job import AppliedValue, Job, RankState, TriggerState, VariableState
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
    Removed,
)
from livetuned.domain.requests import Requests
from livetuned.domain.specs import RestartPolicy, Scale, TriggerSpec, VariableSpec
from livetuned.domain.state import State
from livetuned.domain.values import ValueType
from livetuned.store.interface import CompactedError, Store
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
    Removed("ann", "done"),
    Changed("ann", "undo of 3", "", (Assignment("lr", 0.2, 0.1),), (), 3),
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


async def write_jobs(store: Store, *names: str) -> State:
    """Registers jobs that declare a variable, and returns the state."""
    state = State()
    for name in names:
        declared = Declared(
            "instance", (DeclaredVariable(VariableSpec("n", ValueType.INT, 0), 0),), (TriggerSpec("go"),)
        )
        for payload in (Registered(1, 21000, 0, 1, "instance", False, PROCESS, "hash"), declared):
            for record in await store.append([draft(payload, job=name)]):
                state.fold(record)
    return state


async def fold_from(store: Store) -> State:
    """The state as a start makes it: snapshots, and the log after what they cover."""
    loaded = await store.load()
    state = State(loaded.jobs, loaded.covered)
    while state.revision < store.head:
        for record in await store.read(state.revision, 100):
            state.fold(record)
    return state


def test_snapshots_and_the_log_after_them_give_the_state(reopen: Open) -> None:
    async def write(store: Store) -> dict[str, Job]:
        state = await write_jobs(store, "one", "two", "gone")
        for record in await store.append([draft(change(1), job="one"), draft(Ended(False, "", 1), job="gone")]):
            state.fold(record)
        # One is saved as of now, two not at all: what is covered ends before its first record.
        await store.save([state.jobs["one"], state.jobs["gone"]], [], covered=2)
        more = [draft(change(2), job="one"), draft(Removed("ann", ""), job="gone"), draft(change(1), job="two")]
        for record in await store.append(more):
            state.fold(record)
        assert state.jobs == (await fold_from(store)).jobs
        await store.save([state.jobs["two"], state.jobs["one"]], ["gone"], covered=store.head)
        return dict(state.jobs)

    async def read(store: Store) -> dict[str, Job]:
        loaded = await store.load()
        assert store.head == loaded.covered
        assert {"one", "two"} == {job.name for job in loaded.jobs}
        return dict((await fold_from(store)).jobs)

    assert with_store(reopen, write) == with_store(reopen, read)


def test_a_snapshot_comes_back_exactly(reopen: Open) -> None:
    variable = VariableState(
        VariableSpec("lr", ValueType.FLOAT, 0.1, 5e-324, None, (), Scale.LOG, "1/step", 'ä"\\\n', RestartPolicy.RESET),
        "instance", 0.30000000000000004, 7, True, True, {0: AppliedValue(0.1, 5, 9), 3: AppliedValue(1.0, 7, 10)}, {0: 5, 3: 7},
    )  # fmt: skip
    job = Job(
        "vgg", 2, 0, 21000, 4, 1, 3, 9, {0: RankState("a", PROCESS, 3, "hash", 7), 3: RankState("b", PROCESS, 4)},
        {"lr": variable, "m": VariableState(VariableSpec("m", ValueType.STRING, "a", choices=("a", "é")), "x", "é", 4, False)},
        {"go": TriggerState(TriggerSpec("go", "doc"), "a", 3, 8, (6, 8))},
        Requests({"one": 5, "two": 7}), 8, Ended(True, "boom", 9), 1_700_000_000_000_000,
    )  # fmt: skip

    async def write(store: Store) -> None:
        await store.append([draft(change(number)) for number in range(9)])
        await store.save([job], [], covered=9)

    async def read(store: Store) -> None:
        (loaded,) = (await store.load()).jobs
        assert job == loaded
        assert repr(job.variables) == repr(loaded.variables)
        assert list(job.requests.items()) == list(loaded.requests.items())

    with_store(reopen, write)
    with_store(reopen, read)


def test_compaction_drops_what_is_covered_and_nothing_else(reopen: Open) -> None:
    async def write(store: Store) -> None:
        state = await write_jobs(store, "vgg")
        for record in await store.append([draft(change(number)) for number in range(5_000)]):
            state.fold(record)
        await store.save([state.jobs["vgg"]], [], covered=4_500)
        with pytest.raises(ValueError, match="4501"):
            await store.compact(4_501)
        await store.compact(4_500)
        await store.append([draft(change(5_000))])

    async def read(store: Store) -> None:
        assert (4_500, 5_003) == (store.compacted, store.head)
        with pytest.raises(CompactedError):
            await store.read(4_499, 10)
        with pytest.raises(CompactedError):
            await store.follow(0, lambda _: None)
        assert list(range(4_501, 5_004)) == [record.revision for record in await store.read(4_500, 10_000)]
        assert list(range(4_501, 5_004)) == [record.revision for record in await store.changes("vgg", 10_000, 10_000)]
        assert list(range(4_501, 5_004)) == [record.revision for record in await store.changes("", 10_000, 10_000)]
        assert [] == await store.changes("vgg", 4_501, 10)
        assert 5_003 == await store.verify(0, 10_000)

    with_store(reopen, write)
    with_store(reopen, read)


def test_reads_go_on_while_history_is_dropped(reopen: Open) -> None:
    async def work(store: Store) -> None:
        await store.append([draft(change(number)) for number in range(9_000)])
        await store.save([], [], covered=9_000)
        dropping = asyncio.create_task(store.compact(8_000))
        while not dropping.done():
            (newest,) = await store.changes("vgg", 10_000, 1)
            assert 9_000 == newest.revision
            assert [8_500] == [record.revision for record in await store.read(8_499, 1)]
        await dropping
        assert 8_000 == store.compacted

    with_store(reopen, work)


def test_changes_of_a_job_are_found_from_any_revision(reopen: Open) -> None:
    async def work(store: Store) -> None:
        await store.append(
            [draft(change(number), job="busy" if number % 50 else "quiet") for number in range(1, 5_001)]
        )
        quiet = list(range(50, 5_001, 50))
        for before in (1, 50, 51, 99, 2_500, 2_501, 5_000, 5_001, 10**9):
            assert [revision for revision in quiet if revision < before][-3:] == [
                record.revision for record in await store.changes("quiet", before, 3)
            ]
        assert quiet == [record.revision for record in await store.changes("quiet", 10**9, 10_000)]
        assert [] == await store.changes("none", 10**9, 5)

    with_store(reopen, work)


def test_notes_are_kept_and_replaced(reopen: Open) -> None:
    async def write(store: Store) -> None:
        assert "" == await store.note("ages")
        await store.put_note("ages", "one")
        await store.put_note("ages", 'two "ä"')

    async def read(store: Store) -> None:
        assert 'two "ä"' == await store.note("ages")
        assert "" == await store.note("other")

    with_store(reopen, write)
    with_store(reopen, read)


def test_a_quick_append_is_an_append(reopen: Open) -> None:
    async def work(store: Store) -> None:
        seen: list[int] = []
        following = asyncio.create_task(store.follow(0, lambda batch: seen.extend(record.revision for record in batch)))
        await store.append([draft(change(1))])
        await asyncio.sleep(0.01)
        if store.quick:
            assert [2] == [record.revision for record in store.append_now([draft(change(2))])]
            assert [1, 2] == seen
            assert 2 == store.head
        else:
            await store.append([draft(change(2))])
        assert [3] == [record.revision for record in await store.append([draft(change(3))])]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert [1, 2, 3] == seen
        assert [1, 2, 3] == [record.revision for record in await store.changes("vgg", 9, 9)]
        assert store.size_bytes > 0

    with_store(reopen, work)
