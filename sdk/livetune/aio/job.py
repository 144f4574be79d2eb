"""Owns `Job` for programs on an event loop: the job's task, what waits for what becomes of it, and its ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from livetune import job
from livetune import messages as m
from livetune.aio.driver import TaskDriver, within
from livetune.conversation import Identity
from livetune.driver import Driver
from livetune.errors import JobFinishedError
from livetune.messages import AppliedChange
from livetune.ranks import Agreement

if TYPE_CHECKING:
    from typing_extensions import Self

    from livetune.recorder import Recorder
    from livetune.replay import Replay

__all__ = ["Job", "init"]

log = logging.getLogger("livetune")

T = TypeVar("T")


def init(
    name: str,
    *,
    endpoint: str | None = None,
    latest_only: bool = False,
    ranks: Agreement | None = None,
    record: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
) -> Job:
    """Make this process a tunable job that talks to the daemon on the running event loop. Returns at once.

    ``async with livetune.aio.init("rl-agent") as job:`` ends the job with the block. A job that nobody finishes ends
    with its loop, when ``asyncio.run`` cancels what is left: as failed if an exception ended the program.

    The first call loads gRPC, which takes about a tenth of a second.

    Args:
        name: As for `livetune.init`; and so the others.
        endpoint: Where the daemon is; None to look for it.
        latest_only: After a break, take only the newest value of each variable.
        ranks: The ranks of the job. They meet inside ``job.step()``, which then holds the loop until they have.
        record: File to write what takes effect to.
        replay: File to take values and firings from, without a daemon.

    Raises:
        RuntimeError: No event loop is running.
        InvalidNameError: As `livetune.init` does, and so the others.
        EndpointError: The endpoint can't be read.
        JobExistsError: This process has a live job of that name.
        ReplayError: The file can't be replayed, or nothing be recorded as asked.
        ValueError: ``RANK`` or ``WORLD_SIZE`` are set to what is no rank.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("livetune.aio.init() belongs inside a coroutine: no event loop is running") from None
    return job.begin(
        Job, name, endpoint=endpoint, latest_only=latest_only, ranks=ranks, record=record, replay=replay
    )  # fmt: skip


