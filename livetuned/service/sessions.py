"""Training processes: who is connected, what each job is doing, and what processes ask of the engine."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from livetuned.domain import decide, limits
from livetuned.domain.decide import Declaration, Kept
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.job import Job
from livetuned.domain.records import Applied, Outcome, Payload, PortMoved, Process, Registered
from livetuned.domain.specs import TriggerSpec
from livetuned.service import clock
from livetuned.service.engine import Decide, Engine
from livetuned.service.jobmetrics import JobMetrics, Source
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports

log = logging.getLogger(__name__)

RETURN_GRACE_SECONDS = 10.0
"""After a restart of the daemon, how long a rank is kept for the process that held it before another may take it."""


class JobStatus(Enum):
    """What a job is doing."""

    STARTING = "starting"
    RUNNING = "running"
    LOST = "lost"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class Session:
    """The open stream of one rank."""

    job: str
    rank: int
    instance_id: str
    since: float
    """Monotonic time of its opening."""
    source: Source
    """Where what it logs is kept."""
    step: int = -1
    """Last step it told of; -1 before the first safe point."""
    takes_scheduled: bool = False
    """It can hold changes until their step."""
    adopt: bool = False
    """It was tuned by another store than this one: what it uses stands."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a process is answered when it registers."""

    job: Job
    revision: int
    """Revision of the registration."""
    token: str
    """Secret that opens the session; the daemon keeps its hash only."""


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


