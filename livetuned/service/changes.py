"""The one way in which a change is made, whoever asks and by whatever protocol: rate, repeats, dry runs, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from livetuned.domain import decide
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.job import Job
from livetuned.domain.records import Changed, Record
from livetuned.service import clock
from livetuned.service.engine import Engine
from livetuned.service.metrics import Metrics
from livetuned.service.rates import Rates
from livetuned.service.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Wish:
    """A change that somebody wants."""

    decide: Callable[[Job], Changed | None]
    """Decides on the job's state; None if it asks for nothing that is not pending already."""
    same: Callable[[Changed], None]
    """Raises unless a change made earlier under the same request id is this one."""
    request_id: str = ""
    validate_only: bool = False
    """Check everything, change nothing."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a wish."""

    record: Record
    """The change; with revision 0 if it was only to be validated."""
    connected_ranks: list[int]
    """Ranks that were connected then."""


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
        count = self._metrics.changes.labels
        try:
            self._rates.take(caller)
            record, result = await self._make(name, wish)
        except DomainError as error:
            count(error.reason.name.lower()).inc()
            raise
        count(result).inc()
        if result == "accepted":
            self._sessions.committed(record.revision)
        return Made(record, [session.rank for session in self._sessions.connected(name)])

    async def undo_wish(
        self, name: str, revision: int, *, force: bool, actor: str, reason: str, request_id: str, validate_only: bool
    ) -> Wish:
        """Returns the wish to undo a change.

        Raises:
            DomainError: JOB_NOT_FOUND or CHANGE_NOT_FOUND.
        """
        job = self.job(name)
        undone = decide.find_change(job, revision, await self._engine.change(job, revision))
        return Wish(
            lambda job: decide.undo(job, undone, force=force, actor=actor, reason=reason, request_id=request_id),
            lambda made: decide.check_same_undo(made, revision),
            request_id,
            validate_only,
        )

    async def _make(self, name: str, wish: Wish) -> tuple[Record, str]:
        job = self.job(name)
        if wish.validate_only:
            changed = wish.decide(job)
            if changed is None:
                return await self._pending(job), "merged"
            return Record(0, clock.wall_us(), name, changed), "validated"
        earlier = 0

        def once(job: Job | None) -> Changed | None:
            nonlocal earlier
            if job is None:
                raise decide.job_not_found(name, [])
            earlier = job.requests.get(wish.request_id, 0) if wish.request_id else 0
            return None if earlier else wish.decide(job)

        record = await self._engine.submit(name, once)
        if record is not None:
            return record, "accepted"
        job = self.job(name)
        if not earlier:
            return await self._pending(job), "merged"
        made = decide.find_change(job, earlier, await self._engine.change(job, earlier))
        if isinstance(made.payload, Changed):
            wish.same(made.payload)
        return made, "repeated"

    async def _pending(self, job: Job) -> Record:
        """Returns the newest firing that waits to be consumed: what a merged firing is merged into."""
        waiting = [state.pending[-1] for state in job.triggers.values() if state.pending]
        if not waiting:  # consumed in the meantime: what was asked has happened
            waiting = [state.revision for state in job.triggers.values() if state.revision]
        return decide.find_change(job, max(waiting), await self._engine.change(job, max(waiting)))


def not_one_of(job: str) -> DomainError:
    """Builds the refusal for a wish that names nothing to do."""
    return DomainError(Reason.INVALID_REQUEST, f"the request asks nothing of job '{job}'", rule="set, fire or undo")
