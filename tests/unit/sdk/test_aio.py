"""Jobs on an event loop, told of changes as the driver would tell them: what waits, what ends, what is refused."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import livetune
import livetune.aio
from livetune import messages as m
from livetune.aio.driver import TaskDriver
from livetune.job import Patience
from livetune.messages import AppliedChange

NOWHERE = "unix:/nowhere/d.sock"

Program = Callable[["Told"], Coroutine[Any, Any, None]]


class Told:
    """A job that is told of changes as the driver would tell it."""

    def __init__(self, job: livetune.aio.Job) -> None:
        self.job = job
        self.revision = 10

    def connect(self) -> None:
        self.job._deliver(m.Registered("store", 1, 22_100, self.revision))
        self.job._deliver(m.Opened("store", self.revision))
        variables = tuple(m.VariableAnswer(name, item.value, 3, False) for name, item in self.job.variables.items())
        self.job._deliver(m.Declared(variables))

    def change(self, *firings: str, **values: float) -> int:
        self.revision += 1
        self.job._deliver(m.ChangeReceived(self.revision, tuple(values.items()), firings, "why", "ann@a"))
        return self.revision


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers that neither find a daemon nor look for one."""

    async def run(self: TaskDriver) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(TaskDriver, "run", run)
    monkeypatch.setattr(TaskDriver, "trying", False, raising=False)


def play(program: Program, seconds: float = 30.0) -> None:
    """Runs a program of a test in a loop of its own; nothing may be left of it, and nothing go wrong behind its back."""
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with livetune.aio.init("rl", endpoint=NOWHERE) as job:
            job._driver.trying = False  # type: ignore[union-attr]
            await asyncio.wait_for(program(Told(job)), seconds)
        assert {asyncio.current_task()} == asyncio.all_tasks()

    asyncio.run(main(), debug=True)
    assert [] == faults