class Sessions:
    """The live side of jobs. What must survive the daemon goes through the engine; who is connected does not.

    Args:
        engine: The writer.
        ports: Designated ports.
        metrics: Sessions, jobs, applies.
    """

    def __init__(self, engine: Engine, ports: Ports, metrics: Metrics) -> None:
        self._engine = engine
        self._ports = ports
        self._metrics = metrics
        self.logged = JobMetrics(metrics)
        """What their programs logged: it lives as long as the jobs, and no longer than the daemon."""
        self._open: dict[str, dict[int, Session]] = {}
        self._kept_until = clock.monotonic() + RETURN_GRACE_SECONDS
        self._kept: set[tuple[str, int]] = set()
        self._last_steps: dict[str, int] = {}
        self._commit_times: OrderedDict[int, float] = OrderedDict()
        self._registering = asyncio.Lock()

    async def recover(self) -> None:
        """Serves the ports of the jobs that have not ended, moving a job whose port another program holds."""
        jobs = self._engine.jobs()
        for job in jobs:
            if job.ended is not None and job.last_port:
                self._ports.rest(job.name, job.last_port)
        for job in jobs:
            if job.ended is not None:
                continue
            self._kept.update((job.name, rank) for rank in job.ranks)
            try:
                port = await self._ports.acquire(job.name, job.last_port)
            except DomainError as error:
                log.warning("job %s has no port until it registers again: %s", job.name, error)
                port = 0
            if port != job.port:
                log.warning("port %d of job %s can't be had any more: moved to %d", job.port, job.name, port)
                await self._engine.submit(job.name, _port_moved(port))

    def connected(self, job: str) -> list[Session]:
        """Returns the open sessions of a job by rank."""
        ranks = self._open.get(job)
        return [session for _, session in sorted(ranks.items())] if ranks else []

    def step(self, job: Job) -> int:
        """Returns the step a job is at, or the last one that is known of it; 0 if none is."""
        if job.ended is not None:
            return job.ended.step
        if sessions := self.connected(job.name):
            return max(0, *(session.step for session in sessions))
        applied = (value.step for state in job.variables.values() for value in state.applied.values())
        return max([self._last_steps.get(job.name, 0), *applied])

    def check_takes_scheduled(self, job: Job) -> None:
        """Checks that a job's processes can hold changes until their step. One that is away is trusted to.

        Raises:
            DomainError: SCHEDULE_UNKNOWN.
        """
        for session in self.connected(job.name):
            if not session.takes_scheduled:
                version = job.ranks[session.rank].process.sdk_version or "unknown"
                raise DomainError(
                    Reason.SCHEDULE_UNKNOWN,
                    f"rank {session.rank} of job '{job.name}' can't hold a change until its step: its SDK, {version}, "
                    "is too old",
                    job=job.name,
                    value=version,
                )

    def status(self, job: Job) -> JobStatus:
        """Tells what a job is doing."""
        if job.ended is not None:
            return JobStatus.FAILED if job.ended.failed else JobStatus.FINISHED
        sessions = self.connected(job.name)
        if not sessions:
            return JobStatus.LOST
        return JobStatus.RUNNING if any(session.step >= 0 for session in sessions) else JobStatus.STARTING

    def count_jobs(self) -> None:
        """Brings the gauges of jobs, sessions and ports up to date."""
        counts = dict.fromkeys(JobStatus, 0)
        for job in self._engine.jobs():
            counts[self.status(job)] += 1
        for status, count in counts.items():
            self._metrics.jobs.labels(status.value).set(count)
        self._metrics.sessions.set(sum(map(len, self._open.values())))
        self._metrics.job_ports.set(len(self._ports))

    async def register(
        self,
        name: str,
        *,
        rank: int,
        world_size: int,
        instance_id: str,
        process: Process,
        token: str = "",
        leads: bool = False,
    ) -> Registration:
        """Registers a process as a rank of a job; assigns the job's port if it has none.

        Args:
            name: The job's name.
            rank: The rank it takes.
            world_size: Number of ranks.
            instance_id: The process's own id.
            process: Where it runs.
            token: What an earlier registration of this instance was answered with; without it, a new one is given.
            leads: Whether it speaks for all ranks.

        Raises:
            DomainError: JOB_EXISTS, PORTS_EXHAUSTED, or what `decide.register` raises.
        """
        async with self._registering:
            known = self._engine.job(name)
            self._check_free(known, name, rank, instance_id)
            token, new_hash = self._token(known, rank, instance_id, token)

            def registered(job: Job | None, port: int) -> Registered | None:
                return decide.register(
                    job,
                    name,
                    rank=rank,
                    world_size=world_size,
                    instance_id=instance_id,
                    process=process,
                    port=port,
                    active_jobs=sum(other.ended is None for other in self._engine.jobs()),
                    token_hash=new_hash,
                    leads=leads,
                )

            served_before = self._ports.port(name)
            # Decide once without a port: what is refused anyway must not start a server.
            registered(known, known.port if known else 0)
            port = await self._ports.acquire(name, known.last_port if known else 0)
            try:
                await self._engine.submit(name, lambda job: registered(job, port))
            except BaseException:
                if not served_before:
                    self._ports.release(name)
                raise
        job = decide.check_registered(self._engine.job(name), name, rank, instance_id)
        log.info("job %s registered: run %d, rank %d of %d, port %d", name, job.run, rank, world_size, job.port)
        return Registration(job, job.ranks[rank].revision, token)

    def _token(self, job: Job | None, rank: int, instance_id: str, shown: str) -> tuple[str, str]:
        """Returns the token of a registration, and its hash if it is a new one."""
        held = None if job is None else job.ranks.get(rank)
        if held is not None and held.instance_id == instance_id and hmac.compare_digest(held.token_hash, _hash(shown)):
            return shown, ""
        token = secrets.token_urlsafe(32)
        return token, _hash(token)

    def _check_free(self, job: Job | None, name: str, rank: int, instance_id: str) -> None:
        if job is None or job.ended is not None or rank not in job.ranks:
            return
        holder = job.ranks[rank]
        if holder.instance_id == instance_id:
            return
        process = holder.process
        who = f"process {process.pid} of {process.user or 'an unknown user'} on {process.host or 'an unknown host'}"
        if rank in self._open.get(name, {}):
            why = "which is connected; stop it or choose another name"
        elif (name, rank) in self._kept and clock.monotonic() < self._kept_until:
            why = "which may come back after the daemon's restart; try again in a few seconds"
        else:
            return
        raise DomainError(
            Reason.JOB_EXISTS,
            f"job '{name}' is held by {who}, {why}",
            job=name,
            rule="one live job of a name",
        )

    def open(
        self,
        name: str,
        rank: int,
        instance_id: str,
        token: str,
        declared_store_id: str = "",
        *,
        takes_scheduled: bool = False,
    ) -> Session:
        """Opens the session of a registered process. A newer session of the same process takes the older one's place.

        Args:
            name: The job's name.
            rank: The process's rank.
            instance_id: The process's own id.
            token: What its registration was answered with.
            declared_store_id: The store that last took its declarations, ``""`` for none.
            takes_scheduled: It can hold changes until their step.

        Raises:
            DomainError: NOT_REGISTERED, JOB_ENDED or LIMIT_EXCEEDED.
        """
        job = decide.check_registered(self._engine.job(name), name, rank, instance_id)
        if not hmac.compare_digest(job.ranks[rank].token_hash, _hash(token)):
            raise DomainError(
                Reason.NOT_REGISTERED,
                f"the token is not that of the registration of rank {rank} of job '{name}': register first",
                job=name,
            )
        if sum(map(len, self._open.values())) >= limits.SESSIONS:
            raise limit_exceeded("sessions", limits.SESSIONS, "one session more")
        if job.ended is not None:
            raise DomainError(Reason.JOB_ENDED, f"job '{name}' has ended", job=name)
        self._kept.discard((name, rank))
        adopt = bool(declared_store_id) and declared_store_id != self._engine.store_id
        source = self.logged.open(name, rank, job.run)
        session = Session(
            name, rank, instance_id, clock.monotonic(), source, takes_scheduled=takes_scheduled, adopt=adopt
        )
        self._open.setdefault(name, {})[rank] = session
        return session

    def close(self, session: Session) -> None:
        """Closes a session; the job is lost if it was the last one and the job has not ended."""
        self.logged.close(session.source)
        ranks = self._open.get(session.job, {})
        if ranks.get(session.rank) is session:
            del ranks[session.rank]
            if not ranks:
                del self._open[session.job]
            self._last_steps[session.job] = max(0, session.step)
            job = self._engine.job(session.job)
            if job is not None and job.ended is None:
                log.info("job %s: rank %d is gone at step %d", session.job, session.rank, session.step)

    async def declare(
        self, session: Session, variables: Sequence[Declaration], triggers: Sequence[TriggerSpec]
    ) -> tuple[Job, dict[str, DomainError]]:
        """Declares variables and triggers of a process.

        Returns:
            The job afterwards, and what was refused, by name.

        Raises:
            DomainError: NOT_REGISTERED, JOB_ENDED, or of the engine.
        """
        errors: dict[str, DomainError] = {}

        def decision(job: Job | None) -> Payload | None:
            known = decide.check_registered(job, session.job, session.rank, session.instance_id)
            declared, refused = decide.declare(
                known, session.rank, session.instance_id, variables, triggers, adopt=session.adopt
            )
            errors.clear()
            errors.update(refused)
            return declared

        await self._engine.submit(session.job, decision)
        job = decide.check_registered(self._engine.job(session.job), session.job, session.rank, session.instance_id)
        return job, errors

    async def reschedule(self, session: Session, kept: Kept) -> bool:
        """Lets a change wait that a process took over from a checkpoint. One that can't is noted, and left out.

        Returns:
            Whether it waits.

        Raises:
            DomainError: NOT_REGISTERED, JOB_ENDED, or of the engine.
        """
        try:
            await self._engine.submit(
                session.job,
                lambda job: decide.reschedule(
                    decide.check_registered(job, session.job, session.rank, session.instance_id),
                    session.rank,
                    session.instance_id,
                    kept,
                ),
            )
        except DomainError as error:
            if error.reason in (Reason.NOT_REGISTERED, Reason.JOB_ENDED, Reason.SHUTTING_DOWN):
                raise
            log.warning(
                "job %s: a change of its checkpoint, for step %d, is left out: %s", session.job, kept.step, error
            )
            return False
        return True

    async def report_due(self, session: Session, scheduled: int, step: int, outcomes: Sequence[Outcome]) -> int:
        """Makes the change of which a process says that its step has come, and records what it acknowledged.

        Args:
            session: The process's.
            scheduled: Revision at which the change was scheduled.
            step: The step at whose safe point it took effect.
            outcomes: What became of its assignments.

        Returns:
            The revision of the change.

        Raises:
            DomainError: What `decide.due` and `decide.report_apply` raise, or of the engine.
        """
        made = 0

        def decision(job: Job | None) -> Payload | None:
            nonlocal made
            known = decide.check_registered(job, session.job, session.rank, session.instance_id)
            changed = decide.due(known, session.rank, session.instance_id, scheduled)
            made = known.scheduled[scheduled].made
            return changed

        record = await self._engine.submit(session.job, decision)
        revision = made if record is None else record.revision
        if outcomes:
            await self.report_apply(session, revision, step, outcomes)
        return revision

    async def report_apply(
        self, session: Session, change_revision: int, step: int, outcomes: Sequence[Outcome]
    ) -> None:
        """Records what a process acknowledged.

        Raises:
            DomainError: What `decide.report_apply` raises, or of the engine.
        """
        session.step = max(session.step, step)
        record = await self._engine.submit(
            session.job,
            lambda job: decide.report_apply(
                decide.check_registered(job, session.job, session.rank, session.instance_id),
                session.rank,
                session.instance_id,
                change_revision,
                step,
                outcomes,
            ),
        )
        if record is not None and isinstance(record.payload, Applied):
            for outcome in record.payload.outcomes:
                self._metrics.applies.labels(outcome.status.value).inc()
            committed = self._commit_times.get(change_revision)
            if committed is not None and session.since <= committed:
                self._metrics.apply_seconds.observe(clock.monotonic() - committed)

    def committed(self, revision: int) -> None:
        """Notes the moment of a change's commit, from which the apply latency is counted."""
        self._commit_times[revision] = clock.monotonic()
        if len(self._commit_times) > 1_000:
            self._commit_times.popitem(last=False)

    async def end(self, session: Session, *, failed: bool, message: str, step: int) -> None:
        """Records the end of a job, said by its rank 0, and releases its port.

        Raises:
            DomainError: NOT_REGISTERED, LIMIT_EXCEEDED, or of the engine.
        """
        record = await self._engine.submit(
            session.job,
            lambda job: decide.end(
                decide.check_registered(job, session.job, session.rank, session.instance_id),
                session.rank,
                session.instance_id,
                failed=failed,
                message=message,
                step=step,
            ),
        )
        if record is not None:
            log.info("job %s has %s at step %d", session.job, "failed" if failed else "finished", step)
            self._ports.release(session.job)

    async def give_up(self, name: str, message: str) -> None:
        """Ends a job that is lost, as failed, and releases its port. Does nothing if it has ended already.

        Raises:
            DomainError: JOB_LIVE if a process is connected, or of the engine.
        """

        def decision(job: Job | None) -> Payload | None:
            if job is None:
                return None
            if self.connected(name):
                raise DomainError(Reason.JOB_LIVE, f"job '{name}' is connected: stop its program", job=name)
            return decide.give_up(job, message, self.step(job))

        if await self._engine.submit(name, decision) is not None:
            log.info("job %s is given up: %s", name, message)
            self._ports.release(name)

    async def remove(self, name: str, actor: str, reason: str) -> None:
        """Forgets a job that has ended. Does nothing if there is none.

        Raises:
            DomainError: JOB_LIVE if it has not ended, or of the engine.
        """
        await self._engine.submit(name, lambda job: None if job is None else decide.remove(job, actor, reason))
        self._last_steps.pop(name, None)
        self.logged.forget(name)


def _port_moved(port: int) -> Decide:
    return lambda job: None if job is None else PortMoved(port, job.port)
