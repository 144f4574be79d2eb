"""What the contract promises of state, over the wire: streamed changes, undo, dry runs, watches, tokens, restarts."""

from __future__ import annotations

import queue
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from livetune.v1 import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, errors_pb2, job_pb2, types_pb2
from support.daemon import Daemon, eventually
from support.process import Process, float_spec


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    server = Daemon(tmp_path, "--job-ports", "22100-22109")
    server.start()
    yield server
    server.close()


def set_request(job: str, **values: float) -> control_pb2.SetVariablesRequest:
    return control_pb2.SetVariablesRequest(
        job=f"jobs/{job}",
        updates=[
            control_pb2.VariableUpdate(variable_id=name, value=types_pb2.Value(float_value=value))
            for name, value in values.items()
        ],
    )


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    status = errors_pb2.ErrorStatus()
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info = errors_pb2.ErrorInfo()
    if status.details:
        info.ParseFromString(status.details[0].value)
    return error.code(), info.reason  # type: ignore[attr-defined]


def job_with(channel: grpc.Channel, name: str, **initials: float) -> Process:
    process = Process(channel, name)
    process.join()
    process.declare(*(float_spec(variable, initial) for variable, initial in initials.items()), triggers=("save",))
    return process


class Stream:
    """A stream of changes, spoken to step by step."""

    def __init__(self, control: control_pb2_grpc.ControlServiceStub) -> None:
        self._up: queue.SimpleQueue[control_pb2.StreamChangesRequest | None] = queue.SimpleQueue()
        self._down = control.StreamChanges(iter(self._up.get, None), timeout=30)

    def send(self, *changes: control_pb2.StreamedChange) -> None:
        self._up.put(control_pb2.StreamChangesRequest(changes=changes))

    def answers(self, count: int) -> dict[int, control_pb2.StreamedAnswer]:
        found: dict[int, control_pb2.StreamedAnswer] = {}
        while len(found) < count:
            found.update({answer.tag: answer for answer in next(self._down).answers})
        return found

    def end(self) -> list[control_pb2.StreamChangesResponse]:
        self._up.put(None)
        return list(self._down)


