"""`ltctl watch` and waiting where events are not all there is: snapshots, another store, slow and absent readers."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from livetuned.domain.errors import DomainError, Reason
from livetuned.transport.errors import DETAILS_KEY, details
from support.compaction import compact
from support.daemon import Daemon
from support.process import Process, float_spec
from support.shell import Shell, training


class Following:
    """A command that runs: what it says, line by line."""

    def __init__(self, shell: Shell, *words: str) -> None:
        self.process = shell.start(*words)
        self._out: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._err: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self._out), (self.process.stderr, self._err))
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: Any, lines: queue.SimpleQueue[str]) -> None:
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))

    def line(self) -> str:
        return self._out.get(timeout=30)

    def item(self) -> dict[str, Any]:
        item: dict[str, Any] = json.loads(self.line())
        return item

    def error(self) -> str:
        return self._err.get(timeout=30)

    def nothing_more(self) -> bool:
        return self._out.empty() and self._err.empty()

    def wait(self) -> int:
        code = self.process.wait(30)
        for thread in self._threads:
            thread.join(30)
        return code

    def close(self) -> None:
        self.process.kill()
        self.wait()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon with ports of its own: one that another program holds after a restart would be one record more."""
    return make_daemon("--job-ports", "23200-23219").start()


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


@pytest.fixture
def follow() -> Iterator[Callable[..., Following]]:
    made: list[Following] = []

    def start(shell: Shell, *words: str) -> Following:
        made.append(Following(shell, *words))
        return made[-1]

    yield start
    for following in made:
        following.close()


def job(daemon: Daemon, name: str, *values: str) -> None:
    """A job that was there, with changes of its lr."""
    with daemon.channel() as channel:
        process = Process(channel, name)
        process.join()
        process.declare(float_spec("lr", 0.1), float_spec("wd", 0.0), triggers=("save",))
        process.close()
        stub = control_pb2_grpc.ControlServiceStub(channel)
        for value in values:
            update = control_pb2.VariableUpdate(variable_id="lr", text=value)
            stub.SetVariables(control_pb2.SetVariablesRequest(job=f"jobs/{name}", updates=[update]), timeout=10)


def test_over_a_compaction_it_goes_on_from_what_is_now(
    daemon: Daemon, shell: Shell, follow: Callable[..., Following]
) -> None:
    job(daemon, "one", "0.2", "0.3")
    job(daemon, "two")
    assert 0 == daemon.stop()
    compact(Path(daemon.state), through=4)
    daemon.start()
    table = follow(shell, "watch", "--after", "2", "-n", "1")
    items = follow(shell, "watch", "one", "--after", "2", "-n", "1", "--bookmarks", "-o", "jsonl")
    said = "ltctl: the events that come next are not kept any more (retention); going on from what is now"
    assert (said, said) == (table.error(), items.error())
    assert [
        f"4  now  one  lost at step 0, port {shell.data('describe', 'one')['port']}: lr 0.3, wd 0",
        f"6  now  two  lost at step 0, port {shell.data('describe', 'two')['port']}: lr 0.1, wd 0",
    ] == sorted(table.line() for _ in range(2))
    begin, one, bookmark = items.item(), items.item(), items.item()
    assert ("snapshot_begin", "compacted") == (begin["kind"], begin["cause"])
    assert ("snapshot_job", "one", "lost", 4) == (one["kind"], one["job"], one["state"], one["revision"])
    assert [0.3, 0.0] == [variable["desired"] for variable in one["variables"]]
    assert ["save"] == [trigger["name"] for trigger in one["triggers"]]
    assert {"kind": "bookmark", "revision": 6, "store_id": begin["store_id"]} == bookmark
    assert 0 == shell("set", "one", "lr=0.4", "--wait", "accepted").code
    assert (7, "change") == ((event := items.item())["revision"], event["kind"])
    assert "  one  lr 0.3 → 0.4  by " in table.line()
    assert (0, 0) == (items.wait(), table.wait())
    assert items.nothing_more()


def test_a_snapshot_that_was_asked_for(daemon: Daemon, shell: Shell) -> None:
    job(daemon, "one")
    port = shell.data("describe", "one")["port"]
    watch = Following(shell, "--port", str(port), "watch", "--snapshot", "-n", "1")
    assert watch.line().startswith(f"2  now  lost at step 0, port {port}: lr 0.1")
    assert 0 == shell("set", "one", "lr=0.4", "--wait", "accepted").code
    assert watch.line().startswith("3  ")
    assert (0, True) == (watch.wait(), watch.nothing_more())
    both = shell("watch", "--snapshot", "--after", "1")
    assert 2 == both.code
    assert "--snapshot and --after exclude each other" in both.err


