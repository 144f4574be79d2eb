"""Backing up a daemon while it runs: one consistent moment, whole or not at all, whatever breaks off."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from livetune.v1 import admin_pb2, admin_pb2_grpc, control_pb2, types_pb2
from livetuned.daemon import keeping, remote
from livetuned.domain.job import Job
from livetuned.domain.records import Changed, Record
from livetuned.domain.state import State
from livetuned.store import codec
from support.daemon import Daemon, eventually
from support.keeping import Story, command, contents, livetuned, state_of
from support.process import Process, float_spec

IN_PIECES = Path(__file__).parent.parent / "support" / "backup_in_pieces.py"
WRITERS = 4


class BrokenDaemon(Daemon):
    """A daemon whose backups are not of one moment."""

    def command(self) -> list[str]:
        return [sys.executable, str(IN_PIECES), *super().command()[3:]]


def update(values: dict[str, float], job: str = "vgg") -> control_pb2.SetVariablesRequest:
    request = control_pb2.SetVariablesRequest(job=f"jobs/{job}")
    for name, value in values.items():
        request.updates.add(variable_id=name).value.float_value = value
    return request


@contextmanager
def writing(daemon: Daemon) -> Iterator[Callable[[], int]]:
    """Four threads that change two variables of a job each, and the highest revision that was acknowledged so far."""
    with daemon.channel() as channel:
        for number in range(WRITERS):
            process = Process(channel, f"job-{number}")
            process.join()
            process.declare(float_spec("x", 0.0), float_spec("y", 0.0))
        acknowledged, stop = [0] * WRITERS, threading.Event()

        def write(number: int) -> None:
            with daemon.control() as control:
                value = 0.0
                while not stop.is_set():
                    value += 1
                    answer = control.SetVariables(update({"x": value, "y": -value}, f"job-{number}"), timeout=10)
                    acknowledged[number] = answer.change.revision

        threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: all(acknowledged))
            yield lambda: max(acknowledged)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def changes_of(daemon: Daemon) -> dict[int, types_pb2.Change]:
    """All changes that the daemon knows, by revision."""
    found: dict[int, types_pb2.Change] = {}
    with daemon.control() as control:
        for number in range(WRITERS):
            before = 0
            while True:
                page = control.ListChanges(
                    control_pb2.ListChangesRequest(job=f"jobs/job-{number}", page_size=1_000, before_revision=before)
                )
                found.update({change.revision: change for change in page.changes})
                before = page.previous_before_revision
                if not before:
                    break
    return found


def is_one_moment(path: Path, revision: int) -> bool:
    """Whether a backup is whole, ends with a revision, and its jobs are what its records make."""
    if livetuned("doctor", path).returncode != 0:
        return False
    jobs, records = state_of(path)
    state = State()
    for record in records:
        state.fold(record)
    whole = all(job.variables["x"].desired == -float(job.variables["y"].desired) for job in jobs.values())
    return whole and state.jobs == jobs and revision == records[-1].revision == len(records)


def test_a_backup_is_of_one_moment_while_four_threads_write(daemon: Daemon, tmp_path: Path) -> None:
    with writing(daemon) as acknowledged:
        for number in range(3):
            before = acknowledged()
            path = tmp_path / f"{number}.db"
            answer = livetuned("backup", path, "--endpoint", daemon.target)
            assert 0 == answer.returncode, answer
            match = re.fullmatch(
                rf"{re.escape(str(path))}: (\d+) records \(1-\1\), 4 jobs, revision \1, (\d+) bytes, from {daemon.target}\n",
                answer.stdout,
            )
            assert match, answer.stdout
            revision = int(match[1])
            assert before <= revision <= acknowledged() + WRITERS
            assert path.stat().st_size == int(match[2])
            assert is_one_moment(path, revision)
    known = changes_of(daemon)
    _, records = state_of(path)
    kept = {record.revision: record for record in records if isinstance(record.payload, Changed)}
    assert {number for number in known if number <= revision} == set(kept)
    for number, record in kept.items():
        assert isinstance(record.payload, Changed)
        assert [item.new for item in record.payload.assignments] == [
            item.new_value.float_value for item in known[number].assignments
        ]


def test_control_jobs_of_a_later_moment_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    daemon = BrokenDaemon(tmp_path / "daemon", "--job-ports", "22040-22049").start()
    try:
        with writing(daemon):
            path = tmp_path / "b.db"
            answer = livetuned("backup", path, "--endpoint", daemon.target)
            assert 5 == answer.returncode, answer
            assert "is of revision" in answer.stderr
            assert [] == list(tmp_path.glob("b.db*"))
    finally:
        daemon.close()


def test_the_file_is_private_and_is_replaced_only_when_told(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    before = os.umask(0)
    try:
        assert 0 == livetuned("backup", path, "--endpoint", daemon.target).returncode
    finally:
        os.umask(before)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    first = contents(tmp_path)["b.db"]
    refused = livetuned("backup", path, "--endpoint", daemon.target)
    assert 2 == refused.returncode
    assert f"{path} exists; --force replaces it" in refused.stderr
    assert first == contents(tmp_path)["b.db"]
    assert 0 == livetuned("backup", path, "--endpoint", daemon.target, "--force").returncode
    assert first != contents(tmp_path)["b.db"]
    assert ["b.db", "daemon"] == sorted(item.name for item in tmp_path.iterdir())


@pytest.mark.parametrize("beside", ["-wal", "-journal", "-head"])
def test_what_would_spoil_the_file_must_be_moved_away_first(daemon: Daemon, tmp_path: Path, beside: str) -> None:
    (tmp_path / f"b.db{beside}").write_text("mine")
    answer = livetuned("backup", tmp_path / "b.db", "--endpoint", daemon.target, "--force")
    assert 2 == answer.returncode
    assert f"{tmp_path / 'b.db'}{beside} stands where" in answer.stderr
    assert not (tmp_path / "b.db").exists()


def test_a_store_in_use_is_no_place_for_a_backup(daemon: Daemon) -> None:
    before = daemon.state.joinpath("livetuned.db").stat().st_ino
    answer = livetuned("backup", daemon.state / "livetuned.db", "--endpoint", daemon.target, "--force")
    assert 4 == answer.returncode
    assert before == daemon.state.joinpath("livetuned.db").stat().st_ino


def test_the_daemon_is_found_where_it_listens_by_default(
    make_daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make_daemon("--job-ports", "22040-22049")
    daemon.socket = tmp_path / "livetune" / "livetuned.sock"
    daemon.start()
    for name, value in (
        ("XDG_RUNTIME_DIR", str(tmp_path)),
        ("LIVETUNE_ENDPOINT", daemon.target),
        ("LIVETUNED_LISTEN", daemon.target),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", "/nowhere")
            patch.setenv(name, value)
            assert daemon.target == remote.backup_running(tmp_path / "b.db", None, force=True)[0]


def test_a_socket_in_a_folder_that_anybody_made_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetuned.daemon.paths.os.getuid", lambda: 987_654)
    assert ["unix:/run/livetuned/livetuned.sock", "127.0.0.1:7470"] == list(map(str, remote._places({}, None)))


def test_no_daemon_is_told_with_the_way_out(tmp_path: Path) -> None:
    answer = livetuned("backup", tmp_path / "b.db", "--endpoint", f"unix:{tmp_path}/none.sock")
    assert 7 == answer.returncode
    assert (
        f"no livetuned runs at unix:{tmp_path}/none.sock (No such file or directory): "
        "name its --endpoint, or back up its store with --state"
    ) in answer.stderr
    assert [] == list(tmp_path.iterdir())
    both = livetuned("backup", tmp_path / "b.db", "--endpoint", "unix:/x", "--state", tmp_path)
    assert 2 == both.returncode
    with pytest.raises(keeping.KeepingError, match=r"endpoint 'example.com:7470': only loopback") as wrong:
        remote.backup_running(tmp_path / "b.db", "example.com:7470", force=False)
    assert 2 == wrong.value.code


def test_a_jobs_port_makes_no_backups(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        assert process.registration is not None
        port = process.registration.port
        answer = livetuned("backup", tmp_path / "b.db", "--endpoint", f"127.0.0.1:{port}")
    assert 1 == answer.returncode
    assert "it is a job's port" in answer.stderr


# -- what breaks off --


class Sender(admin_pb2_grpc.AdminServiceServicer):
    """Sends a backup of a story, spoiled as told."""

    def __init__(
        self, jobs: dict[str, Job], records: list[Record], spoil: Callable[[Sender, Any], Iterator[Any]]
    ) -> None:
        self.jobs, self.records, self.spoil = jobs, records, spoil
        self.resume = threading.Event()

    def Backup(self, request: Any, context: Any) -> Iterator[admin_pb2.BackupResponse]:  # noqa: N802 - the contract's
        yield from self.spoil(self, context)

    def begin(self, revision: int | None = None, compacted: int = 0) -> admin_pb2.BackupResponse:
        last = len(self.records) if revision is None else revision
        begin = admin_pb2.BackupBegin(store_id="0" * 32, revision=last, compacted_revision=compacted)
        return admin_pb2.BackupResponse(begin=begin)

    def all_jobs(self) -> admin_pb2.BackupResponse:
        payloads = [codec.encode_job(job) for job in self.jobs.values()]
        return admin_pb2.BackupResponse(jobs=admin_pb2.BackupJobs(payloads=payloads))

    def some(self, first: int, last: int, **altered: Any) -> admin_pb2.BackupResponse:
        records = []
        for record in self.records[first - 1 : last]:
            text = codec.encode(record.payload)
            fields = {"revision": record.revision, "time_us": record.time_us, "job_id": record.job, "kind": codec.kind_of(record.payload), "payload": text}  # fmt: skip
            records.append(admin_pb2.StoredRecord(**{**fields, **altered}))
        return admin_pb2.BackupResponse(records=admin_pb2.BackupRecords(records=records))


def whole(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 5), sender.some(6, 16))


def cut_short(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 5))


def gap(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 5), sender.some(7, 16))


def twice(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 5), sender.some(5, 16))


def garbage(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 5), sender.some(6, 16, payload="{"))


def unknown_kind(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.some(1, 16, kind="renamed"))


def job_twice(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.all_jobs(), sender.all_jobs(), sender.some(1, 16))


def no_jobs_at_all(sender: Sender, context: Any) -> Iterator[Any]:
    yield admin_pb2.BackupResponse(jobs=admin_pb2.BackupJobs(payloads=["[]"]))


def damaged(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.some(1, 5))
    context.abort(grpc.StatusCode.DATA_LOSS, "the daemon's store is damaged where this was to be read")


def dies(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.some(1, 5))
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def hangs(sender: Sender, context: Any) -> Iterator[Any]:
    yield from (sender.begin(), sender.some(1, 5))
    sender.resume.wait(60)


@contextmanager
def sending(folder: Path, spoil: Callable[[Sender, Any], Iterator[Any]]) -> Iterator[tuple[str, Sender]]:
    (folder / "story").mkdir()
    with Story(folder / "story" / "s.db") as story:
        story.begin("a", "b")
        story.change("a", 6)
    sender = Sender(story.state.jobs, story.records, spoil)
    with futures.ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(sender, server)
        target = f"unix:{folder}/sender.sock"
        assert server.add_insecure_port(target)
        server.start()
        try:
            yield target, sender
        finally:
            sender.resume.set()
            server.stop(0).wait()


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (whole, 0, ""),
        (cut_short, 5, "revision 16 was announced, and 5 was the last one sent"),
        (gap, 5, "record 6 is missing, 7 came"),
        (twice, 5, "record 6 is missing, 5 came"),
        (garbage, 5, "Expecting property name"),
        (unknown_kind, 5, "not a record of kind 'renamed'"),
        (job_twice, 5, "UNIQUE constraint failed: snapshots.job"),
        (no_jobs_at_all, 5, "does not begin as a backup does"),
        (
            damaged,
            5,
            "broke off, nothing was written: the daemon's store is damaged where this was to be read; stop it",
        ),
        (dies, 7, "broke off, nothing was written: it went away"),
    ],
)
def test_what_breaks_off_or_is_no_backup_leaves_nothing(
    tmp_path: Path, spoil: Callable[[Sender, Any], Iterator[Any]], code: int, words: str
) -> None:
    (tmp_path / "to").mkdir()
    with sending(tmp_path, spoil) as (target, _):
        if code:
            with pytest.raises(keeping.KeepingError, match=re.escape(words)) as refused:
                remote.backup_running(tmp_path / "to" / "b.db", target, force=False)
            assert code == refused.value.code
        else:
            remote.backup_running(tmp_path / "to" / "b.db", target, force=False)
    assert ([] if code else ["b.db"]) == [item.name for item in (tmp_path / "to").iterdir()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_backup_that_is_ended_leaves_no_backup(tmp_path: Path, number: signal.Signals, code: int) -> None:
    path, partial = tmp_path / "b.db", tmp_path / "b.db.partial"
    with sending(tmp_path, hangs) as (target, sender):
        process = subprocess.Popen(command("backup", path, "--endpoint", target), stderr=subprocess.PIPE)
        try:
            eventually(partial.exists)
            other = livetuned("backup", path, "--endpoint", target)
            assert (1, True) == (other.returncode, "is being written by another livetuned" in other.stderr)
            process.send_signal(number)
            assert code == process.wait(20)
        finally:
            process.kill()
            process.communicate()
        assert not path.exists()
        # Nobody can tidy up after kill -9; the next one takes its place.
        assert partial.exists() == (number is signal.SIGKILL)
        sender.spoil = whole
        assert 0 == livetuned("backup", path, "--endpoint", target).returncode
    assert not partial.exists()
    assert 0 == livetuned("doctor", path).returncode


def test_a_frozen_daemon_ends_it_within_seconds(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        answer = livetuned("backup", tmp_path / "b.db", "--endpoint", daemon.target)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert 7 == answer.returncode, answer
    assert [] == list(tmp_path.glob("b.db*"))


def test_a_full_disk_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    limited = [
        "sh",
        "-c",
        'ulimit -f 16; exec "$@"',
        "sh",
        *command("backup", tmp_path / "b.db", "--endpoint", daemon.target),
    ]
    answer = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert 1 == answer.returncode, answer
    assert "b.db.partial: disk I/O error" in answer.stderr
    assert [] == list(tmp_path.glob("b.db*"))


def test_a_folder_that_is_missing_is_named(daemon: Daemon, tmp_path: Path) -> None:
    answer = livetuned("backup", tmp_path / "none" / "b.db", "--endpoint", daemon.target)
    assert 1 == answer.returncode
    assert f"{tmp_path / 'none' / 'b.db.partial'}: No such file or directory" in answer.stderr


# -- of a daemon that is stopped --


def test_the_store_of_a_stopped_daemon_is_backed_up_with_state(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    running = livetuned("backup", path, "--state", daemon.state)
    assert 4 == running.returncode
    assert "leave --state out, then it is backed up while it runs" in running.stderr
    with writing(daemon):
        pass
    daemon.kill()
    before = contents(daemon.state)
    answer = livetuned("backup", path, "--state", daemon.state)
    assert 0 == answer.returncode, answer
    assert before == contents(daemon.state)
    backed_up = state_of(path)
    assert state_of(daemon.state / "livetuned.db") == backed_up


def test_a_damaged_store_is_not_backed_up(tmp_path: Path) -> None:
    with Story(tmp_path / "livetuned.db") as story:
        story.begin("a")
    story.path.write_bytes(story.path.read_bytes().replace(b'"world_size":1', b'"world_size":2', 1))
    answer = livetuned("backup", tmp_path / "b.db", "--state", tmp_path)
    assert 5 == answer.returncode
    assert "does not keep its checksum" in answer.stderr
    assert "livetuned doctor" in answer.stderr
    assert not (tmp_path / "b.db").exists()
