"""Programs on an event loop against a real daemon: absent, killed, frozen; ends of every kind; the same as with a thread."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import livetune
import livetune.aio
from livetune.messages import AppliedChange
from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.shell import Shell

Start = Callable[[str], AbstractContextManager[Program]]


@pytest.fixture
def daemon_or_none(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that is not started yet."""
    return make_daemon("--job-ports", "22100-22109")


@pytest.fixture
def daemon(daemon_or_none: Daemon) -> Daemon:
    return daemon_or_none.start()


@pytest.fixture
def start(daemon_or_none: Daemon, tmp_path: Path) -> Start:
    """Starts the program of this file, to end in a certain way; Python tells all that it has to complain of."""

    def begin(how: str, **environment: str) -> AbstractContextManager[Program]:
        told = {"LIVETUNE_ENDPOINT": daemon_or_none.target, "PYTHONWARNINGS": "always", **environment}
        return program("looping.py", "rl", how, log=tmp_path / "program.log", **told)

    return begin


def complaints(running: Program) -> list[str]:
    """What went wrong behind the program's back."""
    odd = ("exception handler", "destroyed", "never retrieved", "never awaited", "Warning", "ignored", "fork()")
    return [line for line in running.log.read_text().splitlines() if any(word in line for word in odd)]


def end_of(daemon: Daemon) -> tuple[types_pb2.JobState.ValueType, str]:
    with daemon.control() as control:
        from livetune.v1 import control_pb2

        job = control.GetJob(control_pb2.GetJobRequest(name="jobs/rl")).job
    return job.state, job.end_message


def test_it_runs_without_a_daemon_and_follows_it_over_restarts(daemon_or_none: Daemon, start: Start) -> None:
    daemon, shell = daemon_or_none, Shell(daemon_or_none)
    with start("block") as job:
        job.facts(lambda said: said.get("connected") is False)
        daemon.start()
        assert 22100 == job.facts(lambda said: said.get("connected"))["port"]
        for value in (0.5, 0.25):
            answer = shell("set", "rl", f"lr={value}", f"wd={value * 2}", "-o", "json")
            assert (0, "") == (answer.code, answer.err)
            said = job.facts(lambda said: "lr" in said)
            assert (value, value * 2, json.loads(answer.out)["applied"]["lr"][0]["step"]) == (
                said["lr"],
                said["wd"],
                said["step"],
            )
            daemon.kill()
            job.facts(lambda said: said.get("connected") is False)
            daemon.start()
            assert 22100 == job.facts(lambda said: said.get("connected"))["port"]
        assert 0 == shell("trigger", "rl", "stop").code
        job.facts(lambda said: "stopped" in said)
        job.tell()
        assert 0 == job.wait()
        assert [] == complaints(job)
    assert (types_pb2.JOB_STATE_FINISHED, "") == end_of(daemon)


def test_a_frozen_daemon_does_not_hold_the_loop(daemon: Daemon, start: Start) -> None:
    with start("block") as job:
        before = job.facts(lambda said: said.get("connected"))["steps"]
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            # The stream is given up by the keepalive; the count shows that the loop went round meanwhile.
            gone = job.facts(lambda said: said.get("connected") is False)
            assert gone["steps"] > before + 1_000
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        job.facts(lambda said: said.get("connected"))
        assert 0 == Shell(daemon)("set", "rl", "lr=0.5").code
        assert 0.5 == job.facts(lambda said: "lr" in said)["lr"]
        assert [] == complaints(job)


# -- ends --


