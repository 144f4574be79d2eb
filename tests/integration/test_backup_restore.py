"""Restoring: the daemon is as it was at the backup, the store that was there is kept, and every moment is safe to die at."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from livetune.v1 import control_pb2, types_pb2
from livetuned.daemon import restoring
from livetuned.daemon.keeping import KeepingError
from livetuned.store.interface import StoreDamagedError
from livetuned.store.private import file_beside
from support import needs
from support.daemon import Daemon, eventually
from support.keeping import Story, command, contents, execute, livetuned, state_of
from support.process import Process, float_spec

TRAINING = Path(__file__).parent.parent / "support" / "training.py"


def moved_aside(state: Path) -> list[Path]:
    """The stores that restores moved aside, in their order."""
    names = re.compile(r"livetuned\.db\.replaced-\d{8}T\d{6}Z(-\d)?")
    return sorted(path for path in state.iterdir() if names.fullmatch(path.name))


def change(daemon: Daemon, job: str, value: float, name: str = "lr") -> types_pb2.Change:
    with daemon.control() as control:
        request = control_pb2.SetVariablesRequest(job=f"jobs/{job}", reason="because")
        request.updates.add(variable_id=name).value.float_value = value
        return control.SetVariables(request).change


def everything(daemon: Daemon) -> tuple[str, dict[str, tuple[types_pb2.Job, list[types_pb2.Change]]]]:
    """The store's identity, and each job with its history."""
    with daemon.control() as control:
        answer = control.ListJobs(control_pb2.ListJobsRequest())
        jobs = {}
        for job in answer.jobs:
            job.state = types_pb2.JOB_STATE_UNSPECIFIED  # who is connected is not stored
            job.step = 0
            for rank in job.ranks:
                rank.connected = False
            page = control.ListChanges(control_pb2.ListChangesRequest(job=job.name, page_size=100))
            jobs[job.name] = (job, list(page.changes))
        return answer.store_id, jobs


def test_the_daemon_is_as_it_was_at_the_backup(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.channel() as channel:
        for name in ("one", "two", "three"):
            process = Process(channel, name)
            process.join()
            process.declare(float_spec("lr", 0.1, 0.0, 1.0), triggers=("save",))
            made = change(daemon, name, 0.5)
            process.expect("change")
            process.apply(made, 8)
            if name == "three":
                process.send(end={"failed": True, "message": "boom", "step": 9})
                process.expect("end_recorded")
            process.close()
        change(daemon, "two", 0.25)
        identity, before = everything(daemon)
        backup = tmp_path / "b.db"
        assert 0 == livetuned("backup", backup, "--endpoint", daemon.target).returncode
        change(daemon, "one", 0.75)
        Process(channel, "four").join()
    refused = livetuned("restore", backup, "--state", daemon.state, "--replace")
    assert 4 == refused.returncode
    assert "is in use by a running livetuned: stop it first" in refused.stderr
    assert 0 == daemon.stop()

    refused = livetuned("restore", backup, "--state", daemon.state)
    assert 2 == refused.returncode
    assert "livetuned.db exists: --replace moves it aside" in refused.stderr
    old = contents(daemon.state)
    answer = livetuned("restore", backup, "--state", daemon.state, "--replace")
    assert 0 == answer.returncode, answer
    (aside,) = moved_aside(daemon.state)
    assert f"the store that was there: {aside}" in answer.stdout
    now = contents(daemon.state)
    assert {aside.name: old["livetuned.db"], f"{aside.name}-head": old["livetuned.db-head"]}.items() <= now.items()
    assert {aside.name, f"{aside.name}-head", "livetuned.db"} == set(now)
    assert 0 == livetuned("doctor", aside).returncode

    daemon.start()
    assert daemon.ready_line.endswith(f"jobs 3; revision {daemon.ready_line.split()[-1]}")
    restored, after = everything(daemon)
    assert identity != restored
    assert before == after
    assert 0.5 == change(daemon, "one", 0.6).assignments[0].old_value.float_value


def make(folder: Path, *times: int) -> Story:
    """A store in a folder of its own, with one job that was changed so often."""
    folder.mkdir()
    with Story(folder / "livetuned.db") as story:
        story.begin("a")
        story.change("a", *times)
    return story


def crashed(folder: Path, times: int) -> Path:
    """The same as a daemon that died leaves it: a part in the write-ahead log only."""
    work = folder.with_name(f"{folder.name}-work")
    make(work, 1)
    with Story(work / "livetuned.db") as story:
        story.state.jobs.update(state_of_copy(work / "livetuned.db"))
        story.state.revision = 4
        story.change("a", times - 1)
        return story.crashed(folder)


def state_of_copy(path: Path) -> dict[str, Any]:
    copy = path.with_name("copy.db")
    shutil.copyfile(path, copy)
    jobs, _ = state_of(copy)
    return jobs


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"no backup" * 1_000), "no store of livetuned"),
        (
            lambda path: execute(path, "UPDATE log SET time_us = 1 WHERE revision = 3"),
            "record 3 does not keep its checksum",
        ),
        (lambda path: execute(path, "DELETE FROM snapshots"), "one is missing"),
        (lambda path: execute(path, "PRAGMA user_version = 99"), "version 99, of a newer livetuned"),
    ],
)
def test_a_backup_that_is_not_well_is_refused_and_nothing_is_changed(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    backup = make(tmp_path / "backup", 3)
    with Story(backup.path) as story:
        story.state.jobs.update(backup.state.jobs)
        story.save("a", covered=8)
    spoil(backup.path)
    there = make(tmp_path / "state", 5)
    before = contents(there.path.parent)
    with pytest.raises(KeepingError, match=words) as refused:
        restoring.restore(backup.path, there.path.parent, aside=True)
    assert 5 == refused.value.code
    assert before == contents(there.path.parent)


def test_the_store_itself_is_no_backup(tmp_path: Path) -> None:
    there = make(tmp_path / "state", 5)
    with pytest.raises(KeepingError, match="is the store itself") as refused:
        restoring.restore(there.path, there.path.parent, aside=True)
    assert 2 == refused.value.code


def test_a_log_that_stands_alone_is_moved_aside_too(tmp_path: Path) -> None:
    """SQLite would take it for the new store's."""
    backup = make(tmp_path / "backup", 3)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "livetuned.db-wal").write_text("mine")
    with pytest.raises(KeepingError, match="--replace moves it aside"):
        restoring.restore(backup.path, tmp_path / "state", aside=False)
    restored = restoring.restore(backup.path, tmp_path / "state", aside=True)
    assert restored.aside is not None
    assert "mine" == Path(f"{restored.aside}-wal").read_text()
    assert state_of(tmp_path / "state" / "livetuned.db") == (backup.state.jobs, backup.records)


