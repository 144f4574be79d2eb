"""The one way in which a change is made, whoever asks and by whatever protocol: rate, repeats, dry runs, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Counter

from livetuned.domain import decide
from livetuned.domain.decide import When
from livetuned.domain.errors import DomainError
from livetuned.domain.job import Job
from livetuned.domain.records import Cancelled, Changed, Record, Scheduled
from livetuned.service import clock
from livetuned.service.engine import Engine
from livetuned.service.metrics import Metrics
from livetuned.service.rates import Rates
from livetuned.service.sessions import Sessions


@dataclass(slots=True)
class Wish:
    """A change that somebody wants."""

    decide: Callable[[Job], Changed | None]
    """Decides on the job's state; None if it asks for nothing that is not pending already."""
    same: Callable[[Changed], None]
    """Raises unless a change made earlier under the same request id is this one."""
    when: When | None = None
    """At which step it is to take effect, None for at once."""
    request_id: str = ""
    validate_only: bool = False
    """Check everything, change nothing."""
    triggers: tuple[str, ...] = ()
    """The triggers that it names: what a firing that asks for nothing new is merged into is one of theirs."""


@dataclass(slots=True)
class Made:
    """What became of a wish."""

    record: Record
    """The change, or that it was scheduled; with revision 0 if it was only to be validated."""
    connected_ranks: list[int]
    """Ranks that were connected then."""


class Told(Protocol):
    """Who is told what became of a wish; an `asyncio.Future` is one. Called on the event loop."""

    def done(self) -> bool:
        """Tells whether nobody wants to know any more."""

    def set_result(self, result: Made, /) -> None:
        """Takes what was made."""

    def set_exception(self, exception: Exception, /) -> None:
        """Takes what `Changes.make` would raise."""


class _Asked:
    """A wish on its way through the engine, decided once for a request id."""

    __slots__ = ("_changes", "earlier", "job", "told", "wish")

    def __init__(self, changes: Changes, job: str, wish: Wish, told: Told) -> None:
        self._changes = changes
        self.job = job
        self.wish = wish
        self.told = told
        self.earlier = 0
        """Revision of the change that was made under this request id before, 0 for none."""

    def decide(self, job: Job | None) -> Changed | Scheduled | None:
        if job is None:
            raise decide.job_not_found(self.job, [])
        request_id = self.wish.request_id
        self.earlier = job.requests.get(request_id) if request_id else 0
        return None if self.earlier else self._changes.decide(job, self.wish)

    def done(self) -> bool:
        return self.told.done()

    def set_result(self, result: Record | None) -> None:
        self._changes.settle(self, result)

    def set_exception(self, exception: Exception) -> None:
        self._changes.refuse(exception, self.told)


