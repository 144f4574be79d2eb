"""The SDK in a real training process against a real daemon: absent, killed, frozen, replaced; ends of every kind; forks."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import livetune
from livetune.v1 import control_pb2, types_pb2
from support.daemon import Daemon, eventually

TRAINING = Path(__file__).parent.parent / "support" / "training.py"


class Training:
    """A training process, and what it said."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TRAINING), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target},
        )
        self.said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._log: list[str] = []
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._note)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.put(json.loads(line))

    def _note(self) -> None:
        assert self.process.stderr is not None
        self._log.extend(self.process.stderr)

    def expect(self, **facts: object) -> dict[str, Any]:
        """Returns the next thing it says that has these facts."""
        deadline = time.monotonic() + 30
        while True:
            said = self.said.get(timeout=max(0.1, deadline - time.monotonic()))
            if facts.items() <= said.items():
                return said

    def wait(self) -> int:
        code = self.process.wait(30)
        for thread in self._threads:
            thread.join()
        return code

    @property
    def log(self) -> str:
        return "".join(self._log)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def train(daemon_or_none: Daemon) -> Iterator[Callable[..., Training]]:
    made: list[Training] = []

    def start(*arguments: str) -> Training:
        made.append(Training(daemon_or_none, *arguments))
        return made[-1]

    yield start
    for training in made:
        training.close()