def test_streamed_changes_are_answered_each_by_itself(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        job_with(channel, "vgg", lr=0.1, wd=0.0)
        stream = Stream(control)
        changes = [
            control_pb2.StreamedChange(tag=tag, set=set_request("vgg", lr=value))
            for tag, value in enumerate((0.5, float("nan"), 0.25, 0.125))
        ]
        changes += [
            control_pb2.StreamedChange(
                tag=10, fire=control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"])
            ),
            control_pb2.StreamedChange(tag=11),
            control_pb2.StreamedChange(tag=12, set=set_request("other", lr=1.0)),
        ]
        stream.send(*changes)
        answers = stream.answers(7)
        assert [0.5, 0.25, 0.125] == [answers[tag].change.assignments[0].new_value.float_value for tag in (0, 2, 3)]
        revisions = [answers[tag].change.revision for tag in (0, 2, 3, 10)]
        assert revisions == sorted(set(revisions))
        codes = {tag: answers[tag].error.code for tag in (1, 11, 12)}
        status = grpc.StatusCode
        assert {
            1: status.OUT_OF_RANGE.value[0],
            11: status.INVALID_ARGUMENT.value[0],
            12: status.NOT_FOUND.value[0],
        } == codes
        stream.send(control_pb2.StreamedChange(
            tag=20, undo=control_pb2.UndoChangeRequest(job="jobs/vgg", revision=answers[3].change.revision)
        ))  # fmt: skip
        undone = stream.answers(1)[20].change
        assert (0.125, 0.25) == (
            undone.assignments[0].old_value.float_value,
            undone.assignments[0].new_value.float_value,
        )
        stream.send(*(control_pb2.StreamedChange(tag=tag, set=set_request("vgg", lr=float(tag))) for tag in range(100)))
        assert 100 == sum(len(response.answers) for response in stream.end())
        variables = {
            item.spec.variable_id: item
            for item in control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job.variables
        }
        assert 99.0 == variables["lr"].desired.float_value


def test_one_message_of_too_many_changes_ends_the_stream(daemon: Daemon) -> None:
    with daemon.control() as control:
        stream = Stream(control)
        stream.send(*(control_pb2.StreamedChange(tag=tag) for tag in range(1_025)))
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED") == refusal(lambda: stream.answers(1))


def test_a_dry_run_says_what_would_be_and_changes_nothing(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = job_with(channel, "vgg", lr=0.1)
        before = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg"))
        request = set_request("vgg", lr=0.5)
        request.validate_only = True
        change = control.SetVariables(request).change
        assert (0, 0.1, 0.5) == (
            change.revision, change.assignments[0].old_value.float_value, change.assignments[0].new_value.float_value
        )  # fmt: skip
        request.updates[0].value.float_value = float("inf")
        assert (grpc.StatusCode.OUT_OF_RANGE, "NOT_FINITE") == refusal(lambda: control.SetVariables(request))
        fire = control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"], validate_only=True)
        assert 0 == control.FireTriggers(fire).change.revision
        assert before == control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg"))
        process.close()  # held until here: a job that is lost meanwhile is not what it was


def test_conditions_undo_merge_and_request_ids(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        job_with(channel, "vgg", lr=0.1, wd=0.0)
        first = set_request("vgg", lr=0.5)
        first.request_id = "one"
        made = control.SetVariables(first).change
        assert made == control.SetVariables(first).change
        first.updates[0].value.float_value = 0.6
        assert (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED") == refusal(lambda: control.SetVariables(first))
        guarded = set_request("vgg", wd=1.0)
        guarded.if_job_revision = made.revision - 1
        assert (grpc.StatusCode.ABORTED, "REVISION_MISMATCH") == refusal(lambda: control.SetVariables(guarded))
        guarded.if_job_revision = made.revision
        control.SetVariables(guarded)
        undo = control_pb2.UndoChangeRequest(job="jobs/vgg", revision=made.revision, reason="worse", request_id="u")
        undone = control.UndoChange(undo).change
        assert (made.revision, "worse", 0.1) == (
            undone.undone_revision,
            undone.reason,
            undone.assignments[0].new_value.float_value,
        )
        assert undone == control.UndoChange(undo).change
        undo.request_id = ""
        assert (grpc.StatusCode.ABORTED, "UNDO_CONFLICT") == refusal(lambda: control.UndoChange(undo))
        undo.revision = 1
        assert (grpc.StatusCode.NOT_FOUND, "CHANGE_NOT_FOUND") == refusal(lambda: control.UndoChange(undo))
        fire = control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"], merge=True)
        fired = control.FireTriggers(fire).change.revision
        assert fired == control.FireTriggers(fire).change.revision
        fire.merge = False
        assert fired < control.FireTriggers(fire).change.revision


def test_history_pages_and_filters_over_jobs(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        job_with(channel, "one", lr=0.1, wd=0.0)
        job_with(channel, "two", lr=0.1)
        for number in range(30):
            control.SetVariables(set_request("one" if number % 3 else "two", lr=float(number)),
                                 metadata=(("livetune-actor", "ann" if number % 2 else "bob"),))  # fmt: skip
        control.SetVariables(set_request("one", wd=1.0))

        def changes(**fields: object) -> list[types_pb2.Change]:
            found: list[types_pb2.Change] = []
            before = 0
            while True:
                answer = control.ListChanges(
                    control_pb2.ListChangesRequest(page_size=7, before_revision=before, **fields)
                )
                found = list(answer.changes) + found
                before = answer.previous_before_revision
                if not before:
                    return found

        everything = changes()
        assert 31 == len(everything)
        assert everything == sorted(everything, key=lambda change: change.revision)
        assert 21 == len(changes(job="jobs/one"))
        assert 10 == len(changes(job="jobs/two"))
        assert [1.0] == [change.assignments[0].new_value.float_value for change in changes(target_id="wd")]
        assert 15 == len(changes(actor="ann"))
        assert 10 == len(changes(actor="bob", job="jobs/one"))
        middle = everything[15]
        assert everything[16:] == changes(after_revision=middle.revision)
        assert everything[15:] == [item for item in changes(since_time=middle.time) if item.revision >= middle.revision]
        assert all(
            item.time.ToMicroseconds() < middle.time.ToMicroseconds() for item in changes(until_time=middle.time)
        )


def test_a_watch_begins_with_a_snapshot_when_asked_or_when_the_store_is_another(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = job_with(channel, "vgg", lr=0.1)
        job_with(channel, "other", lr=0.2)
        control.SetVariables(set_request("vgg", lr=0.5))
        process.apply(process.expect("change").change, step=7)
        for request, cause in (
            (control_pb2.WatchRequest(job="jobs/vgg", snapshot=True), control_pb2.SNAPSHOT_CAUSE_REQUESTED),
            (
                control_pb2.WatchRequest(job="jobs/vgg", after_revision=3, store_id="another"),
                control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED,
            ),
        ):
            watch = control.Watch(request, timeout=20)
            assert cause == next(watch).snapshot_begin.cause
            job = next(watch).snapshot_job
            assert ("jobs/vgg", 0.5, 7) == (
                job.name, job.variables[0].desired.float_value, job.variables[0].applied[0].step
            )  # fmt: skip
            begun = next(watch)
            assert "bookmark" == begun.WhichOneof("item")
            revision = control.SetVariables(set_request("vgg", lr=0.25)).change.revision
            assert begun.bookmark.revision < revision == next(watch).event.revision
            watch.cancel()
            process.apply(process.expect("change").change, step=8)
            control.SetVariables(set_request("vgg", lr=0.5))
            process.apply(process.expect("change").change, step=7)
        everything = control.Watch(control_pb2.WatchRequest(snapshot=True), timeout=20)
        next(everything)
        assert {"jobs/vgg", "jobs/other"} == {next(everything).snapshot_job.name for _ in range(2)}
        everything.cancel()


def test_many_watches_share_a_stream_and_each_sees_its_own(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        job_with(channel, "one", lr=0.1)
        job_with(channel, "two", lr=0.1)
        past = [control.SetVariables(set_request("one", lr=number / 10)).change.revision for number in range(3)]
        up: queue.SimpleQueue[control_pb2.WatchManyRequest | None] = queue.SimpleQueue()
        down = control.WatchMany(iter(up.get, None), timeout=30)
        seen: dict[int, list[object]] = {}

        def begin(number: int, **watch: object) -> None:
            message = control_pb2.WatchBegin(watch_id=number, watch=control_pb2.WatchRequest(**watch))
            up.put(control_pb2.WatchManyRequest(begin=message))

        def read_until(number: int, item: object) -> None:
            while item not in seen.get(number, []):
                answer = next(down)
                kind = answer.WhichOneof("item")
                if kind == "response":
                    inner = answer.response.WhichOneof("item")
                    what: object = answer.response.event.revision if inner == "event" else inner
                else:
                    what = kind
                for watch_id in answer.watch_ids:
                    seen.setdefault(watch_id, []).append(what)

        begin(1, job="jobs/one", after_revision=past[0])
        begin(2, job="jobs/two")
        begin(3)
        begin(4, job="jobs/one", snapshot=True)
        begin(5, job="jobs/none")
        begin(1, job="jobs/one")
        read_until(4, "bookmark")
        read_until(5, "error")
        read_until(1, "error")
        one = control.SetVariables(set_request("one", lr=0.9)).change.revision
        two = control.SetVariables(set_request("two", lr=0.8)).change.revision
        read_until(2, two)
        read_until(1, one)
        read_until(3, two)
        up.put(control_pb2.WatchManyRequest(end=control_pb2.WatchEnd(watch_id=3)))
        read_until(3, "ended")
        last = control.SetVariables(set_request("one", lr=0.7)).change.revision
        read_until(1, last)
        up.put(None)
        assert {
            1: ["bookmark", past[1], past[2], "error", one, last],
            2: ["bookmark", two],
            3: ["bookmark", one, two, "ended"],
            4: ["snapshot_begin", "snapshot_job", "bookmark", one, last],
            5: ["error"],
        } == seen
        eventually(lambda: "livetune_watchers 0.0" in metrics_of(daemon))


def metrics_of(daemon: Daemon) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}/metrics", timeout=10) as page:
        return str(page.read().decode())


def test_a_token_opens_the_session_and_no_other_does(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        token = process.register().job_token
        assert len(token) >= 43  # 256 bits
        process.token = "guessed"
        assert (grpc.StatusCode.FAILED_PRECONDITION, "NOT_REGISTERED") == refusal(process.open)
        again = Process(channel, "vgg", process.instance_id)
        again.token = token
        revision = process.registration.revision if process.registration else 0
        assert (token, revision) == (
            again.register().job_token,
            again.registration.revision if again.registration else -1,
        )
        again.open()
        # Without it the same process gets another one, and the old one opens nothing any more.
        forgot = Process(channel, "vgg", process.instance_id)
        assert token != forgot.register().job_token
        forgot.open()
        stale = Process(channel, "vgg", process.instance_id)
        stale.registration, stale.token = again.registration, token
        assert (grpc.StatusCode.FAILED_PRECONDITION, "NOT_REGISTERED") == refusal(stale.open)
        assert token not in (daemon.state / "livetuned.db").read_bytes().decode("latin-1")


def test_lost_jobs_are_ended_and_ended_jobs_forgotten_on_request(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = job_with(channel, "vgg", lr=0.1)
        remove = control_pb2.RemoveJobRequest(name="jobs/vgg", reason="gone")
        assert (grpc.StatusCode.FAILED_PRECONDITION, "JOB_LIVE") == refusal(lambda: control.RemoveJob(remove))
        process.close()

        def lost() -> bool:
            job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
            return job.state == types_pb2.JOB_STATE_LOST

        eventually(lost)
        watch = control.Watch(control_pb2.WatchRequest(), timeout=20)
        next(watch)
        assert types_pb2.JOB_STATE_FAILED == control.RemoveJob(remove, metadata=(("livetune-actor", "ann"),)).state
        job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
        assert (types_pb2.JOB_STATE_FAILED, 0, "given up by ann: gone") == (job.state, job.port, job.end_message)
        assert types_pb2.JOB_STATE_UNSPECIFIED == control.RemoveJob(remove).state
        assert (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND") == refusal(
            lambda: control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg"))
        )
        assert ["ended", "removed"] == [next(watch).event.WhichOneof("kind") for _ in range(2)]
        # Over the job's own port as well, which is closed behind the answer.
        other = job_with(channel, "other", lr=0.1)
        port = other.registration.port if other.registration else 0
        other.close()
        eventually(lambda: not control.GetJob(control_pb2.GetJobRequest(name="jobs/other")).job.ranks[0].connected)
        with daemon.control(f"127.0.0.1:{port}") as own:
            assert types_pb2.JOB_STATE_FAILED == own.RemoveJob(control_pb2.RemoveJobRequest(), timeout=10).state
        # The name is free: a new job of it begins with its first run, on the port that is resting for it no more.
        again = Process(channel, "vgg")
        assert 1 == again.register().run


def test_a_process_that_asks_for_the_latest_only_skips_what_it_missed(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = job_with(channel, "vgg", lr=0.1)
        process.close()
        for number in range(20):
            control.SetVariables(set_request("vgg", lr=number / 100))
        control.FireTriggers(control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"]))
        process.latest_only = True
        process.open()
        result = process.declare(float_spec("lr", 0.1), triggers=("save",))
        assert (0.19, True) == (result.variables[0].desired.float_value, result.variables[0].from_change)
        assert 1 == len(result.triggers[0].pending_revisions)
        revision = control.SetVariables(set_request("vgg", lr=0.5)).change.revision
        assert revision == process.expect("change").change.revision  # and nothing before it


def test_a_copy_of_the_store_is_consistent_and_whole(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        job_with(channel, "vgg", lr=0.1)
        for number in range(1_200):
            control.SetVariables(set_request("vgg", lr=number / 2_000))
        items = list(admin_pb2_grpc.AdminServiceStub(channel).Backup(admin_pb2.BackupRequest(), timeout=30))
        begin = items[0].begin
        records = [record for item in items for record in item.records.records]
        assert list(range(1, begin.revision + 1)) == [record.revision for record in records]
        assert 1 == sum(len(item.jobs.payloads) for item in items)
        job_port = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job.port
    with daemon.channel(f"127.0.0.1:{job_port}") as channel:
        code, _ = refusal(
            lambda: list(admin_pb2_grpc.AdminServiceStub(channel).Backup(admin_pb2.BackupRequest(), timeout=9))
        )
        assert grpc.StatusCode.UNIMPLEMENTED is code


def test_the_health_service_can_be_watched(daemon: Daemon) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with daemon.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert health_pb2.HealthCheckResponse.SERVING == next(watch).status
        watch.cancel()


def test_an_ended_jobs_port_rests_and_its_own_next_run_has_it_at_once(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        process = job_with(channel, "vgg", lr=0.1)
        port = process.registration.port if process.registration else 0
        process.send(end=job_pb2.End(step=1))
        process.expect("end_recorded")
        assert port + 1 == Process(channel, "other").register().port
        again = Process(channel, "vgg").register()
        assert (2, port) == (again.run, again.port)
        assert re.search(r"job vgg has finished", daemon.log)
