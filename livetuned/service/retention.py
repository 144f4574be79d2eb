"""What is forgotten, and when: old history, jobs that ended long ago, jobs that are lost for good.

Ages are counted while the daemon runs, by the monotonic clock, and noted in the store: a wall clock that jumps by years
deletes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from bisect import bisect_right
from dataclasses import asdict, dataclass, field

from livetuned.domain import limits
from livetuned.domain.errors import DomainError
from livetuned.service import clock
from livetuned.service.engine import Engine
from livetuned.service.sessions import JobStatus, Sessions
from livetuned.store.interface import Store, StoreDamagedError, StoreFailedError, StoreFullError

log = logging.getLogger(__name__)

TICK_SECONDS = 60.0
"""How often it is looked whether something is due, in seconds."""
_NOTE_SECONDS = 600.0
"""How often ages are noted in the store, in seconds: so much may be forgotten by a crash."""
_MARK_SECONDS = 3_600.0
"""Distance of two marks of the history's age, in seconds."""
_COMPACT_RECORDS = 1_000
"""Fewer records than this are not worth a compaction, a count."""
_KEY = "retention"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what is kept."""

    records: int
    """Most records of history, a count."""
    history_seconds: float
    """Age of the oldest history kept, in seconds of the daemon's running."""
    ended_seconds: float
    """How long a job that ended stays readable, in the same seconds."""
    lost_seconds: float
    """After how long a lost job is given up, in the same seconds."""


@dataclass(slots=True)
class _Ages:
    """What is noted in the store."""

    uptime: float = 0.0
    """For how long daemons have run on this store, in seconds."""
    marks: list[tuple[float, int]] = field(default_factory=list)
    """Uptime and the store's revision then, oldest first."""
    lost: dict[str, float] = field(default_factory=dict)
    """By job: the uptime at which it was found lost."""
    ended: dict[str, float] = field(default_factory=dict)
    """By job: the uptime at which it was found ended."""


class Retention:
    """Belongs to one event loop.

    Args:
        engine: Who compacts and records.
        store: Where ages are noted.
        sessions: Who gives up and forgets jobs.
        policy: How long what is kept.
    """

    def __init__(self, engine: Engine, store: Store, sessions: Sessions, policy: Policy) -> None:
        self._engine = engine
        self._store = store
        self._sessions = sessions
        self._policy = policy
        self._ages = _Ages()
        self._noted = 0.0

    async def start(self) -> None:
        """Reads the ages noted.

        Raises:
            StoreDamagedError: They are not what was written.
        """
        text = await self._store.note(_KEY)
        if text:
            try:
                raw = json.loads(text)
                self._ages = _Ages(**{**raw, "marks": [(uptime, revision) for uptime, revision in raw["marks"]]})
            except (ValueError, TypeError, KeyError) as error:
                raise StoreDamagedError(f"the note of ages can't be read: {error!r}") from error
        self._noted = self._ages.uptime

    async def run(self) -> None:
        """Looks every minute. Ends when cancelled, or when the store failed."""
        last = clock.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = clock.monotonic()
            try:
                await self.tick(now - last)
            except StoreFailedError:
                return  # the engine learns of it with its own next commit
            except (StoreFullError, StoreDamagedError, DomainError) as error:
                log.warning("retention is put off: %s", error)
            last = now

    async def tick(self, elapsed: float) -> None:
        """Does what is due after so many more seconds.

        Raises:
            StoreFullError: No room; what was not done is done later.
            StoreFailedError: The store takes nothing more.
            StoreDamagedError: The history is damaged where it is to be dropped.
            DomainError: The daemon is stopping.
        """
        ages = self._ages
        ages.uptime += elapsed
        if not ages.marks or ages.uptime - ages.marks[-1][0] >= _MARK_SECONDS:
            ages.marks.append((ages.uptime, self._engine.revision))
        await self._forget_jobs()
        await self._compact()
        if ages.uptime - self._noted >= _NOTE_SECONDS:
            await self.note()

    async def note(self) -> None:
        """Notes the ages in the store.

        Raises:
            StoreFullError: No room.
            StoreFailedError: The store takes nothing more.
        """
        await self._store.put_note(_KEY, json.dumps(asdict(self._ages)))
        self._noted = self._ages.uptime

    async def _forget_jobs(self) -> None:
        ages, policy = self._ages, self._policy
        status = {job.name: self._sessions.status(job) for job in self._engine.jobs()}
        lost = [name for name, now in status.items() if now is JobStatus.LOST]
        ended = [name for name, now in status.items() if now in (JobStatus.FINISHED, JobStatus.FAILED)]
        ages.lost = {name: ages.lost.get(name, ages.uptime) for name in lost}
        ages.ended = {name: ages.ended.get(name, ages.uptime) for name in ended}
        for name, since in ages.lost.items():
            if ages.uptime - since >= policy.lost_seconds:
                await self._sessions.give_up(name, f"lost for {(ages.uptime - since) / 3_600:.0f} h")
        too_many = len(ended) - limits.ENDED_JOBS
        for number, (name, since) in enumerate(sorted(ages.ended.items(), key=lambda item: item[1])):
            if number < too_many or ages.uptime - since >= policy.ended_seconds:
                await self._sessions.remove(name, "livetuned", "ended longer ago than jobs are kept")

    async def _compact(self) -> None:
        ages, policy = self._ages, self._policy
        through = self._engine.revision - policy.records
        old = bisect_right(ages.marks, ages.uptime - policy.history_seconds, key=lambda mark: mark[0])
        if old:
            through = max(through, ages.marks[old - 1][1])
        through = min(through, self._engine.covered)
        if through - self._engine.compacted >= _COMPACT_RECORDS:
            log.info("history up to revision %d is dropped", through)
            await self._engine.compact(through)
        # One mark before the age that counts is enough.
        del ages.marks[: max(0, old - 1)]