def test_two_in_one_second_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetuned.service.clock.wall_us", lambda: 1_790_000_000_000_000)
    backup = make(tmp_path / "backup", 3)
    there = make(tmp_path / "state", 5)
    for _ in range(3):
        restoring.restore(backup.path, there.path.parent, aside=True)
    name = "livetuned.db.replaced-20260921T141320Z"
    assert [name, f"{name}-2", f"{name}-3"] == sorted(
        path.name for path in there.path.parent.glob(f"{name}*") if not path.name.endswith("-head")
    )
    assert state_of(there.path.parent / name) == (there.state.jobs, there.records)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_restores_for_the_owner_of_the_folder(tmp_path: Path) -> None:
    backup = make(tmp_path / "backup", 3)
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12_345, 23_456)
    restoring.restore(backup.path, tmp_path / "state", aside=False)
    about = (tmp_path / "state" / "livetuned.db").stat()
    assert (12_345, 23_456) == (about.st_uid, about.st_gid)


# -- dying at any moment --


class Killed(BaseException):
    """Stands for kill -9."""


@contextmanager
def killed_before(call: int, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ends what runs before its so many-th step with names of files; yields the steps that were done."""
    done: list[str] = []

    def step(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            if len(done) + 1 == call:
                raise Killed
            done.append(name)
            return real(*given, **named)

        return called

    with patch.context() as patched:
        patched.setattr(os, "link", step("link", os.link))
        patched.setattr(Path, "rename", step("rename", Path.rename))
        patched.setattr(Path, "replace", step("replace", Path.replace))
        yield done


def opens_to(path: Path) -> int:
    """How often the job was changed, of what a daemon finds; -1 if it refuses what it finds."""
    folder = path.parent.with_name("opened")
    shutil.copytree(path.parent, folder)
    try:
        jobs, _ = state_of(folder / path.name)
    except StoreDamagedError:
        return -1
    finally:
        shutil.rmtree(folder)
    value = jobs["a"].variables["n"].desired
    assert isinstance(value, int)
    return value


def kill_everywhere(tmp_path: Path, patch: pytest.MonkeyPatch) -> list[int]:
    """What a daemon finds after a restore of 3 over 7 that was killed before each of its steps."""
    backup = make(tmp_path / "backup", 3)
    found = []
    for call in range(1, 100):
        state = tmp_path / f"state{call}"
        path = crashed(state, 7)
        assert 7 == opens_to(path)
        with killed_before(call, patch):
            try:
                restoring.restore(backup.path, state, aside=True)
            except Killed:
                found.append(opens_to(path))
            else:
                found.append(opens_to(path))
                break
        restoring.restore(backup.path, state, aside=True)
        assert 3 == opens_to(path)
        # The old one is there whole.
        assert 7 in [opens_to(aside) for aside in moved_aside(state)]
    return found


def test_killed_at_any_moment_the_old_one_the_new_one_or_a_refusal_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the old store without its last commits."""
    found = kill_everywhere(tmp_path, monkeypatch)
    assert [7, 7, -1, 3, 3] == found


def test_control_the_head_mark_moved_first_hides_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(path: Path, target: Path) -> Path:
        aside = target.with_name("livetuned.db.replaced-Z")
        os.link(target, aside)
        for suffix in ("-head", "-wal"):
            file_beside(target, suffix).rename(f"{aside}{suffix}")
        path.replace(target)
        return aside

    monkeypatch.setattr("livetuned.daemon.restoring._install", install)
    backup, found = make(tmp_path / "backup", 3), []
    for call in range(1, 5):
        path = crashed(tmp_path / f"state{call}", 7)
        with killed_before(call, monkeypatch), pytest.raises(Killed):
            restoring.restore(backup.path, path.parent, aside=True)
        found.append(opens_to(path))
    assert 1 in found, found


def test_control_the_log_left_behind_spoils_the_new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetuned.daemon.restoring.BESIDE", ())
    backup, path = make(tmp_path / "backup", 3), crashed(tmp_path / "state", 7)
    restoring.restore(backup.path, path.parent, aside=True)
    assert 3 != opens_to(path)


@pytest.mark.slow
def test_killed_by_kill_9_at_any_system_call_too(tmp_path: Path) -> None:
    needs.strace()
    backup = make(tmp_path / "backup", 3)
    found = []
    # strace counts each system call by itself.
    for name in ("rename", "linkat", "unlink", "unlinkat", "fsync", "ftruncate", "pwrite64"):
        for number in range(1, 100):
            state = tmp_path / f"{name}{number}"
            path = crashed(state, 7)
            restore = command("restore", backup.path, "--state", state, "--replace")
            ended = subprocess.run(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={number}", *restore],
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)}, capture_output=True, timeout=60,
            )  # fmt: skip
            assert ended.returncode in (0, -9), ended
            found.append(opens_to(path))
            assert found[-1] in (7, -1, 3)
            if ended.returncode == 0:
                break
            restoring.restore(backup.path, state, aside=True)
            assert 3 == opens_to(path)
            assert 7 in [opens_to(aside) for aside in moved_aside(state)]
    assert {7, -1, 3} == set(found)


