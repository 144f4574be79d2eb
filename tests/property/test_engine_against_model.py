"""Engine and SQLite store against the pure state: random requests, crashes and reopenings; what was answered stays true."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from livetuned.domain import decide
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job
from livetuned.domain.records import ApplyStatus, Changed, Outcome, Payload, Record
from livetuned.domain.specs import TriggerSpec
from livetuned.domain.state import State
from livetuned.service.engine import Engine
from livetuned.service.hub import Cursor, Hub
from livetuned.service.metrics import Metrics
from livetuned.store.interface import CompactedError
from livetuned.store.sqlite import SqliteStore
from support.domain import PROCESS, spec

JOBS = st.sampled_from(["one", "two"])
INSTANCES = st.sampled_from(["a", "b"])


class EngineMachine(RuleBasedStateMachine):
    """The model is a plain dictionary that knows what must hold, and the fold over what a watcher was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.desired: dict[tuple[str, str], float] = {}
        self.instance: dict[str, str] = {}
        self.pending: dict[str, list[int]] = {}
        self.newest: dict[str, int] = {}
        self.acknowledged: list[int] = []
        self.watched = State()
        self.open()

    def open(self) -> None:
        async def start() -> None:
            self.store = SqliteStore(Path(self.folder.name) / "s.db")
            self.hub = Hub(self.store, capacity=4)
            self.engine = Engine(self.store, self.hub, Metrics("test"), snapshot_lag=5)
            await self.engine.start()

        self.loop.run_until_complete(start())
        self.cursor: Cursor = self.hub.cursor(self.watched.revision)

    def submit(
        self, *requests: tuple[str, Callable[[Job | None], Payload | None]]
    ) -> list[Record | DomainError | None]:
        async def run() -> list[Record | DomainError | None]:
            answers = await asyncio.gather(
                *(self.engine.submit(job, decision) for job, decision in requests), return_exceptions=True
            )
            return list(answers)  # type: ignore[arg-type] # an exception of another kind fails the caller's assert

        answers = self.loop.run_until_complete(run())
        self.acknowledged += [answer.revision for answer in answers if isinstance(answer, Record)]
        return answers

    @initialize()
    def register_both(self) -> None:
        for job in ("one", "two"):
            self.register(job, "a")

    @rule(job=JOBS, instance=INSTANCES)
    def register(self, job: str, instance: str) -> None:
        (answer,) = self.submit(
            (
                job,
                lambda state: decide.register(
                    state, job, rank=0, world_size=1, instance_id=instance, process=PROCESS, port=21000, active_jobs=0
                ),
            )
        )
        state = self.engine.job(job)
        assert state is not None
        if self.instance.get(job) == instance:
            # An instance that said it ended may not come back; one that is registered records nothing new.
            assert answer is None or isinstance(answer, DomainError)
            return
        if (job, "lr") in self.desired and state.run > 1 and not state.variables:
            self.forget(job)
        self.instance[job] = instance

    def forget(self, job: str) -> None:
        self.desired.pop((job, "lr"), None)
        self.desired.pop((job, "wd"), None)
        self.pending.pop(job, None)

    @rule(job=JOBS)
    def declare(self, job: str) -> None:
        def decision(state: Job | None) -> Payload | None:
            assert state is not None
            declarations = [
                decide.Declaration(item, item.initial) for item in (spec("lr", 0.5, 0.0, 1.0), spec("wd", 0.0))
            ]
            declared, errors = decide.declare(state, 0, self.instance[job], declarations, [TriggerSpec("save")])
            assert {} == errors
            return declared

        (answer,) = self.submit((job, decision))
        if isinstance(answer, DomainError):
            assert Reason.JOB_ENDED is answer.reason
            return
        self.desired.setdefault((job, "lr"), 0.5)
        self.desired.setdefault((job, "wd"), 0.0)
        self.pending.setdefault(job, [])

    @rule(job=JOBS, values=st.lists(st.floats(-1, 2), min_size=1, max_size=4), wd=st.floats(allow_nan=True))
    def set_several_at_once(self, job: str, values: list[float], wd: float) -> None:
        def wish(value: float) -> Callable[[Job | None], Payload | None]:
            def decision(state: Job | None) -> Payload | None:
                assert state is not None
                return decide.set_variables(state, [decide.Update("lr", value=value), decide.Update("wd", value=wd)])

            return decision

        answers = self.submit(*((job, wish(value)) for value in values))
        for value, answer in zip(values, answers, strict=True):
            good = 0 <= value <= 1 and abs(wd) < float("inf") and (job, "lr") in self.desired and not self.ended(job)
            assert good == isinstance(answer, Record), answer
            if isinstance(answer, Record):
                assert isinstance(answer.payload, Changed)
                assert self.desired[job, "lr"] == answer.payload.assignments[0].old
                self.desired[job, "lr"], self.desired[job, "wd"] = value, wd
                self.newest[job] = answer.revision

    @rule(job=JOBS)
    def fire_and_consume(self, job: str) -> None:
        def fire(state: Job | None) -> Payload | None:
            assert state is not None
            return decide.fire_triggers(state, ["save"])

        fired = [answer for answer in self.submit((job, fire), (job, fire)) if isinstance(answer, Record)]
        assert len(fired) == (2 if (job, "lr") in self.desired and not self.ended(job) else 0)
        if fired:
            self.pending[job] += [record.revision for record in fired]
            oldest = self.pending[job].pop(0)
            outcome = Outcome("save", True, ApplyStatus.APPLIED, None)

            def consume(state: Job | None) -> Payload | None:
                assert state is not None
                return decide.report_apply(state, 0, self.instance[job], oldest, 1, [outcome])

            first, second = self.submit((job, consume), (job, consume))
            assert isinstance(first, Record)
            assert second is None

    def ended(self, job: str) -> bool:
        state = self.engine.job(job)
        return state is not None and state.ended is not None

    @rule(job=JOBS, failed=st.booleans())
    def end(self, job: str, failed: bool) -> None:
        def decision(state: Job | None) -> Payload | None:
            assert state is not None
            return decide.end(state, 0, self.instance[job], failed=failed, message="", step=1)

        self.submit((job, decision))
        assert self.ended(job)

    @rule()
    def crash_and_reopen(self) -> None:
        async def crash() -> None:
            # Nothing is flushed or waited for: the file is closed under the engine, as the end of the process does.
            for task in self.engine._tasks:
                task.cancel()
            await asyncio.gather(*self.engine._tasks, return_exceptions=True)
            await self.store.close()

        self.loop.run_until_complete(crash())
        self.open()

    @rule(job=JOBS, force=st.booleans())
    def undo_the_newest(self, job: str, force: bool) -> None:
        revision = self.newest.get(job, 0)
        state = self.engine.job(job)
        if not revision or state is None or self.ended(job) or (job, "lr") not in self.desired:
            return
        found = self.loop.run_until_complete(self.engine.change(state, revision))
        if not found:
            assert revision <= self.engine.compacted
            return

        def decision(state: Job | None) -> Payload | None:
            assert state is not None
            return decide.undo(state, found[0], force=force)

        (answer,) = self.submit((job, decision))
        if isinstance(answer, DomainError):
            assert Reason.UNDO_CONFLICT is answer.reason  # a declaration, or an undo, came after it
            assert not force
            return
        assert isinstance(answer, Record)
        assert isinstance(answer.payload, Changed)
        for item in answer.payload.assignments:
            assert self.desired[job, item.variable] == item.old
            self.desired[job, item.variable] = item.new  # type: ignore[assignment] # both are floats

    @rule(job=JOBS)
    def remove(self, job: str) -> None:
        def decision(state: Job | None) -> Payload | None:
            return None if state is None else decide.remove(state, "ann", "")

        (answer,) = self.submit((job, decision))
        assert isinstance(answer, Record) == (self.engine.job(job) is None)
        if isinstance(answer, Record):
            self.forget(job)
            self.instance.pop(job)
            self.newest.pop(job, None)
            self.register(job, "c")

    @rule(share=st.floats(0, 1))
    def compact(self, share: float) -> None:
        self.loop.run_until_complete(self.engine.compact(int(share * self.engine.revision)))
        assert self.engine.compacted <= self.engine.covered

    @rule()
    def watch_on(self) -> None:
        async def read() -> None:
            while self.cursor.position < self.hub.revision:
                try:
                    for record in await self.cursor.next():
                        self.watched.fold(record)  # refuses a gap, a repeat and disorder
                except CompactedError:
                    assert self.cursor.position < self.engine.compacted
                    self.watched = State(self.engine.jobs(), self.engine.revision)  # as a snapshot on a watch
                    self.cursor = self.hub.cursor(self.engine.revision)

        self.loop.run_until_complete(read())
        assert self.engine.revision == self.watched.revision
        assert {job.name: job for job in self.engine.jobs()} == self.watched.jobs

    @invariant()
    def what_was_answered_is_true(self) -> None:
        assert self.engine.revision == len(self.acknowledged)
        assert self.acknowledged == sorted(set(self.acknowledged))
        for (name, variable), value in self.desired.items():
            job = self.engine.job(name)
            assert job is not None
            if variable in job.variables:
                assert value == job.variables[variable].desired
        for name, pending in self.pending.items():
            job = self.engine.job(name)
            assert job is not None
            if job.triggers:
                assert tuple(pending) == job.triggers["save"].pending

    def teardown(self) -> None:
        self.loop.run_until_complete(self.engine.stop())
        self.loop.run_until_complete(self.store.close())
        self.loop.close()
        self.folder.cleanup()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
