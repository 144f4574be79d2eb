"""What is forgotten and when, without a disk and without waiting: time is what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.records import Changed, Draft, Ended, Registered
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports
from livetuned.service.rates import Rates
from livetuned.service.retention import Policy, Retention
from livetuned.service.sessions import JobStatus, Sessions
from livetuned.store.interface import StoreDamagedError
from support.domain import PROCESS
from support.memory_store import MemoryStore

HOUR = 3_600.0


class Daemon:
    """The parts that retention works with."""

    def __init__(self, store: MemoryStore, policy: Policy, lag: int = 10) -> None:
        metrics = Metrics("test")
        self.engine = Engine(store, Hub(store), metrics, snapshot_lag=lag)

        async def serve(port: int, job: str) -> Callable[[], Awaitable[None]]:
            async def stop() -> None:
                pass

            return stop

        self.ports = Ports(21_000, 21_010, serve)
        self.sessions = Sessions(self.engine, self.ports, metrics)
        self.retention = Retention(self.engine, store, self.sessions, policy)

    async def start(self) -> None:
        await self.engine.start()
        await self.sessions.recover()
        await self.retention.start()


def policy(records: int = 10**9, history: float = 10**9, ended: float = 10**9, lost: float = 10**9) -> Policy:
    return Policy(records, history, ended, lost)


async def register(daemon: Daemon, name: str) -> None:
    await daemon.sessions.register(name, rank=0, world_size=1, instance_id=name, process=PROCESS)


async def fill(daemon: Daemon, name: str, count: int) -> None:
    for number in range(count):
        await daemon.engine.submit(name, lambda _, number=number: Changed("", "", str(number), (), ()))  # type: ignore[misc]


def test_history_is_kept_by_count_as_far_as_snapshots_cover_it() -> None:
    async def run() -> None:
        store = MemoryStore()
        daemon = Daemon(store, policy(records=1_500))
        await daemon.start()
        await register(daemon, "vgg")
        await fill(daemon, "vgg", 3_000)
        await daemon.retention.tick(1.0)
        assert daemon.engine.revision - 1_500 == daemon.engine.compacted
        await daemon.retention.tick(1.0)  # fewer than a thousand more: not worth it
        await fill(daemon, "vgg", 900)
        await daemon.retention.tick(1.0)
        assert 3_001 - 1_500 == daemon.engine.compacted
        with daemon.engine.nothing_compacted():
            await fill(daemon, "vgg", 1_000)
            await daemon.retention.tick(1.0)
            assert 3_001 - 1_500 == daemon.engine.compacted
        await daemon.engine.stop()

    asyncio.run(run())


def test_history_is_kept_by_age_of_the_daemons_own_running() -> None:
    async def run() -> None:
        store = MemoryStore()
        daemon = Daemon(store, policy(history=10 * HOUR))
        await daemon.start()
        await register(daemon, "vgg")
        await fill(daemon, "vgg", 1_500)
        await daemon.retention.tick(HOUR)
        marked = daemon.engine.revision
        await fill(daemon, "vgg", 1_500)
        for _ in range(9):
            await daemon.retention.tick(HOUR)
        assert 0 == daemon.engine.compacted
        await daemon.engine.stop()

        # Another daemon on the same store goes on counting where this one noted its ages.
        await daemon.retention.note()
        again = Daemon(store, policy(history=10 * HOUR))
        await again.start()
        await again.retention.tick(1.5 * HOUR)
        assert marked == again.engine.compacted
        await again.engine.stop()

    asyncio.run(run())


def test_lost_jobs_are_given_up_and_ended_ones_forgotten() -> None:
    async def run() -> None:
        store = MemoryStore()
        daemon = Daemon(store, policy(ended=3 * HOUR, lost=2 * HOUR))
        await daemon.start()
        await register(daemon, "lost")
        await register(daemon, "live")
        live = await daemon.sessions.register("live", rank=0, world_size=1, instance_id="live", process=PROCESS)
        daemon.sessions.open("live", 0, "live", live.token)
        await daemon.retention.tick(HOUR)
        await daemon.retention.tick(HOUR)
        assert 21_000 == daemon.ports.port("lost")
        await daemon.retention.tick(HOUR)
        job = daemon.engine.job("lost")
        assert job is not None
        assert JobStatus.FAILED is daemon.sessions.status(job)
        assert job.ended is not None
        assert "lost for 2 h" == job.ended.message
        assert 0 == daemon.ports.port("lost")
        for _ in range(4):
            await daemon.retention.tick(HOUR)
        assert None is daemon.engine.job("lost")
        assert daemon.engine.job("live") is not None
        await daemon.engine.stop()

    asyncio.run(run())


def test_a_job_that_comes_back_is_not_given_up() -> None:
    async def run() -> None:
        daemon = Daemon(MemoryStore(), policy(lost=2 * HOUR))
        await daemon.start()
        await register(daemon, "vgg")
        await daemon.retention.tick(HOUR)
        await daemon.retention.tick(HOUR)
        back = await daemon.sessions.register("vgg", rank=0, world_size=1, instance_id="vgg", process=PROCESS)
        session = daemon.sessions.open("vgg", 0, "vgg", back.token)
        await daemon.retention.tick(10 * HOUR)
        daemon.sessions.close(session)
        await daemon.retention.tick(HOUR)
        job = daemon.engine.job("vgg")
        assert job is not None
        assert JobStatus.LOST is daemon.sessions.status(job)
        with pytest.raises(DomainError) as caught:
            await daemon.sessions.remove("vgg", "ann", "")
        assert Reason.JOB_LIVE is caught.value.reason
        await daemon.engine.stop()

    asyncio.run(run())


def test_of_too_many_ended_jobs_the_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENDED_JOBS", 2)

    async def run() -> None:
        store = MemoryStore()
        for number in range(4):
            name = f"job{number}"
            registered = Registered(1, 21_000 + number, 0, 1, name, False, PROCESS)
            await store.append([Draft(0, name, registered), Draft(0, name, Ended(False, "", 1))])
        daemon = Daemon(store, policy())
        await daemon.start()
        await daemon.retention.tick(1.0)
        assert 2 == len(daemon.engine.jobs())
        await daemon.engine.stop()

    asyncio.run(run())


def test_ages_that_cannot_be_read_are_noticed() -> None:
    async def run() -> None:
        store = MemoryStore()
        await store.put_note("retention", '{"uptime": 1.0, "marks": 7}')
        daemon = Daemon(store, policy())
        with pytest.raises(StoreDamagedError, match="ages"):
            await daemon.start()
        await daemon.engine.stop()

    asyncio.run(run())


def test_a_caller_that_is_too_fast_is_refused_and_the_others_are_not() -> None:
    now = 0.0
    rates = Rates(10.0, 20, now=lambda: now)
    for _ in range(20):
        rates.take("script")
    with pytest.raises(DomainError) as caught:
        rates.take("script")
    assert Reason.LIMIT_EXCEEDED is caught.value.reason
    assert ("changes_per_second", "10") == (caught.value.metadata["limit"], caught.value.metadata["maximum"])
    rates.take("ann")
    now = 0.5
    for _ in range(5):
        rates.take("script")
    with pytest.raises(DomainError):
        rates.take("script")
    now = 100.0
    rates.take("script", 20)


def test_callers_silent_longest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALLERS", 2)
    rates = Rates(1.0, 1, now=lambda: 0.0)
    for caller in ("a", "b", "c"):
        rates.take(caller)
    rates.take("a")  # begins anew
    with pytest.raises(DomainError):
        rates.take("c")