def test_bookmarks_are_shown_when_asked_for(daemon: Daemon, shell: Shell, follow: Callable[..., Following]) -> None:
    job(daemon, "one")
    watch = follow(shell, "watch", "--bookmarks")
    assert "2  nothing after this revision yet" == watch.line()
    named = follow(shell, "watch", "--after", "1", "-n", "1", "-o", "name")
    assert "2" == named.line()
    assert 0 == named.wait()


def test_over_another_store_it_goes_on_and_waits_for_its_job(
    daemon: Daemon, shell: Shell, follow: Callable[..., Following]
) -> None:
    with training(daemon, "vgg"):
        every = follow(shell, "watch", "--bookmarks", "-o", "jsonl")
        own = follow(shell, "watch", "vgg", "--bookmarks")
        first = every.item()["store_id"]
        assert "nothing after this revision yet" in own.line()
        daemon.kill()
        shutil.move(daemon.state, daemon.folder / "old")
        daemon.start()
        assert "the daemon is gone; going on when it is back" in every.error()
        assert "ltctl: the daemon has another store now; going on from what is in it" == every.error()
        begin = every.item()
        assert ("snapshot_begin", "store_replaced") == (begin["kind"], begin["cause"])
        assert first != begin["store_id"]
        assert "the daemon is gone; going on when it is back" in own.error()
        said = own.error()
        if "does not know the job any more" in said:  # it has not found its daemon again yet
            said = own.error()
        assert "the daemon has another store now" in said
        assert " now  " in own.line()


def test_on_the_jobs_own_port_it_ends_with_the_job(
    daemon: Daemon, shell: Shell, follow: Callable[..., Following]
) -> None:
    with training(daemon, "vgg"):
        watch = follow(shell, "--port", str(shell.data("describe", "vgg")["port"]), "watch", "--after", "0")
        assert "began run 1 as rank 0" in watch.line()
        assert 0 == shell("trigger", "vgg", "stop").code
        assert 0 == watch.wait()
        assert "the job has ended, and its port is closed with it" == watch.error()


@pytest.mark.parametrize(
    "words", ["jobs", "get vgg", "describe vgg", "history -o json", "history", "watch --after 0", "--help"]
)
def test_a_reader_that_left_is_no_error(daemon: Daemon, shell: Shell, words: str) -> None:
    job(daemon, "vgg", "0.2")
    assert (0, "") == without_reader(shell, *words.split())


def test_the_exit_code_tells_what_became_of_a_change_even_if_nobody_reads(daemon: Daemon, shell: Shell) -> None:
    with training(daemon, "vgg"):
        assert (0, "") == without_reader(shell, "set", "vgg", "lr=0.5")
        code, err = without_reader(shell, "set", "vgg", "lr=7")
        assert 5 == code
        assert "it must be <= 1.0" in err
    job(daemon, "away")
    code, err = without_reader(shell, "set", "away", "lr=0.5", "--timeout", "0.2")
    assert 8 == code
    assert "not applied within 0.2 s" in err


def without_reader(shell: Shell, *words: str) -> tuple[int, str]:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "ltctl", *words],
            stdout=theirs, stderr=subprocess.PIPE, text=True, env=shell.environment, timeout=60,
        )  # fmt: skip
    finally:
        os.close(theirs)
    return run.returncode, run.stderr


def test_a_watch_ends_when_its_reader_leaves_though_nothing_happens(daemon: Daemon, shell: Shell) -> None:
    job(daemon, "vgg")
    watch = shell.start("watch", "--after", "0")
    assert watch.stdout is not None
    assert watch.stderr is not None
    with watch.stdout, watch.stderr:
        watch.stdout.readline()
        watch.stdout.close()  # as `| head -n 1` does
        assert (0, "") == (watch.wait(20), watch.stderr.read())


# --- What a real daemon can't be made to say at will ------------------------------------------------------------------

STORE = "first"
LR = types_pb2.Assignment(variable_id="lr")
LR.old_value.float_value, LR.new_value.float_value = 0.1, 0.5