# -- with a job that trains --


class Training:
    """A training process, and what it says."""

    def __init__(self, daemon: Daemon) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TRAINING), "vgg"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target},
        )  # fmt: skip
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        self.heard: list[dict[str, Any]] = []

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))

    def expect(self, **facts: object) -> None:
        """Waits until it says something that has these facts."""
        deadline = time.monotonic() + 30
        while True:
            said = self._said.get(timeout=max(0.1, deadline - time.monotonic()))
            self.heard.append(said)
            if facts.items() <= said.items():
                return

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def desired(daemon: Daemon) -> float:
    return lr_of(daemon).desired.float_value


def replaced_under_a_job(daemon: Daemon, tmp_path: Path) -> Training:
    """A job that uses 0.25 when a backup of when it used 0.5 is put under it."""
    backup = tmp_path / "b.db"
    training = Training(daemon)
    training.expect(connected=True)
    change(daemon, "vgg", 0.5)
    training.expect(lr=0.5)
    assert 0 == livetuned("backup", backup, "--endpoint", daemon.target).returncode
    change(daemon, "vgg", 0.25)
    training.expect(lr=0.25)
    eventually(lambda: applied(daemon) == 0.25)
    assert 0 == daemon.stop()
    training.expect(connected=False)
    restoring.restore(backup, daemon.state, aside=True)
    training.heard.clear()
    daemon.start()
    training.expect(connected=True)
    return training


def applied(daemon: Daemon) -> float:
    values = lr_of(daemon).applied
    return values[0].value.float_value if values else 0.0


def lr_of(daemon: Daemon) -> types_pb2.Variable:
    with daemon.control() as control:
        job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
    return next(variable for variable in job.variables if variable.spec.variable_id == "lr")


def test_a_job_trains_on_with_its_values_when_an_older_backup_is_put_under_it(daemon: Daemon, tmp_path: Path) -> None:
    training = replaced_under_a_job(daemon, tmp_path)
    try:
        eventually(lambda: desired(daemon) == 0.25)
        assert training.process.poll() is None
        change(daemon, "vgg", 0.125)
        training.expect(lr=0.125)
        # It never went back to what the backup says.
        assert [0.125] == [said["lr"] for said in training.heard if "lr" in said]
    finally:
        training.close()


def test_control_a_restored_store_that_passes_for_the_old_one_moves_the_job_back(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = everything(daemon)[0]
    monkeypatch.setattr("livetuned.store.copy.secrets.token_hex", lambda _: identity)
    training = replaced_under_a_job(daemon, tmp_path)
    try:
        if not any(said.get("lr") == 0.5 for said in training.heard):
            training.expect(lr=0.5)
        assert 0.5 == desired(daemon)
    finally:
        training.close()