@pytest.mark.parametrize(
    ("how", "state", "message", "code"),
    [
        ("finish", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("block", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("raise-in-block", types_pb2.JOB_STATE_FAILED, "RuntimeError: boom", 1),
        ("fall", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("raise", types_pb2.JOB_STATE_FAILED, "RuntimeError: boom", 1),
        ("exit0", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("exit3", types_pb2.JOB_STATE_FAILED, "SystemExit: 3", 3),
        ("cancel", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("late", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("left", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("closed", types_pb2.JOB_STATE_LOST, "", 0),
    ],
)
def test_the_end_of_the_program_is_recorded_and_quiet(
    daemon: Daemon, start: Start, how: str, state: types_pb2.JobState.ValueType, message: str, code: int
) -> None:
    with start(how) as job:
        job.facts(lambda said: said.get("connected"))
        assert 0 == Shell(daemon)("trigger", "rl", "stop").code
        job.facts(lambda said: "stopped" in said)
        job.tell()
        assert code == job.wait()
        assert [] == complaints(job)
    eventually(lambda: (state, message) == end_of(daemon))


@pytest.mark.parametrize(("how", "message"), [("fall", "interrupted"), ("block", "cancelled")])
def test_ctrl_c_is_recorded_and_ends_the_program(daemon: Daemon, start: Start, how: str, message: str) -> None:
    with start(how) as job:
        job.facts(lambda said: said.get("connected"))
        job.process.send_signal(signal.SIGINT)
        assert job.wait() != 0
        assert [] == complaints(job)
    assert (types_pb2.JOB_STATE_FAILED, message) == end_of(daemon)


@pytest.mark.parametrize("how", ["block", "fall", "left"])
def test_a_frozen_daemon_does_not_keep_the_program_from_ending(daemon: Daemon, start: Start, how: str) -> None:
    with start(how) as job:
        job.facts(lambda said: said.get("connected"))
        assert 0 == Shell(daemon)("trigger", "rl", "stop").code
        job.facts(lambda said: "stopped" in said)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            job.tell()
            assert 0 == job.wait()
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert [] == complaints(job)


def test_two_loops_one_after_the_other_are_two_runs(daemon: Daemon, start: Start) -> None:
    shell = Shell(daemon)
    with start("twice") as job:
        for run in (1, 2):
            job.facts(lambda said: said.get("connected"))
            assert run == shell.data("describe", "rl")["run"]
            assert 0 == shell("trigger", "rl", "stop").code
            job.facts(lambda said: "stopped" in said)
            job.tell()
        assert 0 == job.wait()
        assert [] == complaints(job)
    assert (types_pb2.JOB_STATE_FINISHED, "") == end_of(daemon)


# -- forks --


def test_children_live_and_are_inert(daemon: Daemon, start: Start) -> None:
    with start("fork") as job:
        said = job.facts(lambda said: "codes" in said)
        assert ([0] * 20, True, None) == (said["codes"], said["connected"], said["support"])
        assert 0 == job.wait()
        assert [] == complaints(job)
    assert (types_pb2.JOB_STATE_FINISHED, "") == end_of(daemon)


def test_the_control_with_the_help_of_grpc_forks_are_not_prepared(daemon: Daemon, start: Start) -> None:
    with start("fork", GRPC_ENABLE_FORK_SUPPORT="1") as job:
        assert "1" == job.facts(lambda said: "codes" in said)["support"]
        job.wait()
        assert any("skipping fork() handlers" in line for line in complaints(job))


# -- the same with a thread and on a loop --


def story(job: livetune.Job, shell: Shell, told: list[Any]) -> Iterator[None]:
    """A program, and what a person does to it meanwhile. Yields when something is to arrive before the next safe point.

    Args:
        job: Of whatever kind.
        shell: The person.
        told: Takes what the program sees.
    """
    lr = job.variable("lr", 0.1, min=0.0, max=1.0)
    batch = job.variable("batch", 32)
    mode = job.variable("mode", "a", choices=["a", "b"])
    save = job.trigger("save")
    batch.pre_set(lambda size: size - size % 8)

    def only_small(new: float, _old: float) -> None:
        if new > 0.8:
            raise livetune.Veto("too fast")

    lr.on_set(only_small)
    lr.post_set(lambda new, old: told.append((job.current_step, new, old)))
    yield
    job.step()
    for words in (
        ("set", "lr=0.5", "--reason", "faster"),
        ("set", "batch=77", "mode=b"),
        ("set", "lr=0.9", "batch=8"),
        ("set", "lr=0.25"),
        ("undo", "--reason", "back"),
        ("trigger", "save"),
    ):
        answer = shell.inside(words[0], "rl", *words[1:], "--wait", "accepted")
        assert 0 == answer.code, answer
        yield
        job.step()
        job.step()
        told.append((words, lr.value, batch.value, mode.value, save(), save(), lr.changed()))
    job.log(loss=0.5)
    told += [job.changes, [(name, item.value, item.applied_step) for name, item in job.variables.items()]]


def run_on_a_thread(daemon: Daemon) -> list[Any]:
    told: list[Any] = []
    with livetune.init("rl", endpoint=daemon.target) as job:
        playing = story(job, Shell(daemon), told)
        next(playing)
        assert job.wait_connected(10)
        for _ in playing:
            eventually(lambda: job._pending)
    return told


def run_on_a_loop(daemon: Daemon) -> list[Any]:
    told: list[Any] = []

    async def main() -> None:
        async with livetune.aio.init("rl", endpoint=daemon.target) as job:
            playing = story(job, Shell(daemon), told)
            next(playing)
            assert await job.wait_connected(10)
            for _ in playing:
                await asyncio.wait_for(job.wait_pending(), 10)

    asyncio.run(main())
    return told


def test_one_story_comes_to_the_same_with_a_thread_and_on_a_loop(make_daemon: Callable[..., Daemon]) -> None:
    outcomes = []
    for run in (run_on_a_thread, run_on_a_loop):
        daemon = make_daemon("--job-ports", "22100-22109", name=run.__name__).start()
        told = run(daemon)
        history = Shell(daemon).data("history", "rl")
        # Revisions count what the daemon wrote between two changes as well: their order is what must be the same.
        order = {change["revision"]: number for number, change in enumerate(history)}
        told[-2] = [replace(change, revision=order[change.revision]) for change in told[-2]]
        applied = [(apply["step"], apply["outcomes"]) for change in history for apply in change["applies"]]
        outcomes.append((told, applied, [(change["assignments"], change["reason"]) for change in history]))
        daemon.stop()
    assert 3 == len(outcomes[0][0][-2])  # two were vetoed
    assert outcomes[0] == outcomes[1]


# -- what it tells, and what it writes --


def test_what_is_logged_on_a_loop_is_shown(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetune.aio.driver.TICK_SECONDS", 0.05)
    shell = Shell(daemon)

    async def main() -> None:
        async with livetune.aio.init("rl", endpoint=daemon.target) as job:
            assert await job.wait_connected(10)
            job.step(3)
            job.log(loss=0.5)
            deadline = time.monotonic() + 10
            while not (series := (await asyncio.to_thread(shell.data, "metrics", "rl"))):
                assert time.monotonic() < deadline
            assert [("loss", 0.5, 3)] == [(one["name"], one["value"], one["step"]) for one in series]
            while 3 != (await asyncio.to_thread(shell.data, "describe", "rl"))["step"]:
                assert time.monotonic() < deadline

    asyncio.run(main())


def test_a_run_on_a_loop_is_recorded_and_replayed(daemon: Daemon, tmp_path: Path) -> None:
    record, shell = tmp_path / "run.jsonl", Shell(daemon)

    async def live() -> list[AppliedChange]:
        async with livetune.aio.init("rl", endpoint=daemon.target, record=record) as job:
            lr = job.variable("lr", 0.1)
            assert await job.wait_connected(10)
            for value in (0.5, 0.25, 0.75):
                for _ in range(3):
                    job.step()
                answer = await asyncio.to_thread(shell.inside, "set", "rl", f"lr={value}", "--wait", "accepted")
                assert 0 == answer.code
                await asyncio.wait_for(job.wait_pending(), 10)
                job.step()
            assert 0.75 == lr.value
            return job.changes

    async def replayed(source: Path) -> list[AppliedChange]:
        async with livetune.aio.init("rl", replay=source) as job:
            job.variable("lr", 0.1)
            for _ in range(20):
                job.step()
            return job.changes

    recorded = asyncio.run(live())
    assert 3 == len(recorded)
    assert recorded == asyncio.run(replayed(record))
    history = tmp_path / "history.jsonl"
    eventually(lambda: len([change for change in shell.data("history", "rl") if change["applies"]]) == 3)
    history.write_text(shell("history", "rl", "-o", "jsonl").out)
    assert recorded == asyncio.run(replayed(history))
    with livetune.init("rl", replay=record) as job:  # and by a program with threads
        job.variable("lr", 0.1)
        for _ in range(20):
            job.step()
        assert recorded == job.changes


def test_many_jobs_share_one_loop_and_leave_nothing_behind(daemon: Daemon) -> None:
    async def one(number: int) -> None:
        async with livetune.aio.init(f"rl-{number}", endpoint=daemon.target) as job:
            job.variable("lr", 0.1)
            assert await job.wait_connected(20)
            job.step()

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(8)))
        assert {asyncio.current_task()} == asyncio.all_tasks()

    asyncio.run(main(), debug=True)
    jobs = Shell(daemon).data("jobs", "-a")
    assert [(f"rl-{number}", "finished") for number in range(8)] == sorted((job["name"], job["state"]) for job in jobs)
