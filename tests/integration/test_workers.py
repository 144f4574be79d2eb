"""Values are current in worker processes while a real daemon changes them: DataLoaders, forks, ends of every kind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import livetune
from livetune import shared
from livetune.v1 import control_pb2, types_pb2
from support.daemon import Daemon, eventually
from support.forking import Child
from support.programs import Program, program
from support.shell import state_of

LATE = 2 * 2 + 1
"""Batches that may be of before a change: two workers, prefetch factor two, and the one that is in hand."""
END_SECONDS = 10.0
"""Within this a program with workers ends. Two seconds are wanted; other work on the machine must not fail the test."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at only


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "24500-24509").start()


def set_value(daemon: Daemon, value: float, job: str, variable: str = "strength") -> int:
    with daemon.control() as control:
        update = control_pb2.VariableUpdate(variable_id=variable)
        update.value.float_value = value
        return control.SetVariables(
            control_pb2.SetVariablesRequest(job=f"jobs/{job}", updates=[update])
        ).change.revision


def get_job(daemon: Daemon, name: str) -> types_pb2.Job:
    with daemon.control() as control:
        return control.GetJob(control_pb2.GetJobRequest(name=f"jobs/{name}")).job


def in_shared_memory() -> set[str]:
    """What of /dev/shm is ours: torch and multiprocessing use it too."""
    return {file.name for file in SHARED_MEMORY.iterdir() if "livetune" in file.name}


def loading(daemon: Daemon, folder: Path, *arguments: str) -> Any:
    return program("loading.py", *arguments, log=folder / "loading.log", LIVETUNE_ENDPOINT=daemon.target)