async def turns(number: int = 3) -> None:
    """Lets everything run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


def test_a_job_is_a_job_and_its_safe_point_the_same_code() -> None:
    assert issubclass(livetune.aio.Job, livetune.Job)
    for name in ("step", "variable", "trigger", "log"):
        assert getattr(livetune.Job, name) is getattr(livetune.aio.Job, name)


def test_it_is_made_inside_a_coroutine_only() -> None:
    with pytest.raises(RuntimeError, match="no event loop is running"):
        livetune.aio.init("rl", endpoint=NOWHERE)
    assert [] == livetune.job.live_jobs()  # type: ignore[attr-defined]


def test_a_plain_with_is_refused(silent: None) -> None:
    async def program(told: Told) -> None:
        with pytest.raises(TypeError, match="async with"), told.job:
            pass

    play(program)


def test_bad_arguments_are_told_as_ever(silent: None) -> None:
    async def program(told: Told) -> None:
        with pytest.raises(livetune.InvalidNameError):
            livetune.aio.init("No Name")
        with pytest.raises(livetune.EndpointError):
            livetune.aio.init("other", endpoint="nonsense")
        with pytest.raises(livetune.JobExistsError):
            livetune.aio.init("rl", endpoint=NOWHERE)

    play(program)


# -- waiting --


def test_waiting_for_a_trigger_consumes_one_firing(silent: None) -> None:
    async def program(told: Told) -> None:
        save = told.job.trigger("save")
        told.connect()
        waiting = asyncio.create_task(told.job.wait_for(save))
        await turns()
        told.change("save")
        told.change("save")
        await turns()
        assert not waiting.done()  # not before the safe point
        told.job.step()
        assert await waiting
        assert (True, False) == (await told.job.wait_for(save), save())

    play(program)


def test_waiting_for_a_change_of_a_variable_misses_none_and_sees_the_newest(silent: None) -> None:
    async def program(told: Told) -> None:
        lr = told.job.variable("lr", 0.1)
        told.connect()
        seen: list[float] = []

        async def follow() -> None:
            while True:
                await told.job.wait_for(lr.changed)
                seen.append(lr.value)
                await asyncio.sleep(0)

        following = asyncio.create_task(follow())
        for value in (0.2, 0.3):
            told.change(lr=value)
            told.job.step()
            await turns(5)
        told.change(lr=0.4)
        told.job.step()
        told.change(lr=0.5)
        told.job.step()
        await turns(5)
        assert [0.2, 0.3, 0.5] == seen
        following.cancel()
        await asyncio.wait({following})

    play(program)


def test_what_is_true_already_is_not_waited_for_and_its_value_returned(silent: None) -> None:
    async def program(told: Told) -> None:
        assert "yes" == await told.job.wait_for(lambda: "yes")

    play(program)


def test_a_predicate_that_raises_raises_where_it_is_waited_for(silent: None) -> None:
    async def program(told: Told) -> None:
        with pytest.raises(ZeroDivisionError):
            await told.job.wait_for(lambda: 1 / 0)
        assert set() == told.job._waiting

    play(program)


def test_whoever_gives_up_waiting_leaves_nothing_behind_and_takes_no_firing_along(silent: None) -> None:
    async def program(told: Told) -> None:
        save = told.job.trigger("save")
        told.connect()
        gone = asyncio.create_task(told.job.wait_for(save))
        await turns()
        told.change("save")
        told.job.step()
        gone.cancel()
        await asyncio.wait({gone})
        assert (True, set()) == (gone.cancelled(), told.job._waiting)
        assert save()

    play(program)


def test_steps_on_another_thread_wake_whoever_waits_on_the_loop(silent: None) -> None:
    async def program(told: Told) -> None:
        lr, save = told.job.variable("lr", 0.1), told.job.trigger("save")
        told.connect()
        threads: list[int] = []
        lr.post_set(lambda new, old: threads.append(threading.get_ident()))
        for _ in range(200):
            told.change("save", lr=0.1 + told.revision)
            waiting = asyncio.gather(told.job.wait_for(save), told.job.wait_for(lr.changed))
            await asyncio.gather(asyncio.to_thread(told.job.step), waiting)
        assert threading.get_ident() not in threads
        assert 200 == len(threads)

    play(program, 60)


def test_a_server_without_a_loop_steps_when_something_waits_for_it(silent: None) -> None:
    async def program(told: Told) -> None:
        lr = told.job.variable("lr", 0.1)

        async def safe_points() -> None:
            while True:
                await told.job.wait_pending()
                told.job.step()

        stepping = asyncio.create_task(safe_points())
        told.connect()
        await turns()
        assert (1, 0.1) == (told.job.current_step, lr.value)  # the first one always: it was reached
        told.change(lr=0.2)
        await turns(5)
        assert (2, 0.2) == (told.job.current_step, lr.value)
        stepping.cancel()
        await asyncio.wait({stepping})

    play(program)


def test_waiting_for_the_daemon_ends_with_the_connection_with_time_or_with_the_job(silent: None) -> None:
    async def program(told: Told) -> None:
        job = told.job
        assert not await job.wait_connected(0.0)
        waiting = asyncio.create_task(job.wait_connected())
        await turns()
        told.connect()
        assert (True, True) == (await waiting, await job.wait_connected(0.0))
        job._deliver(m.Disconnected())
        waiting = asyncio.create_task(job.wait_connected(60))
        await turns()
        await job.finish()
        assert (False, False) == (await waiting, await job.wait_connected(60))

    play(program)


def test_a_place_that_does_not_answer_does_not_hold_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # nobody accepts: the queue is full after the first or second, and further ones wait
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())

        async def main() -> int:
            turns_made = 0
            async with livetune.aio.init("rl", endpoint=f"127.0.0.1:{full.getsockname()[1]}"):
                while not caplog.records:
                    turns_made += 1
                    await asyncio.sleep(0)
            return turns_made

        assert 100 < asyncio.run(asyncio.wait_for(main(), 30))
    assert "(timed out)" in caplog.text


# -- the changes --


async def take(changes: AsyncIterator[AppliedChange], number: int) -> list[int]:
    return [(await changes.__anext__()).revision for _ in range(number)]


def test_every_iterator_gets_every_change_from_its_beginning_on_and_ends_with_the_job(silent: None) -> None:
    async def program(told: Told) -> None:
        told.job.variable("lr", 0.1)
        told.connect()

        def change(value: float) -> int:
            revision = told.change(lr=value)
            told.job.step()
            return revision

        change(0.2)
        early = told.job.applied_changes()
        first = change(0.3)
        late = told.job.applied_changes()
        second = change(0.4)
        assert [first, second] == await take(early, 2)
        assert [second] == await take(late, 1)
        waiting = asyncio.create_task(take(late, 1))
        await turns()
        third = change(0.5)
        assert [third] == await waiting
        await told.job.finish()
        assert [third] == [change.revision async for change in early]
        assert [] == [change async for change in late]

    play(program)


def test_whoever_is_too_far_behind_is_told_so_and_goes_on_with_the_oldest_that_is_kept(
    silent: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("livetune.job.CHANGES_KEPT", 3)

    async def program(told: Told) -> None:
        told.job.variable("lr", 0.1)
        told.connect()
        changes = told.job.applied_changes()
        for value in range(5):
            told.change(lr=float(value))
            told.job.step()
        assert [13, 14, 15] == await take(changes, 3)
        assert ["job rl: whoever iterates over applied_changes() is 5 changes behind: the oldest 2 are left out"] == [
            record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
        ]

    play(program)


# -- the end --


def test_the_end_tells_whoever_waits(silent: None) -> None:
    async def program(told: Told) -> None:
        save = told.job.trigger("save")
        waiting = [asyncio.create_task(told.job.wait_for(save)), asyncio.create_task(told.job.wait_pending())]
        told.job.step()
        await turns()
        told.job._due = 2**63
        await told.job.finish()
        for task in (waiting[0], asyncio.create_task(told.job.wait_for(save))):
            with pytest.raises(livetune.JobFinishedError, match="'rl' has ended"):
                await task
        await asyncio.wait({waiting[1]})
        await told.job.finish(failed=True)  # again does nothing
        told.job.step(7)
        assert (7, [], "<Job rl, step 7, ended>") == (
            told.job.current_step, livetune.job.live_jobs(), repr(told.job)  # type: ignore[attr-defined]
        )  # fmt: skip

    play(program)


@pytest.mark.parametrize("born", [False, True])
def test_a_loop_that_ends_ends_its_jobs_so_that_the_next_loop_can_have_the_name(silent: None, born: bool) -> None:
    async def main() -> livetune.aio.Job:
        job = livetune.aio.init("rl", endpoint=NOWHERE)
        job._driver.trying = False  # type: ignore[union-attr]
        if born:
            await turns()
        else:  # as a program does that gives up at once
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        return job

    for _ in range(3):
        assert "<Job rl, step 0, ended>" == repr(asyncio.run(main()))
    assert [] == livetune.job.live_jobs()  # type: ignore[attr-defined]


def test_a_program_that_cancels_all_that_runs_ends_the_job(silent: None) -> None:
    async def program(told: Told) -> None:
        await turns()
        waiting = asyncio.create_task(told.job.wait_for(lambda: False))
        await turns()
        told.job._task.cancel()
        with pytest.raises(livetune.JobFinishedError):
            await waiting
        await asyncio.wait({told.job._task})
        assert told.job._task.cancelled()

    play(program)


@pytest.mark.parametrize("inert", [False, True])
def test_a_forked_child_that_runs_the_loop_to_its_end_says_nothing_for_its_parent(
    silent: None, monkeypatch: pytest.MonkeyPatch, inert: bool
) -> None:
    said: list[TaskDriver] = []

    async def attempt(self: TaskDriver) -> None:
        said.append(self)

    monkeypatch.setattr(TaskDriver, "attempt", attempt)

    async def main() -> None:
        job = livetune.aio.init("rl", endpoint=NOWHERE)
        await turns()
        if inert:
            job._become_inert()
            livetune.job._live.clear()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert (0 if inert else 1) == len(said)


def test_a_job_whose_loop_was_closed_can_still_be_finished_and_asked(silent: None) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> livetune.aio.Job:
        job = livetune.aio.init("rl", endpoint=NOWHERE)
        job.variable("lr", 0.1)
        return job

    job = loop.run_until_complete(begin())
    waiting = loop.create_task(job.wait_for(lambda: False))
    loop.run_until_complete(asyncio.sleep(0))
    waiting.cancel()
    loop.run_until_complete(asyncio.wait({waiting}))
    task = job._task
    loop.close()
    job.step()
    job._end_exit(None, Patience(), {"failed": False, "message": ""})
    assert ("<Job rl, step 1, ended: lr=0.1>", []) == (repr(job), livetune.job.live_jobs())  # type: ignore[attr-defined]
    task._log_destroy_pending = False  # type: ignore[attr-defined] # closing the loop over it was the test's own doing


# -- replay and record --


def test_a_replay_takes_the_steps_of_the_record_and_needs_no_daemon(silent: None, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    async def record() -> list[AppliedChange]:
        async with livetune.aio.init("rl", endpoint=NOWHERE, record=path) as job:
            job._driver.trying = False  # type: ignore[union-attr]
            told = Told(job)
            job.variable("lr", 0.1)
            told.connect()
            for step in range(1, 6):
                if step % 2:
                    told.change(lr=step / 10)
                job.step()
            return job.changes

    async def replay() -> list[AppliedChange]:
        async with livetune.aio.init("rl", replay=path) as job:
            assert not await job.wait_connected(60)
            lr = job.variable("lr", 0.1)
            changes = job.applied_changes()
            for _ in range(5):
                job.step()
            assert 0.5 == lr.value
        return [change async for change in changes]

    recorded = asyncio.run(record())
    assert [1, 3, 5] == [change.step for change in recorded]
    for _ in range(2):
        assert recorded == asyncio.run(replay())


# -- control of the run --


def test_a_pause_holds_whoever_awaits_it_and_nobody_else(silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetune.control.PAUSE_SECONDS", 0.0)

    async def program(told: Told) -> None:
        control = livetune.aio.RunControl(told.job, max_steps=3)
        told.connect()
        told.job.step()
        assert await control.proceed()
        told.change(**{"run.paused": True})
        told.job.step()
        held = asyncio.create_task(control.proceed())
        await turns(10)
        assert (False, 2) == (held.done(), told.job.current_step)
        told.change(**{"run.paused": False})
        assert await held
        told.job.step()
        assert (False, False) == (await control.proceed(), await control.proceed())

    play(program)


def test_a_control_that_would_hold_the_loop_is_refused(silent: None) -> None:
    async def program(told: Told) -> None:
        with pytest.raises(TypeError, match=r"use livetune\.aio\.RunControl"):
            livetune.RunControl(told.job)

    play(program)