class Script(control_pb2_grpc.ControlServiceServicer):
    """A daemon that plays a script: what each watch in turn is told, and what the history still keeps."""

    def __init__(
        self, *watches: list[control_pb2.WatchResponse | DomainError], kept: types_pb2.Change | None = None
    ) -> None:
        self._watches = iter(watches)
        self._kept = kept
        self.asked: queue.SimpleQueue[control_pb2.WatchRequest] = queue.SimpleQueue()

    def SetVariables(self, request: Any, context: Any) -> control_pb2.SetVariablesResponse:  # noqa: N802 - the name in the contract
        change = types_pb2.Change(revision=5, job="jobs/vgg", assignments=[LR])
        return control_pb2.SetVariablesResponse(change=change, store_id=STORE, connected_ranks=[0])

    def ListChanges(self, request: Any, context: Any) -> control_pb2.ListChangesResponse:  # noqa: N802 - the name in the contract
        assert (1, 6, 4) == (request.page_size, request.before_revision, request.after_revision)
        return control_pb2.ListChangesResponse(changes=[self._kept] if self._kept else [], compacted_revision=4)

    def Watch(self, request: control_pb2.WatchRequest, context: Any) -> Iterator[control_pb2.WatchResponse]:  # noqa: N802 - the name in the contract
        self.asked.put(request)
        for line in next(self._watches):
            if isinstance(line, DomainError):
                context.set_trailing_metadata(((DETAILS_KEY, details(line)),))
                context.abort(
                    grpc.StatusCode.ABORTED if line.reason is Reason.WATCH_TOO_SLOW else grpc.StatusCode.NOT_FOUND,
                    line.message,
                )
            yield line


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[[Script], Shell]]:
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_insecure_port(f"unix:{tmp_path}/s")

    def start(script: Script) -> Shell:
        control_pb2_grpc.add_ControlServiceServicer_to_server(script, server)
        server.start()
        return Shell(f"unix:{tmp_path}/s")

    yield start
    server.stop(None).wait(10)


def bookmark(revision: int, store: str = STORE) -> control_pb2.WatchResponse:
    return control_pb2.WatchResponse(store_id=store, bookmark=control_pb2.Bookmark(revision=revision))


def ended(revision: int) -> control_pb2.WatchResponse:
    event = control_pb2.Event(revision=revision, job="jobs/vgg")
    event.ended.state = types_pb2.JOB_STATE_FINISHED
    return control_pb2.WatchResponse(store_id=STORE, event=event)


def begin(
    cause: control_pb2.SnapshotCause.ValueType = control_pb2.SNAPSHOT_CAUSE_COMPACTED, store: str = STORE
) -> control_pb2.WatchResponse:
    return control_pb2.WatchResponse(store_id=store, snapshot_begin=control_pb2.SnapshotBegin(cause=cause))


def vgg(
    applied_revision: int = 0, state: types_pb2.JobState.ValueType = types_pb2.JOB_STATE_RUNNING
) -> control_pb2.WatchResponse:
    message = types_pb2.Job(name="jobs/vgg", state=state, revision=8)
    variable = message.variables.add()
    variable.spec.variable_id = "lr"
    if applied_revision:
        variable.applied.add(rank=0, revision=applied_revision, step=70).value.float_value = 0.5
    return control_pb2.WatchResponse(store_id=STORE, snapshot_job=message)


TOO_SLOW = DomainError(Reason.WATCH_TOO_SLOW, "nothing was read of this stream for too long")


def test_a_watch_that_was_too_slow_is_resumed_without_a_word(play: Callable[[Script], Shell]) -> None:
    script = Script([bookmark(3), ended(4), TOO_SLOW], [bookmark(4), ended(5)])
    answer = play(script)("watch", "-n", "2", "-o", "name")
    assert (0, "4\n5\n", "") == (answer.code, answer.out, answer.err)
    first, second = script.asked.get(), script.asked.get()
    assert (False, "") == (first.HasField("after_revision"), first.store_id)
    assert (4, STORE) == (second.after_revision, second.store_id)


def test_a_snapshot_that_was_cut_off_is_asked_for_again(play: Callable[[Script], Shell]) -> None:
    replaced = begin(control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED, "second")
    script = Script(
        [bookmark(7), TOO_SLOW],
        [replaced, vgg(), TOO_SLOW],
        [replaced, vgg(), bookmark(2, "second"), TOO_SLOW],
        [ended(3)],
    )
    answer = play(script)("watch", "-n", "1", "-o", "jsonl")
    assert 0 == answer.code
    kinds = [json.loads(line)["kind"] for line in answer.out.splitlines()]
    assert ["snapshot_begin", "snapshot_job", "snapshot_begin", "snapshot_job", "ended"] == kinds
    asked = [script.asked.get() for _ in range(4)]
    assert [(7, STORE), (7, STORE), (2, "second")] == [(item.after_revision, item.store_id) for item in asked[1:]]