@pytest.fixture
def daemon_or_none(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that is not started yet."""
    return make_daemon("--job-ports", "22020-22029")


def set_lr(daemon: Daemon, value: float, job: str = "vgg") -> types_pb2.Change:
    with daemon.control() as control:
        update = control_pb2.VariableUpdate(variable_id="lr")
        update.value.float_value = value
        return control.SetVariables(control_pb2.SetVariablesRequest(job=f"jobs/{job}", updates=[update])).change


def fire(daemon: Daemon, *triggers: str) -> None:
    with daemon.control() as control:
        control.FireTriggers(control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=triggers))


def get_job(daemon: Daemon, name: str = "vgg") -> types_pb2.Job:
    with daemon.control() as control:
        return control.GetJob(control_pb2.GetJobRequest(name=f"jobs/{name}")).job


def applied_step(daemon: Daemon, revision: int) -> int:
    """Waits until a change is acknowledged and returns the step."""

    def step() -> int:
        with daemon.control() as control:
            changes = control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg")).changes
        return next((apply.step for change in changes if change.revision == revision for apply in change.applies), 0)

    return eventually(step)


def test_it_trains_without_a_daemon_and_converges_when_there_is_one(
    daemon_or_none: Daemon, train: Callable[..., Training]
) -> None:
    training = train("vgg")
    training.expect(connected=False)
    daemon = daemon_or_none.start()
    training.expect(connected=True, port=22020)
    change = set_lr(daemon, 0.5)
    seen = training.expect(lr=0.5)
    assert seen["step"] == applied_step(daemon, change.revision)
    fire(daemon, "stop")
    training.expect()
    assert 0 == training.wait()
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon).state


def test_a_killed_daemon_is_not_felt_and_nothing_is_lost(
    daemon_or_none: Daemon, train: Callable[..., Training]
) -> None:
    daemon = daemon_or_none.start()
    training = train("vgg")
    training.expect(connected=True)
    set_lr(daemon, 0.5)
    training.expect(lr=0.5)
    fire(daemon, "save")
    training.expect()
    daemon.kill()
    training.expect(connected=False)
    daemon.start()
    training.expect(connected=True, port=22020)
    job = get_job(daemon)
    assert (1, 0.5) == (job.run, job.variables[0].desired.float_value)
    change = set_lr(daemon, 0.25)
    assert training.expect(lr=0.25)["step"] == applied_step(daemon, change.revision)
    fire(daemon, "stop")
    longest = training.expect()
    while "longest_step" not in longest:
        longest = training.expect()
    assert 0 == training.wait()
    assert "Traceback" not in training.log


def test_a_store_that_was_replaced_learns_what_the_job_uses(
    make_daemon: Callable[..., Daemon], train: Callable[..., Training], daemon_or_none: Daemon
) -> None:
    daemon = daemon_or_none.start()
    training = train("vgg")
    training.expect(connected=True)
    set_lr(daemon, 0.5)
    training.expect(lr=0.5)
    daemon.kill()
    training.expect(connected=False)
    for file in daemon.state.iterdir():
        file.unlink()
    daemon.start()
    training.expect(connected=True)
    lr = eventually(lambda: next(iter(get_job(daemon).variables), None))
    assert (0.5, 0.1) == (lr.desired.float_value, lr.spec.initial.float_value)
    set_lr(daemon, 0.75)
    training.expect(lr=0.75)


def test_a_frozen_daemon_does_not_hold_a_step_back(daemon_or_none: Daemon, train: Callable[..., Training]) -> None:
    daemon = daemon_or_none.start()
    training = train("vgg")
    training.expect(connected=True)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        # The stream is given up by the keepalive, not after a minute; the step count shows that training went on.
        gone = training.expect(connected=False)
        assert gone["step"] > 1_000
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    training.expect(connected=True)
    set_lr(daemon, 0.5)
    training.expect(lr=0.5)


def test_a_second_process_of_the_name_is_told_and_trains_untuned(
    daemon_or_none: Daemon, train: Callable[..., Training]
) -> None:
    daemon = daemon_or_none.start()
    first = train("vgg")
    first.expect(connected=True)
    second = train("vgg")
    second.expect(connected=False)
    eventually(lambda: "is held by process" in second.log)
    assert f"process {first.process.pid}" in second.log
    set_lr(daemon, 0.5)
    first.expect(lr=0.5)
    assert second.process.poll() is None


def test_what_was_asked_while_the_process_was_dead_applies_when_it_is_back(
    daemon_or_none: Daemon, train: Callable[..., Training]
) -> None:
    daemon = daemon_or_none.start()
    first = train("vgg")
    first.expect(connected=True)
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    eventually(lambda: get_job(daemon).state == types_pb2.JOB_STATE_LOST)
    change = set_lr(daemon, 0.5)
    fire(daemon, "save")
    fire(daemon, "save")
    second = train("vgg")
    seen = [second.expect() for _ in range(5)]  # not connected, connected, lr, two firings
    assert [0.5] == [said["lr"] for said in seen if "lr" in said]
    assert 2 == len([said for said in seen if "saved" in said])
    assert applied_step(daemon, change.revision) > 0
    eventually(lambda: get_job(daemon).triggers[1].consumed == 2)
    job = get_job(daemon)
    assert (1, 2) == (job.run, job.triggers[1].fired)


@pytest.mark.parametrize(
    ("how", "state", "message", "code"),
    [
        ("finish", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("fall", types_pb2.JOB_STATE_FINISHED, "", 0),
        ("raise", types_pb2.JOB_STATE_FAILED, "RuntimeError: boom", 1),
    ],
)
def test_the_end_of_the_program_is_recorded(
    daemon_or_none: Daemon,
    train: Callable[..., Training],
    how: str,
    state: types_pb2.JobState.ValueType,
    message: str,
    code: int,
) -> None:
    daemon = daemon_or_none.start()
    training = train("vgg", how)
    training.expect(connected=True)
    fire(daemon, "stop")
    assert code == training.wait()
    job = get_job(daemon)
    assert (state, message, 0) == (job.state, job.end_message, job.port)
    assert "no daemon" not in training.log


def test_ctrl_c_is_recorded_and_ends_the_program_at_once(
    daemon_or_none: Daemon, train: Callable[..., Training]
) -> None:
    daemon = daemon_or_none.start()
    training = train("vgg", "fall")
    training.expect(connected=True)
    training.process.send_signal(signal.SIGINT)
    assert training.wait() != 0
    job = get_job(daemon)
    assert (types_pb2.JOB_STATE_FAILED, "interrupted") == (job.state, job.end_message)


def test_a_forked_child_keeps_the_values_and_is_otherwise_inert(
    daemon_or_none: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_or_none.start()
    monkeypatch.setenv("LIVETUNE_ENDPOINT", daemon.target)
    with livetune.init("forks") as job:
        lr = job.variable("lr", 0.1)
        assert job.wait_connected(10)
        set_lr(daemon, 0.5, "forks")

        def taken() -> bool:
            job.step()
            return lr.value == 0.5

        eventually(taken)
        for _ in range(30):
            child = os.fork()
            if child == 0:  # pragma: no cover - in the child
                code = 1
                try:
                    job.step()
                    save = job.variables["lr"].value == 0.5 and not job.connected and threading.active_count() == 1
                    job.finish()
                    code = 0 if save and job.current_step > 0 else 2
                finally:
                    os._exit(code)
            assert 0 == wait_for_child(child)
        assert job.connected
        set_lr(daemon, 0.25, "forks")
        eventually(lambda: (job.step(), lr.value == 0.25)[1])
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon, "forks").state


def wait_for_child(child: int) -> int:
    """Returns the exit code of a child; a child that hangs is a failure."""

    def ended() -> tuple[int] | None:
        pid, status = os.waitpid(child, os.WNOHANG)
        return (os.waitstatus_to_exitcode(status),) if pid else None

    try:
        return eventually(ended)[0]
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _read(variable: livetune.Variable[float], results: Any) -> None:
    results.put((variable.value, variable.name))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_variables_are_readable_in_worker_processes(
    daemon_or_none: Daemon, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import multiprocessing

    daemon = daemon_or_none.start()
    monkeypatch.setenv("LIVETUNE_ENDPOINT", daemon.target)
    context = multiprocessing.get_context(method)
    with livetune.init(f"workers-{method}") as job:
        lr = job.variable("lr", 0.1)
        assert job.wait_connected(10)
        results = context.Queue()
        worker = context.Process(target=_read, args=(lr, results))
        worker.start()
        assert (0.1, "lr") == results.get(timeout=60)
        worker.join(20)
        assert 0 == worker.exitcode


def test_numbers_of_files_and_threads_return_to_what_they_were(
    daemon_or_none: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    daemon = daemon_or_none.start()
    monkeypatch.setenv("LIVETUNE_ENDPOINT", daemon.target)

    def once(number: int) -> None:
        with livetune.init(f"again-{number}") as job:
            job.variable("lr", 0.1)
            assert job.wait_connected(10)

    once(0)
    assert daemon.process is not None
    here, there = psutil.Process(), psutil.Process(daemon.process.pid)
    before = here.num_fds(), there.num_fds(), there.num_threads()
    for number in range(1, 6):
        once(number)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("livetune-")])
    eventually(lambda: here.num_fds() <= before[0] + 2 and there.num_fds() <= before[1] + 2)
    assert there.num_threads() <= before[2] + 2