def both_see(training: Program, value: float) -> None:
    """Waits until each of the two workers reads a value, late by no more than what was prefetched."""
    waiting = {0, 1}
    while waiting:
        fact = training.facts(lambda fact: fact.get("value") == value)
        assert fact["late"] <= LATE, fact
        waiting.discard(fact["worker"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("fork", "persistent"),
        ("fork", "fresh"),
        ("spawn", "persistent"),
        ("forkserver", "persistent"),
        # Each epoch starts workers that load torch: many seconds where the cores are shared.
        pytest.param("spawn", "fresh", marks=pytest.mark.slow),
        pytest.param("forkserver", "fresh", marks=pytest.mark.slow),
    ],
)
def test_workers_of_a_data_loader_see_a_change_while_they_load(
    daemon: Daemon, tmp_path: Path, method: str, how: str
) -> None:
    name = f"{method}-{how}"
    with loading(daemon, tmp_path, name, method, how) as training:
        for number, value in enumerate([0.1, 0.5, 0.25]):
            if number:
                revision = set_value(daemon, value, name)
                training.facts(lambda fact: "changed" in fact)
            both_see(training, value)
        # In the next epoch as well: the same workers if they are persistent, others if not.
        training.facts(lambda fact: "epoch" in fact)
        set_value(daemon, 0.75, name)
        both_see(training, 0.75)
        job = get_job(daemon, name)
        assert types_pb2.JOB_STATE_RUNNING == job.state
        assert job.variables[0].applied[0].revision > revision
        assert training.process.stdin is not None
        training.process.stdin.close()
        assert 0 == training.wait()
    log = training.log.read_text()
    assert "Traceback" not in log
    assert "leaked" not in log
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon, name).state
    assert set() == in_shared_memory()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_control_without_the_page_workers_read_what_was(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("LIVETUNE_ENDPOINT", daemon.target)
    monkeypatch.setattr(shared.Page, "follow", lambda self, variables: None)
    monkeypatch.setattr(shared.Page, "place_of", lambda self, variable: None)
    import multiprocessing

    with livetune.init("control") as job:
        strength = job.variable("strength", 0.1)
        assert job.wait_connected(10)
        results = multiprocessing.get_context(method).Queue()
        worker = multiprocessing.get_context(method).Process(target=_read_after, args=(strength, results))
        worker.start()
        assert "ready" == results.get(timeout=60)
        set_value(daemon, 0.5, "control")
        eventually(lambda: (job.step(), strength.value == 0.5)[1])
        assert 0.1 == results.get(timeout=60)
        worker.join(20)
        results.close()


def _read_after(strength: livetune.Variable[float], results: Any) -> None:
    results.put("ready")
    time.sleep(1.0)  # long enough for the change, which a variable that is current would show
    results.put(strength.value)


def forks(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Forks again and again; every child sees a change that is made while it lives, and disturbs nothing."""
    monkeypatch.setenv("LIVETUNE_ENDPOINT", daemon.target)
    here = psutil.Process()
    assert daemon.process is not None
    there = psutil.Process(daemon.process.pid)
    with livetune.init("forks") as job, daemon.control() as control:
        strength = job.variable("strength", 0.0)
        assert job.wait_connected(10)
        request = control_pb2.SetVariablesRequest(job="jobs/forks")
        update = request.updates.add(variable_id="strength")
        before = (0, 0, 0)
        for number in range(1, count + 1):
            value = float(number)
            child = Child(
                lambda value=value: (
                    strength.value in (value - 1, value),
                    eventually(lambda: strength.value == value, 30),
                )
            )
            update.value.float_value = value
            control.SetVariables(request)
            eventually(lambda value=value: (job.step(), strength.value == value)[1], 30)
            assert (True, True) == child.result()
            assert job.connected
            if number == 10:
                before = here.num_fds(), here.num_threads(), there.num_fds()
        assert [float(number) for number in range(1, count + 1)] == [
            c.values["strength"][1] for c in job.changes[-count:]
        ]
        eventually(lambda: here.num_fds() <= before[0] and there.num_fds() <= before[2])
        eventually(lambda: here.num_threads() <= before[1])
        assert 1 == get_job(daemon, "forks").run
        eventually(lambda: get_job(daemon, "forks").variables[0].applied[0].value.float_value == count)
    assert [] == [record.message for record in caplog.records if record.levelname != "INFO"]
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon, "forks").state
    assert set() == in_shared_memory()


def test_fifty_forks(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    forks(daemon, monkeypatch, caplog, 50)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_forks(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    forks(daemon, monkeypatch, caplog, 1_000)


def test_children_keep_the_last_value_when_the_job_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    with program("orphans.py", "orphans", log=tmp_path / "log", LIVETUNE_ENDPOINT=daemon.target) as job:
        assert {"fork", "spawn"} == {job.facts(lambda fact: "kind" in fact)["kind"] for _ in range(2)}
        eventually(lambda: state_of(daemon, "orphans") == types_pb2.JOB_STATE_RUNNING)
        eventually(lambda: len(get_job(daemon, "orphans").variables) == 2)
        revision = set_value(daemon, 0.5, "orphans")
        for _ in range(2):
            job.facts(lambda fact: fact.get("state", [0])[0] == 0.5)
        job.process.kill()
        job.wait()
        last = {fact["kind"]: fact["last"] for fact in (job.facts(lambda fact: "last" in fact) for _ in range(2))}
        assert {"fork": [0.5, revision, 1_000], "spawn": [0.5, revision, 1_000]} == last
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert set() == in_shared_memory()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("leave", types_pb2.JOB_STATE_FINISHED),
        ("ctrl-c", types_pb2.JOB_STATE_FAILED),
        ("kill", types_pb2.JOB_STATE_LOST),
    ],
)
def test_a_program_with_living_workers_ends_at_once(
    daemon: Daemon, tmp_path: Path, method: str, end: str, state: types_pb2.JobState.ValueType
) -> None:
    with program("reading.py", "ends", method, log=tmp_path / "log", LIVETUNE_ENDPOINT=daemon.target) as job:
        assert {0, 1} == {job.facts(lambda fact: "worker" in fact)["worker"] for _ in range(2)}
        eventually(lambda: jobs_known(daemon) == {"jobs/ends"})
        eventually(lambda: len(get_job(daemon, "ends").variables) == 1)
        workers = psutil.Process(job.process.pid).children(recursive=True)
        if end == "leave":
            set_value(daemon, 1.0, "ends")
        else:
            job.process.send_signal(signal.SIGINT if end == "ctrl-c" else signal.SIGKILL)
        code = job.wait(END_SECONDS)
        assert {"leave": code == 0, "ctrl-c": code not in (0, -signal.SIGKILL), "kill": code == -signal.SIGKILL}[end]
        assert [] == psutil.wait_procs(workers, timeout=15)[1]
    eventually(lambda: state_of(daemon, "ends") == state)
    assert "leaked" not in (tmp_path / "log").read_text()
    assert set() == in_shared_memory()


def jobs_known(daemon: Daemon) -> set[str]:
    with daemon.control() as control:
        return {job.name for job in control.ListJobs(control_pb2.ListJobsRequest()).jobs}


def test_it_works_where_shared_memory_is_tiny(tmp_path: Path) -> None:
    code = (
        "import livetune, os, pickle, subprocess, sys\n"
        "job = livetune.init('tiny', endpoint='unix:/nowhere')\n"
        "texts = [job.variable(f't{n}', 'a' * 65_536) for n in range(20)]\n"
        "child = 'import pickle, sys; print(len(pickle.load(sys.stdin.buffer)[19].value))'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', child], input=pickle.dumps(texts)).returncode)\n"
    )
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare: it mounts a small /dev/shm of its own")
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$0" -c "$1"'
    answer = subprocess.run(
        [unshare, "--mount", "sh", "-c", script, sys.executable, code], capture_output=True, text=True, timeout=60
    )
    if "mount" in answer.stderr or "unshare" in answer.stderr:
        pytest.skip(f"a small /dev/shm can't be mounted here: {answer.stderr.strip()}")
    assert (0, "65536") == (answer.returncode, answer.stdout.strip()), answer.stderr
