"""One change from end to end over the wire, without the SDK; refusals; what survives kill -9."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from livetune.v1 import control_pb2, types_pb2
from support.daemon import Daemon, eventually
from support.process import Process, float_spec


def set_text(job: str, **texts: str) -> control_pb2.SetVariablesRequest:
    updates = [
        control_pb2.VariableUpdate(variable_id=name.replace("__", "."), text=text) for name, text in texts.items()
    ]
    return control_pb2.SetVariablesRequest(job=f"jobs/{job}", updates=updates)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str], str]:
    """Returns code, ErrorInfo reason, metadata and message, read with google's own messages."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert "livetune" == info.domain
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return error.code(), info.reason, dict(info.metadata), status.message


def test_a_change_is_validated_committed_applied_and_remembered_after_kill_9(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = Process(channel, "vgg")
        registered = process.register()
        assert 1 == registered.run
        assert 22000 == registered.port
        process.open()
        declared = process.declare(
            float_spec("lr", 0.1, 1e-6, 1.0), float_spec("lc.strength", 0.0, 0.0), triggers=("save",)
        )
        assert [0.1, 0.0] == [variable.desired.float_value for variable in declared.variables]
        assert [False, False] == [variable.from_change for variable in declared.variables]

        answer = control.SetVariables(
            set_text("vgg", lr="0.01", lc__strength="0.2"), metadata=(("livetune-actor", "ann@host"),)
        )
        assert [0] == list(answer.connected_ranks)
        change = process.expect("change").change
        assert answer.change == change
        assert [("lr", 0.1, 0.01), ("lc.strength", 0.0, 0.2)] == [
            (item.variable_id, item.old_value.float_value, item.new_value.float_value) for item in change.assignments
        ]
        process.apply(change, step=8042)
        control.FireTriggers(control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"], reason="now"))
        process.apply(process.expect("change").change, step=8050)

        daemon.kill()
    daemon.start()
    with daemon.control() as control:
        job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
        assert types_pb2.JOB_STATE_LOST == job.state
        assert 22000 == job.port
        assert [("jobs/vgg/variables/lr", 0.01, 0.01, 8042), ("jobs/vgg/variables/lc.strength", 0.2, 0.2, 8042)] == [
            (item.name, item.desired.float_value, item.applied[0].value.float_value, item.applied[0].step)
            for item in job.variables
        ]
        assert [("jobs/vgg/triggers/save", 1, 1)] == [(item.name, item.fired, item.consumed) for item in job.triggers]
        history = control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg")).changes
        assert [("ann@host", 8042), ("", 8050)] == [(item.actor, item.applies[0].step) for item in history]


def test_every_refusal_names_the_thing_the_rule_and_the_value(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1, 1e-6, 1.0), triggers=("save",))
        before = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).revision

        cases: list[tuple[Callable[[], object], grpc.StatusCode, str, str]] = [
            (lambda: control.SetVariables(set_text("vgg", lr="nan")), grpc.StatusCode.OUT_OF_RANGE, "NOT_FINITE", "finite"),
            (lambda: control.SetVariables(set_text("vgg", lr="-inf")), grpc.StatusCode.OUT_OF_RANGE, "NOT_FINITE", "finite"),
            (lambda: control.SetVariables(set_text("vgg", lr="2")), grpc.StatusCode.OUT_OF_RANGE, "ABOVE_MAXIMUM", "<= 1.0"),
            (lambda: control.SetVariables(set_text("vgg", lr="0")), grpc.StatusCode.OUT_OF_RANGE, "BELOW_MINIMUM", ">= 1e-06"),
            (lambda: control.SetVariables(set_text("vgg", lr="abc")), grpc.StatusCode.INVALID_ARGUMENT, "WRONG_TYPE", "'abc'"),
            (lambda: control.SetVariables(set_text("vgg", lrr="1")), grpc.StatusCode.NOT_FOUND, "VARIABLE_NOT_FOUND", "'lr'"),
            (lambda: control.SetVariables(set_text("vgg", save="1")), grpc.StatusCode.NOT_FOUND, "VARIABLE_NOT_FOUND", "trigger"),
            (lambda: control.SetVariables(set_text("vg", lr="1")), grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", "'vgg'"),
            (lambda: control.SetVariables(set_text("v g", lr="1")), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME", "a-z"),
            (lambda: control.SetVariables(set_text("x" * 300, lr="1")), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME", "63"),
            (lambda: control.SetVariables(set_text("", lr="1")), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME", "''"),
            (lambda: control.SetVariables(set_text("vgg")), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "no variable"),
            (lambda: control.SetVariables(control_pb2.SetVariablesRequest(
                job="jobs/vgg", updates=[control_pb2.VariableUpdate(variable_id="lr")])),
             grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "no value"),
            (lambda: control.SetVariables(control_pb2.SetVariablesRequest(
                job="jobs/vgg", if_revision=1, updates=[control_pb2.VariableUpdate(variable_id="lr", text="0.5")])),
             grpc.StatusCode.ABORTED, "REVISION_MISMATCH", "after revision 1"),
            (lambda: control.FireTriggers(control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["sav"])),
             grpc.StatusCode.NOT_FOUND, "TRIGGER_NOT_FOUND", "'save'"),
            (lambda: control.GetJob(control_pb2.GetJobRequest(name="vgg")),
             grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME", "jobs/JOB"),
            (lambda: control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg", page_size=5_000)),
             grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", "history_page"),
            (lambda: next(control.Watch(control_pb2.WatchRequest(after_revision=10**6))),
             grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "1000000"),
        ]  # fmt: skip
        for call, code, reason, words in cases:
            got_code, got_reason, _, message = refusal(call)
            assert (code, reason) == (got_code, got_reason), message
            assert words in message
        # All or nothing: one bad assignment and the good one is not made either.
        refusal(lambda: control.SetVariables(set_text("vgg", lr="0.5", momentum="0.9")))
        assert before == control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).revision


def test_garbage_bytes_are_answered_and_nothing_internal_leaks(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        for method in ("ControlService/SetVariables", "ControlService/ListJobs", "JobService/Register"):
            call = channel.unary_unary(f"/livetune.v1.{method}", lambda data: data, lambda data: data)
            code, reason, _, message = refusal(lambda call=call: call(b"\xff\xff\xff\xff garbage", timeout=5))
            assert (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE") == (code, reason)
            assert "Error" not in message
        session = channel.stream_stream("/livetune.v1.JobService/Session", lambda data: data, lambda data: data)
        code, reason, _, _ = refusal(lambda: next(session(iter([b"\xff\xff garbage"]), timeout=5)))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE") == (code, reason)
        watch = channel.unary_stream("/livetune.v1.ControlService/Watch", lambda data: data, lambda data: data)
        code, reason, _, _ = refusal(lambda: next(watch(b"\xff\xff garbage", timeout=5)))
        assert (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE") == (code, reason)
    with daemon.control() as control:
        assert [] == list(control.ListJobs(control_pb2.ListJobsRequest()).jobs)


def test_a_retry_with_the_same_request_id_is_the_same_change(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        request = set_text("vgg", lr="0.5")
        request.request_id = "once"
        first = control.SetVariables(request)
        second = control.SetVariables(request)
        assert first.change == second.change
        assert 1 == len(control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg")).changes)


def test_the_jobs_own_port_serves_the_job_and_only_the_job(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        for name in ("one", "two"):
            Process(channel, name).register()
        with daemon.control("127.0.0.1:22001") as control:
            assert ["jobs/two"] == [job.name for job in control.ListJobs(control_pb2.ListJobsRequest()).jobs]
            assert "jobs/two" == control.GetJob(control_pb2.GetJobRequest()).job.name
            code, reason, _, message = refusal(lambda: control.GetJob(control_pb2.GetJobRequest(name="jobs/one")))
            assert (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND") == (code, reason)
            assert "port of job 'two'" in message


def test_a_live_job_is_not_taken_over_and_a_lost_one_keeps_what_was_asked(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        first = Process(channel, "vgg")
        first.join()
        first.declare(float_spec("lr", 0.1))
        second = Process(channel, "vgg")
        code, reason, _, message = refusal(second.register)
        assert (grpc.StatusCode.ALREADY_EXISTS, "JOB_EXISTS") == (code, reason)
        assert "process 42 of tester on testhost" in message

        control.SetVariables(set_text("vgg", lr="0.5"))
        first.close()

        def state() -> int:
            return control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job.state

        eventually(lambda: state() == types_pb2.JOB_STATE_LOST)
        again = second.register()
        assert (1, 22000) == (again.run, again.port)
        second.open()
        variable = second.declare(float_spec("lr", 0.1)).variables[0]
        assert (0.5, True) == (variable.desired.float_value, variable.from_change)

        second.send(end={"failed": False, "step": 7})
        second.expect("end_recorded")
        assert types_pb2.JOB_STATE_FINISHED == state()
        code, reason, _, message = refusal(lambda: control.SetVariables(set_text("vgg", lr="0.6")))
        assert (grpc.StatusCode.FAILED_PRECONDITION, "JOB_ENDED") == (code, reason)
        assert "finished at step 7" in message
        # A run that ended is over: the next one starts with what its program declares.
        third = Process(channel, "vgg")
        assert 2 == third.register().run
        third.open()
        variable = third.declare(float_spec("lr", 0.1)).variables[0]
        assert (0.1, False) == (variable.desired.float_value, variable.from_change)


def test_contradicting_declarations_are_refused_one_by_one(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        first = Process(channel, "ddp", world_size=2)
        first.join()
        first.declare(float_spec("lr", 0.1), float_spec("wd", 0.0), triggers=("save",))
        second = Process(channel, "ddp", rank=1, world_size=2)
        second.join()
        result = second.declare(
            float_spec("lr", 0.2), float_spec("wd", 0.0), float_spec("save", 0.0), float_spec("a b", 0.0),
            float_spec("x" * 300, 0.0), float_spec("", 0.0), float_spec("bad", float("nan")),
        )  # fmt: skip
        assert [
            "DECLARATION_CONFLICT", "", "DECLARATION_CONFLICT", "INVALID_NAME", "INVALID_NAME", "INVALID_NAME", "NOT_FINITE",
        ] == [variable.error.reason for variable in result.variables]  # fmt: skip
        assert "another initial" in result.variables[0].error.message


def test_a_job_port_taken_by_another_program_is_skipped_and_moved_after_a_restart(daemon: Daemon) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 22000))
        other.listen()
        with daemon.channel() as channel:
            assert 22001 == Process(channel, "vgg").register().port
    daemon.kill()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 22001))
        other.listen()
        daemon.start()
        with daemon.control() as control:
            port = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job.port
    assert 22000 == port
    assert "moved to 22000" in daemon.log


def test_watch_resumes_without_gap_or_repeat_over_a_restart(daemon: Daemon) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        for number in range(5):
            control.SetVariables(set_text("vgg", lr=str(number)))
        watch = control.Watch(control_pb2.WatchRequest(job="jobs/vgg", after_revision=0))
        first = next(watch)
        assert 0 == first.bookmark.revision
        seen = [next(watch).event for _ in range(4)]
        watch.cancel()
        daemon.kill()
    daemon.start()
    with daemon.control() as control:
        watch = control.Watch(
            control_pb2.WatchRequest(job="jobs/vgg", after_revision=seen[-1].revision, store_id=first.store_id)
        )
        assert seen[-1].revision == next(watch).bookmark.revision
        seen += [next(watch).event for _ in range(3)]
        watch.cancel()
    assert list(range(1, 8)) == [event.revision for event in seen]
    assert ["registered", "declared", *["change"] * 5] == [event.WhichOneof("kind") for event in seen]


def test_metrics_and_health_over_http(daemon: Daemon) -> None:
    def get(path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{daemon.metrics_port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with daemon.channel() as channel, daemon.control() as control:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1))
        control.SetVariables(set_text("vgg", lr="0.5"))
        process.apply(process.expect("change").change, step=3)
        refusal(lambda: control.SetVariables(set_text("vgg", lr="nan")))
        status, body = get("/metrics")
        assert 200 == status
        for line in (
            'livetune_jobs{state="running"} 1.0',
            'livetune_changes_total{result="accepted"} 1.0',
            'livetune_changes_total{result="not_finite"} 1.0',
            'livetune_applies_total{status="applied"} 1.0',
            "livetune_apply_seconds_count 1.0",
            "livetune_sessions 1.0",
            "livetune_watchers 0.0",
            "livetune_job_ports 1.0",
        ):
            assert line in body
        assert re.search(r'livetune_build_info\{python="3[^"]*",version="[^"]+"\} 1\.0', body)
        assert re.search(r"livetune_commit_seconds_count [1-9]", body)
    assert (200, "ok\n") == get("/healthz")
    assert 404 == get("/nothing")[0]
    assert 421 == get("/metrics", Host="evil.example")[0]
    request = urllib.request.Request(f"http://127.0.0.1:{daemon.metrics_port}/metrics", data=b"x=1")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    assert caught.value.code in (405, 413)
    caught.value.close()


def test_health_and_reflection_over_grpc(daemon: Daemon) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with daemon.channel() as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="livetune.v1.ControlService")
        )
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        services = {service.name for service in next(answers).list_services_response.service}
        assert {"livetune.v1.ControlService", "livetune.v1.JobService"} <= services


def test_the_http_endpoint_answers_garbage_briefly_and_silence_not_at_all(daemon: Daemon) -> None:
    def ask(data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", daemon.metrics_port), timeout=5) as connection:
            connection.sendall(data)
            return connection.recv(100)

    cases = [
        (b"GET /healthz HTTP/1.1\r\nHost: [::1]:9\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"200"),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", b"413"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"421"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"421"),
        (b"GET " + b"/" * 40_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01", b"400"),
    ]
    silent = [socket.create_connection(("127.0.0.1", daemon.metrics_port)) for _ in range(100)]
    try:
        for data, status in cases:
            answer = ask(data)
            assert answer.startswith(b"HTTP/1.1 " + status), (data[:60], answer)
    finally:
        for connection in silent:
            connection.close()
    assert "Traceback" not in daemon.log