class Changes:
    """Makes changes. Belongs to one event loop.

    Args:
        engine: Who decides and commits.
        sessions: Who knows the connected ranks.
        metrics: Where results are counted.
        rates: How often a caller may.
    """

    def __init__(self, engine: Engine, sessions: Sessions, metrics: Metrics, rates: Rates) -> None:
        self._engine = engine
        self._sessions = sessions
        self._metrics = metrics
        self._rates = rates
        self._counters: dict[str, Counter] = {}
        self._reading: set[asyncio.Task[None]] = set()

    def job(self, name: str) -> Job:
        """Returns a job's state.

        Raises:
            DomainError: JOB_NOT_FOUND.
        """
        job = self._engine.job(name)
        if job is None:
            raise decide.job_not_found(name, [other.name for other in self._engine.jobs()])
        return job

    async def make(self, caller: str, name: str, wish: Wish) -> Made:
        """Makes a change of a job.

        Args:
            caller: Who asks, for the rate.
            name: The job's name.
            wish: What is asked.

        Raises:
            DomainError: What the decision raises, REQUEST_ID_REUSED, JOB_NOT_FOUND, LIMIT_EXCEEDED, or of the engine.
        """
        made: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self.begin(caller, name, wish, made)
        return await made

    def begin(self, caller: str, name: str, wish: Wish, told: Told, *, alone: bool = False) -> None:
        """Makes a change, as `make`, and tells the outcome when it is there, at once if it is. Never raises.

        With `alone` the caller has no other change to hand in now.
        """
        try:
            self._rates.take(caller)
            job = self.job(name)
            if wish.validate_only:
                changed = self.decide(job, wish)
                if changed is None:
                    self._later(self._merged(name, wish), told)
                else:
                    self._tell(Record(0, clock.wall_us(), name, changed), "validated", told)
                return
            self._engine.hand_in(_Asked(self, name, wish, told), alone=alone)
        except DomainError as error:
            self.refuse(error, told)

    def decide(self, job: Job, wish: Wish) -> Changed | Scheduled | None:
        """Decides on a wish.

        Raises:
            DomainError: What the wish raises, and what `decide.schedule` does.
        """
        changed = wish.decide(job)
        if changed is None or wish.when is None:
            return changed
        self._sessions.check_takes_scheduled(job)
        return decide.schedule(job, changed, wish.when, self._sessions.step(job))

    async def cancel(self, name: str, revision: int, *, actor: str, reason: str) -> Record:
        """Cancels a change that waits for its step.

        Returns:
            What had been scheduled.

        Raises:
            DomainError: JOB_NOT_FOUND, what `decide.cancel` raises, or of the engine.
        """
        self.job(name)
        waited: list[Record] = []

        def decided(job: Job | None) -> Cancelled:
            if job is None:
                raise decide.job_not_found(name, [])
            cancelled = decide.cancel(job, revision, actor=actor, reason=reason)
            state = job.scheduled[revision]
            waited[:] = [Record(revision, state.time_us, name, state.scheduled)]
            return cancelled

        await self._engine.submit(name, decided)
        return waited[0]

    def settle(self, asked: _Asked, record: Record | None) -> None:
        """Tells what came of a decision."""
        if record is not None:
            if isinstance(record.payload, Changed):
                self._sessions.committed(record.revision)
            self._tell(record, "accepted" if isinstance(record.payload, Changed) else "scheduled", asked.told)
        elif asked.earlier:
            self._later(self._repeated(asked), asked.told)
        else:
            self._later(self._merged(asked.job, asked.wish), asked.told)

    def refuse(self, error: Exception, told: Told) -> None:
        """Tells why a wish is not granted."""
        if isinstance(error, DomainError):
            self._count(error.reason.name.lower())
        if not told.done():
            told.set_exception(error)

    def _tell(self, record: Record, result: str, told: Told) -> None:
        self._count(result)
        if not told.done():
            told.set_result(Made(record, [session.rank for session in self._sessions.connected(record.job)]))

    def _count(self, result: str) -> None:
        counter = self._counters.get(result)
        if counter is None:
            counter = self._counters[result] = self._metrics.changes.labels(result)
        counter.inc()

    def _later(self, work: Coroutine[None, None, tuple[Record, str]], told: Told) -> None:
        """Tells what must be read from the store first."""

        async def run() -> None:
            try:
                record, result = await work
                self._tell(record, result, told)
            except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
                self.refuse(error, told)

        task = asyncio.create_task(run())
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _repeated(self, asked: _Asked) -> tuple[Record, str]:
        job, revision = self.job(asked.job), asked.earlier
        waits = job.scheduled.get(revision)
        if waits is not None:
            decide.check_same_step(waits.scheduled.change, waits.scheduled.step, asked.wish.when)
            asked.wish.same(waits.scheduled.change)
            return Record(revision, waits.time_us, job.name, waits.scheduled), "repeated"
        made = decide.find_change(job, revision, await self._engine.change(job, revision))
        if isinstance(made.payload, Changed):
            decide.check_same_step(made.payload, 0, asked.wish.when)
            asked.wish.same(made.payload)
        return made, "repeated"

    async def undo_wish(
        self, name: str, revision: int, *, force: bool, actor: str, reason: str, request_id: str, validate_only: bool
    ) -> Wish:
        """Returns the wish to undo a change.

        Raises:
            DomainError: JOB_NOT_FOUND, CHANGE_NOT_FOUND, or INVALID_REQUEST for one that waits for its step.
        """
        job = self.job(name)
        revision = decide.made_of(job, revision)
        undone = decide.find_change(job, revision, await self._engine.change(job, revision))
        return Wish(
            lambda job: decide.undo(job, undone, force=force, actor=actor, reason=reason, request_id=request_id),
            lambda made: decide.check_same_undo(made, revision),
            request_id=request_id,
            validate_only=validate_only,
        )

    async def _merged(self, name: str, wish: Wish) -> tuple[Record, str]:
        """Returns the newest firing of the triggers named: what a firing that adds nothing is merged into."""
        job = self.job(name)
        newest = max(job.triggers[name].revision for name in wish.triggers)
        return decide.find_change(job, newest, await self._engine.change(job, newest)), "merged"