def test_a_snapshot_asked_for_and_cut_off_is_asked_for_again(play: Callable[[Script], Shell]) -> None:
    requested = begin(control_pb2.SNAPSHOT_CAUSE_REQUESTED)
    script = Script([requested, TOO_SLOW], [requested, bookmark(2), TOO_SLOW], [ended(3)])
    assert 0 == play(script)("watch", "--snapshot", "-n", "1").code
    assert [True, True, False] == [script.asked.get().snapshot for _ in range(3)]


def applied(status: types_pb2.ApplyStatus.ValueType, reason: str = "") -> types_pb2.Change:
    change = types_pb2.Change(revision=5, job="jobs/vgg", assignments=[LR])
    change.applies.add(change_revision=5, step=60).outcomes.add(variable_id="lr", status=status, reason=reason)
    return change


@pytest.mark.parametrize(
    ("kept", "state", "code", "out", "err"),
    [
        (applied(types_pb2.APPLY_STATUS_APPLIED), vgg(5), 0, "applied at step 60", ""),
        (applied(types_pb2.APPLY_STATUS_REFUSED, "too hot"), vgg(), 9, "refused (too hot) at step 60", "lr: too hot"),
        (types_pb2.Change(revision=5, lapsed_ids=["lr"]), vgg(6), 4, "superseded", "whether this was ever in effect"),
        (types_pb2.Change(revision=5, lapsed_ids=["lr"]), vgg(), 4, "superseded", "never in effect: lr"),
        (None, vgg(5), 0, "applied at step 70", ""),
        (None, vgg(6), 4, "changed again since", "lr was changed again since"),
        (None, vgg(5, types_pb2.JOB_STATE_FINISHED), 0, "applied at step 70", ""),
        (None, vgg(4, types_pb2.JOB_STATE_FINISHED), 8, "", "the job ended before it applied it"),
        (None, None, 8, "", "the job was removed before it applied it"),
    ],
)
def test_waiting_learns_from_a_snapshot_what_events_no_longer_tell(
    play: Callable[[Script], Shell],
    kept: types_pb2.Change | None,
    state: control_pb2.WatchResponse | None,
    code: int,
    out: str,
    err: str,
) -> None:
    script = Script([begin(), *([state] if state else []), bookmark(9)], kept=kept)
    answer = play(script).inside("set", "vgg", "lr=0.5")
    assert code == answer.code, answer
    assert out in answer.out
    assert bool(out) == bool(answer.out)
    assert err in answer.err
    assert (5, STORE) == ((asked := script.asked.get()).after_revision, asked.store_id)


def test_waiting_goes_on_after_a_snapshot_that_does_not_know_yet(play: Callable[[Script], Shell]) -> None:
    event = control_pb2.Event(revision=10, job="jobs/vgg")
    event.apply.change_revision, event.apply.step = 5, 99
    event.apply.outcomes.add(variable_id="lr", status=types_pb2.APPLY_STATUS_APPLIED)
    late = control_pb2.WatchResponse(store_id=STORE, event=event)
    answer = play(Script([begin(), vgg(4), bookmark(9), late], kept=types_pb2.Change(revision=5))).inside(
        "set", "vgg", "lr=0.5"
    )
    assert (0, "lr 0.1 → 0.5   applied at step 99\n") == (answer.code, answer.out)


def test_waiting_over_another_store_says_that_nobody_can_know(play: Callable[[Script], Shell]) -> None:
    replaced = begin(control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED, "second")
    answer = play(Script([replaced, vgg(5), bookmark(9, "second")])).inside("set", "vgg", "lr=0.5")
    assert (1, "") == (answer.code, answer.out)
    assert "accepted as revision 5, but the daemon has another store now" in answer.err


def test_waiting_for_a_job_that_the_daemon_forgot(play: Callable[[Script], Shell]) -> None:
    forgotten = DomainError(Reason.JOB_NOT_FOUND, "job 'vgg' not found")
    answer = play(Script([TOO_SLOW], [forgotten])).inside("set", "vgg", "lr=0.5")
    assert 8 == answer.code
    assert "accepted as revision 5, but the job was removed before it applied it" in answer.err