class Job(job.Job):
    """A training job that is tuned while it runs, for a program on an event loop. Made by `livetune.aio.init`.

    It is a `livetune.Job`. ``step`` is the safe point as ever, a plain call that costs the same: values change inside
    it and nowhere else, so that a coroutine that does not step sees one value from one ``await`` to the next, and
    whatever the task that steps lets others see. Changes arrive whenever the loop gets to run, so that a program
    that never awaits is never tuned.

    What waits is awaited: `wait_for`, `wait_connected`, `wait_pending`, `applied_changes`, `finish`. All of them belong
    to the loop on which the job was made. ``step`` may be called on another thread, as in
    ``await asyncio.to_thread(train)``; the callbacks of variables are then called there.
    """

    _driver: TaskDriver | None

    def __init__(
        self,
        identity: Identity,
        *,
        endpoint: str | None,
        ranks: Agreement | None = None,
        replay: Replay | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = False
        """The task is cancelled by the job itself."""
        self._waiting: set[asyncio.Future[None]] = set()
        """Of whoever waits for something to happen; set when it has."""
        self._recorded_changes = 0
        """How many changes were added to `changes` so far."""
        super().__init__(identity, endpoint=endpoint, ranks=ranks, replay=replay, recorder=recorder)

    def _new_driver(self, identity: Identity, endpoint: str | None) -> TaskDriver:
        return TaskDriver(identity, endpoint, self._deliver, self._reached)

    def _start(self) -> None:
        super()._start()
        self._task = self._loop.create_task(self._live(), name=f"livetune-{self._name}")
        self._task.add_done_callback(self._cancelled_unborn)

    async def _live(self) -> None:
        """Talk to the daemon while the job lives; end the job if the loop ends first, and cancels what is left."""
        driver = self._driver
        if await self._talk(driver):
            return
        # The loop is being run to its end by a handler of whatever ended the program: that is the exception in hand.
        ending = job.how_it_ends(sys.exc_info()[1])
        self._say_end(**ending)
        if driver is not None and driver.trying:
            # What ended this task ended the stream as well, which has tasks of its own.
            driver.closing = True
            with contextlib.suppress(asyncio.TimeoutError):
                await within(job.FINISH_SECONDS, driver.attempt())
        self._leave()
        self._ended(failed=ending["failed"])
        raise asyncio.CancelledError

    def _cancelled_unborn(self, _task: asyncio.Task[None]) -> None:
        """End the job if its task was cancelled before it ran at all: it never came as far as `_live`."""
        if not self._finished:
            self._leave()
            self._ended(failed=False)

    async def _talk(self, driver: TaskDriver | None) -> bool:
        """Return whether the job came to its end; False if somebody else cancelled its task."""
        try:
            if driver is None:
                await asyncio.Event().wait()  # a replay, or a rank that another one speaks for: only the end can come
            else:
                await driver.run()
        except asyncio.CancelledError:
            return self._left
        return True

    # -- what happens --

    def _deliver(self, event: m.Event) -> None:
        super()._deliver(event)
        self._notify()

    def _apply(self) -> None:
        try:
            super()._apply()
        finally:
            self._notify()

    def _do(self, actions: list[m.Action]) -> None:
        super()._do(actions)
        self._recorded_changes += sum(isinstance(action, m.Record) for action in actions)

    def _ended(self, *, failed: bool) -> None:
        super()._ended(failed=failed)
        self._notify()

    def _notify(self) -> None:
        """Let whoever waits look again; on any thread."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait_for(self, predicate: Callable[[], T]) -> T:
        """Wait until a function returns what is true, as `asyncio.Condition.wait_for` does, and return that.

            await job.wait_for(save)  # a firing of a trigger; it is consumed
            await job.wait_for(temperature.changed)
            await job.wait_for(lambda: temperature.value < 0.1)

        It is asked at once, and whenever changes took effect or the connection changed. Each firing and each change
        is seen by one of those who ask for it.

        Args:
            predicate: Should be quick. It is not called while ``step`` is at work on another thread.

        Raises:
            JobFinishedError: The job has ended, or ends, and it is not true.
        """
        while True:
            # Made before it is asked: what happens on another thread meanwhile is not missed.
            news = self._loop.create_future()
            self._waiting.add(news)
            try:
                with self._lock:
                    finished = self._finished
                    if result := predicate():
                        return result
                if finished:
                    raise JobFinishedError(f"job {self._name!r} has ended: what is waited for can't come any more")
                await news
            finally:
                self._waiting.discard(news)

    async def wait_connected(  # type: ignore[override] # awaited: on an event loop nothing may block
        self,
        timeout: float | None = None,
    ) -> bool:
        """Wait until the daemon is connected.

        Args:
            timeout: Seconds to wait at most; None for as long as the job lives.

        Returns:
            Whether it is; False at once in a replay.
        """
        if self.connected or self._driver is None:
            return self.connected
        try:
            return await within(timeout, self.wait_for(lambda: self.connected))
        except (asyncio.TimeoutError, JobFinishedError):
            return False

    async def wait_pending(self) -> None:
        """Wait until something is to be done at the next safe point; for programs that have no loop of their own.

        A server that only answers requests takes changes in a task of its own, whenever nothing is under way that must
        not see two values::

            while True:
                await job.wait_pending()
                job.step()

        Raises:
            JobFinishedError: The job has ended.
        """
        await asyncio.sleep(0)  # a replay always has something to do: others are to run as well
        await self.wait_for(lambda: self._pending)

    def applied_changes(self) -> AsyncIterator[AppliedChange]:
        """Iterate over the changes that take effect from now on, ``async for change in job.applied_changes():``.

        Each iterator gets each change once, in order, and ends with the job. Whoever is more than 10,000 changes behind
        is told so in the log and goes on with the oldest that is kept.
        """
        return self._changes_after(self._recorded_changes)

    async def _changes_after(self, seen: int) -> AsyncIterator[AppliedChange]:
        while True:
            try:
                await self.wait_for(lambda seen=seen: self._recorded_changes > seen)  # type: ignore[misc] # a default
            except JobFinishedError:
                return
            with self._lock:
                recorded, kept = self._recorded_changes, self.changes
            missed = recorded - seen - len(kept)
            if missed > 0:
                log.warning(
                    "job %s: whoever iterates over applied_changes() is %d changes behind: the oldest %d are left out",
                    self._name, recorded - seen, missed,
                )  # fmt: skip
            for change in kept[seen - recorded :]:
                yield change
            seen = recorded

    # -- the end --

    async def finish(  # type: ignore[override] # awaited: on an event loop nothing may block
        self, *, failed: bool = False, message: str = ""
    ) -> None:
        """Tell the daemon that the job ends, and stop talking to it. Takes a second or so at most; again does nothing.

        Whoever waits for something of the job is told so: `wait_for` raises, `applied_changes` ends. Variables stay
        readable, and `step` goes on counting.

        Args:
            failed: Whether it ends with an error.
            message: What the error was; shortened to 1,000 characters.
        """
        if self._finished:
            return
        driver = cast("TaskDriver | None", self._say_end(failed=failed, message=message))
        try:
            if driver is not None and driver.trying:
                driver.closing = True
                # If whoever waits is cancelled, the task ends by itself, or with the loop.
                await asyncio.wait({self._task}, timeout=job.FINISH_SECONDS)
        finally:
            self._ended(failed=failed)
        self._leave()
        await asyncio.wait({self._task}, timeout=job.STOP_SECONDS)

    def _leave(self, patience: job.Patience | None = None) -> None:
        super()._leave(patience)
        self._left = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it all that ran there
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _begin_exit(self, end: job.End) -> Driver | None:  # noqa: ARG002 - all of it is done by `_end_exit`
        return None

    def _end_exit(self, driver: Driver | None, patience: job.Patience, end: job.End) -> None:  # noqa: ARG002 - as above
        if self._loop.is_closed():
            # Without a word to its tasks: the daemon has seen the process go, and nothing can be said any more.
            self._leave()
            self._ended(failed=end["failed"])
        elif self._loop.is_running():  # on another thread
            ending = asyncio.run_coroutine_threadsafe(self.finish(**end), self._loop)
            with contextlib.suppress(concurrent.futures.TimeoutError):
                ending.result(patience.record + patience.stop)
        else:
            self._loop.run_until_complete(self.finish(**end))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            await self.finish(failed=True, message="cancelled")
        else:
            await self.finish(**job.how_it_ends(error))

    def __enter__(self) -> NoReturn:
        raise TypeError("a job of livetune.aio is a context for `async with`")

    def _become_inert(self) -> None:
        super()._become_inert()
        self._left = True  # a child that runs the loop to its end has nothing to say
        self._waiting = set()  # what wakes the loop is still the parent's
