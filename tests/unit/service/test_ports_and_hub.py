"""Designated ports without sockets; cursors over the log without a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job
from livetuned.domain.records import Changed, Draft, Record, Registered
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports
from livetuned.store.interface import StoreFailedError, StoreFullError
from support.domain import PROCESS
from support.memory_store import MemoryStore

REGISTERED = Registered(1, 21_000, 0, 1, "a", False, PROCESS)


class FakeServers:
    """Serves on every port but those that others hold."""

    def __init__(self, *taken: int) -> None:
        self.taken = set(taken)
        self.serving: dict[int, str] = {}

    async def serve(self, port: int, job: str) -> Callable[[], Awaitable[None]]:
        if port in self.taken:
            raise OSError(f"port {port} is taken")
        self.serving[port] = job

        async def stop() -> None:
            del self.serving[port]

        return stop


def test_ports_are_given_in_turn_and_a_released_one_rests() -> None:
    async def run() -> None:
        servers, now = FakeServers(21_001), 1_000.0
        ports = Ports(21_000, 21_003, servers.serve, quarantine=60.0, now=lambda: now)
        assert [21_000, 21_002] == [await ports.acquire("a"), await ports.acquire("b")]
        assert 21_000 == await ports.acquire("a")
        ports.release("a")
        ports.release("a")
        assert 21_003 == await ports.acquire("c")
        with pytest.raises(DomainError) as caught:
            await ports.acquire("d")
        assert Reason.PORTS_EXHAUSTED is caught.value.reason
        assert "21000-21003" in caught.value.message
        assert "1 were released less than 60 s ago" in caught.value.message
        now += 60.0
        assert 21_000 == await ports.acquire("d")
        assert {21_002: "b", 21_003: "c", 21_000: "d"} == servers.serving
        with pytest.raises(DomainError, match=r"taken by jobs or by other programs$"):
            await ports.acquire("e")
        assert (3, 0) == (len(ports), ports.port("e"))

    asyncio.run(run())


def test_a_resting_port_is_its_own_jobs_at_once() -> None:
    async def run() -> None:
        ports = Ports(21_000, 21_001, FakeServers().serve)
        assert 21_000 == await ports.acquire("a")
        ports.release("a")
        assert 21_001 == await ports.acquire("b")
        assert 21_000 == await ports.acquire("a", preferred=21_000)

    asyncio.run(run())


def test_the_port_a_job_had_is_preferred_even_outside_the_range() -> None:
    async def run() -> None:
        ports = Ports(21_000, 21_003, FakeServers(21_002).serve)
        assert 25_000 == await ports.acquire("a", preferred=25_000)
        assert 21_000 == await ports.acquire("b", preferred=21_002)

    asyncio.run(run())


def draft(job: str, number: int) -> Draft:
    return Draft(number, job, Changed("", "", str(number), (), ()))


@pytest.mark.parametrize("capacity", [1, 3, 1_000])
def test_a_cursor_yields_its_scope_once_in_order_from_memory_or_store(capacity: int) -> None:
    async def run() -> None:
        store = MemoryStore()
        hub = Hub(store, capacity)
        hub.publish(await store.append([draft("a" if n % 2 else "b", n) for n in range(1, 1_402)]))
        everything, only_b = hub.cursor(0), hub.cursor(700, "b")
        seen: list[int] = []
        while everything.position < hub.revision:
            seen += [record.revision for record in await everything.next()]
        assert list(range(1, 1_402)) == seen
        seen = []
        while only_b.position < hub.revision - 1:
            seen += [record.revision for record in await only_b.next()]
        assert list(range(702, 1_402, 2)) == seen
        waiting = asyncio.create_task(only_b.next())
        hub.publish(await store.append([draft("a", 1_402)]))
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish(await store.append([draft("b", 1_403)]))
        assert [1_403] == [record.revision for record in await asyncio.wait_for(waiting, 5)]

    asyncio.run(run())


def test_a_cancelled_waiter_does_not_take_the_others_along() -> None:
    async def run() -> None:
        store = MemoryStore()
        hub = Hub(store)
        first, second = (asyncio.create_task(hub.cursor(0).next()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        hub.publish(await store.append([draft("a", 1)]))
        assert 1 == len(await asyncio.wait_for(second, 5))

    asyncio.run(run())


def test_a_full_store_refuses_the_whole_batch_leaves_no_trace_and_recovers() -> None:
    async def run() -> None:
        store = MemoryStore()
        engine = Engine(store, Hub(store), Metrics("test"))
        await engine.start()
        await engine.submit("vgg", lambda _: REGISTERED)
        store.failure = StoreFullError("full")
        answers = await asyncio.gather(
            *(engine.submit("vgg", lambda job: Changed("", "", "id", (), ())) for _ in range(3)), return_exceptions=True
        )
        assert [Reason.STORE_FULL] * 3 == [answer.reason for answer in answers if isinstance(answer, DomainError)]
        job = engine.job("vgg")
        assert job is not None
        assert (0, 1) == (len(job.requests), engine.revision)
        record = await engine.submit("vgg", lambda job: Changed("", "", "id", (), ()))
        assert record is not None
        assert 2 == record.revision
        await engine.stop()

    asyncio.run(run())


@pytest.mark.parametrize("failure", [None, StoreFullError("full")])
def test_a_refusal_that_rests_on_a_change_of_its_own_batch_waits_for_the_commit(failure: Exception | None) -> None:
    """Told before, it speaks of a change that a read does not show yet, and that may never come about."""

    class Gated(MemoryStore):
        gate = asyncio.Event()

        async def append(self, drafts: Sequence[Draft]) -> list[Record]:
            await self.gate.wait()
            return await super().append(drafts)

    def compare_and_set(job: Job | None) -> Changed:
        assert job is not None
        if "first" in job.requests:
            raise DomainError(Reason.REVISION_MISMATCH, "changed since")
        return Changed("", "", "second", (), ())

    async def run() -> None:
        store = Gated()
        store.gate.set()
        engine = Engine(store, Hub(store), Metrics("test"))
        await engine.start()
        await engine.submit("vgg", lambda _: REGISTERED)
        store.gate.clear()
        store.failure = failure
        first = asyncio.create_task(engine.submit("vgg", lambda job: Changed("", "", "first", (), ())))
        second = asyncio.create_task(engine.submit("vgg", compare_and_set))
        early, _ = await asyncio.wait([first, second], timeout=0.05)
        assert 0 == len(early)
        store.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 5)
        reasons = [answer.reason for answer in answers if isinstance(answer, DomainError)]
        assert ([Reason.REVISION_MISMATCH] if failure is None else [Reason.STORE_FULL] * 2) == reasons
        await engine.stop()

    asyncio.run(run())


def test_a_failed_store_ends_the_engine_and_says_so() -> None:
    async def run() -> None:
        store = MemoryStore()
        engine = Engine(store, Hub(store), Metrics("test"))
        await engine.start()
        store.failure = StoreFailedError("fsync failed")
        for _ in range(2):
            with pytest.raises(DomainError) as caught:
                await engine.submit("vgg", lambda _: REGISTERED)
            assert Reason.SHUTTING_DOWN is caught.value.reason
        assert "fsync failed" == str(await asyncio.wait_for(engine.failed, 5))
        await engine.stop()

    asyncio.run(run())


def test_a_fault_in_one_decision_does_not_end_the_writer(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        store = MemoryStore()
        engine = Engine(store, Hub(store), Metrics("test"))
        await engine.start()
        with pytest.raises(ZeroDivisionError):
            await engine.submit("vgg", lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        assert await engine.submit("vgg", lambda _: REGISTERED) is not None
        await engine.stop()

    asyncio.run(run())
    assert "decision on job vgg failed" in caplog.text


def test_a_log_that_does_not_fold_is_not_served() -> None:
    async def run() -> None:
        store = MemoryStore()
        await store.append([draft("never-registered", 1)])
        engine = Engine(store, Hub(store), Metrics("test"))
        with pytest.raises(Exception, match="does not fold"):
            await engine.start()
        await engine.stop()

    asyncio.run(run())
