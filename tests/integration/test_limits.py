"""Limits over the wire: beyond each RESOURCE_EXHAUSTED with its name, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from livetune.v1 import control_pb2, errors_pb2, job_pb2, types_pb2
from livetuned.domain import limits
from livetuned.domain.errors import DomainError
from livetuned.domain.history import ChangeFilter
from livetuned.domain.names import check_identifier, check_job_name
from livetuned.domain.records import Changed, Draft, Registered
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.transport.stalls import Stalls
from support.daemon import Daemon, eventually
from support.domain import PROCESS
from support.memory_store import MemoryStore
from support.metrics import metric
from support.process import Process, float_spec

SMALL = {
    "JOBS": 3, "NAMES_PER_JOB": 4, "WATCHERS": 2, "CHANGE_STREAMS": 1, "SESSIONS": 2, "PENDING_FIRINGS": 2,
    "ASSIGNMENTS_PER_CHANGE": 2, "CHOICES": 2, "RANKS_PER_JOB": 4, "SERIES_PER_RANK": 2, "POINTS_PER_SERIES": 4,
    "POINTS_IN_ANSWER": 3, "SAMPLES_BURST": 40, "SAMPLES_PER_SECOND": 1,
}  # fmt: skip


class LimitedDaemon(Daemon):
    def command(self) -> list[str]:
        python, _, _, *arguments = super().command()
        return [python, str(Path(__file__).parent.parent / "support" / "small_limits.py"), *arguments]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    file = tmp_path / "livetuned.toml"
    file.write_text("[limits]\nchanges_per_second = 0.001\nchanges_burst = 40\n")
    server = LimitedDaemon(
        tmp_path, "--config", str(file), "--job-ports", "22110-22119", environment={"TEST_LIMITS": json.dumps(SMALL)}
    )
    server.start()
    yield server
    server.close()


def exceeded(call: Callable[[], object]) -> str:
    """Returns the limit that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert grpc.StatusCode.RESOURCE_EXHAUSTED is error.code(), error  # type: ignore[attr-defined]
    status = errors_pb2.ErrorStatus()
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    if not status.details:
        return str(error.details())  # type: ignore[attr-defined] # gRPC's own limits have no details of ours
    info = errors_pb2.ErrorInfo.FromString(status.details[0].value)
    assert "LIMIT_EXCEEDED" == info.reason
    assert int(info.metadata["maximum"]) >= 0
    return info.metadata["limit"]


def set_request(count: int = 1, **fields: object) -> control_pb2.SetVariablesRequest:
    updates = [
        control_pb2.VariableUpdate(variable_id=f"v{number}", value=types_pb2.Value(float_value=0.5))
        for number in range(count)
    ]
    return control_pb2.SetVariablesRequest(job="jobs/vgg", updates=updates, **fields)


@pytest.fixture
def process(daemon: Daemon) -> Iterator[Process]:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(*(float_spec(f"v{number}", 0.1) for number in range(3)), triggers=("save",))
        yield process
        # Whatever was refused, this job was not disturbed.
        with daemon.control() as control:
            job = control.GetJob(control_pb2.GetJobRequest(name="jobs/vgg")).job
        assert (types_pb2.JOB_STATE_STARTING, 3) == (job.state, len(job.variables))


def test_what_one_request_may_hold(daemon: Daemon, process: Process) -> None:
    with daemon.control() as control:
        assert "assignments_per_change" == exceeded(lambda: control.SetVariables(set_request(3)))
        assert "text_bytes" == exceeded(lambda: control.SetVariables(set_request(reason="x" * 5_000)))
        assert "request_id_bytes" == exceeded(lambda: control.SetVariables(set_request(request_id="x" * 201)))
        assert "history_page" == exceeded(lambda: control.ListChanges(control_pb2.ListChangesRequest(page_size=1_001)))
        large = set_request(reason="x" * (limits.MESSAGE_BYTES + 1))
        assert "larger than max" in exceeded(lambda: control.SetVariables(large))
        control.SetVariables(set_request(2))


def test_what_a_job_may_hold(daemon: Daemon, process: Process) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        refused = process.declare(float_spec("one.too.many", 0.1)).variables[0].error
        assert "limit names_per_job is 4" in refused.message
        spec = types_pb2.VariableSpec(
            variable_id="v0", type=types_pb2.VARIABLE_TYPE_STRING, initial=types_pb2.Value(string_value="a"), choices="abc"
        )  # fmt: skip
        assert "choices" in process.declare(spec).variables[0].error.message
        fire = control_pb2.FireTriggersRequest(job="jobs/vgg", trigger_ids=["save"])
        control.FireTriggers(fire)
        control.FireTriggers(fire)
        process.expect("change")
        process.expect("change")
        assert "pending_firings" == exceeded(lambda: control.FireTriggers(fire))
        assert "ranks_per_job" == exceeded(Process(channel, "big", world_size=5).register)


def test_how_many_there_may_be(daemon: Daemon, process: Process) -> None:
    with daemon.channel() as channel, daemon.control() as control:
        second, third = Process(channel, "two"), Process(channel, "three")
        second.join()
        third.register()
        assert "sessions" == exceeded(third.open)
        assert "jobs" == exceeded(Process(channel, "four").register)
        watches = [control.Watch(control_pb2.WatchRequest(), timeout=30) for _ in range(2)]
        for watch in watches:
            next(watch)
        assert "watchers" == exceeded(lambda: next(control.Watch(control_pb2.WatchRequest(), timeout=30)))
        revision = control.SetVariables(set_request()).change.revision
        for watch in watches:
            while (event := next(watch).event).revision != revision:
                assert event.revision <= revision
            watch.cancel()
        second.close()


def test_a_second_stream_of_changes(daemon: Daemon, process: Process) -> None:
    import queue

    with daemon.control() as control:
        up: queue.SimpleQueue[control_pb2.StreamChangesRequest | None] = queue.SimpleQueue()
        first = control.StreamChanges(iter(up.get, None), timeout=30)
        up.put(control_pb2.StreamChangesRequest(changes=[control_pb2.StreamedChange(tag=1, set=set_request())]))
        assert 1 == next(first).answers[0].tag
        assert "change_streams" == exceeded(lambda: next(control.StreamChanges(iter([]), timeout=30)))
        up.put(control_pb2.StreamChangesRequest(changes=[control_pb2.StreamedChange(tag=2, set=set_request())]))
        assert 2 == next(first).answers[0].tag
        up.put(None)


def test_how_often_a_caller_may(daemon: Daemon, process: Process) -> None:
    def set_as(actor: str) -> control_pb2.SetVariablesResponse:
        return control.SetVariables(set_request(), metadata=(("livetune-actor", actor),))

    with daemon.control() as control:
        for _ in range(40):
            set_as("script")
        assert "changes_per_second" == exceeded(lambda: set_as("script"))
        assert 0 < set_as("ann").change.revision


def test_how_much_a_program_may_log(daemon: Daemon, process: Process) -> None:
    def send(*names: str, step: int) -> None:
        samples = [job_pb2.MetricSample(name=name, step=step, value=0.5) for name in names]
        process.send(metrics=job_pb2.Metrics(samples=samples))
        process.declare()  # answered in its order: what was sent before is read, and the session goes on

    def get(**fields: int) -> control_pb2.GetMetricsResponse:
        return control.GetMetrics(control_pb2.GetMetricsRequest(job="jobs/vgg", **fields))

    with daemon.control() as control:
        assert "points_per_series" == exceeded(lambda: get(max_points=5))
        send("a", "b", "c", step=1)
        assert (["a", "b"], 1) == ([series.name for series in get().series], get().dropped)
        for step in range(2, 10):
            send("a", "b", step=step)
        # Of 4 points of each that are kept, an answer of 3 in all has 1 of each: the newest.
        assert [[9], [9]] == [list(series.point_steps) for series in get(max_points=4).series]
        send(*["a"] * 100, step=10)
        assert get().dropped > 50
        assert 0.0 == metric(daemon, "livetune_job_metric_series_hidden")


def test_names_at_their_limits() -> None:
    assert "x" * limits.JOB_NAME_BYTES == check_job_name("x" * limits.JOB_NAME_BYTES)
    with pytest.raises(DomainError, match="not allowed"):
        check_job_name("x" * (limits.JOB_NAME_BYTES + 1))
    assert "x" * limits.NAME_BYTES == check_identifier("variable", "x" * limits.NAME_BYTES)
    with pytest.raises(DomainError, match="not allowed"):
        check_identifier("variable", "x" * (limits.NAME_BYTES + 1))


def test_metadata_beyond_the_limit_is_refused(daemon: Daemon, process: Process) -> None:
    actor = "x" * (3 * limits.METADATA_BYTES)
    with daemon.control() as control, pytest.raises(grpc.RpcError) as caught:
        control.ListJobs(control_pb2.ListJobsRequest(), metadata=(("livetune-actor", actor),), timeout=10)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()  # type: ignore[attr-defined]


def test_a_head_of_a_request_to_the_metrics_page_beyond_the_limit_is_refused(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.metrics_port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (limits.HTTP_HEADER_BYTES + 1_000))
        answer = connection.recv(1_000)
    assert not answer or answer.startswith(b"HTTP/1.1 4")


def test_connections_to_the_metrics_page_beyond_the_limit_are_closed(daemon: Daemon) -> None:
    address = ("127.0.0.1", daemon.metrics_port)
    silent = [socket.create_connection(address, timeout=10) for _ in range(limits.HTTP_CONNECTIONS)]
    try:
        with socket.create_connection(address, timeout=10) as one_more:
            one_more.settimeout(10)
            assert b"" == one_more.recv(1_000)
    finally:
        for connection in silent:
            connection.close()

    def scraped() -> bool:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(1_000).startswith(b"HTTP/1.1 200")

    eventually(scraped)


def test_filtered_history_looks_at_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HISTORY_SCAN", 1_500)

    async def run() -> None:
        store = MemoryStore()
        registered = Registered(1, 21_000, 0, 1, "a", False, PROCESS)
        changes = [Changed("ann" if number == 0 else "bob", "", "", (), ()) for number in range(5_000)]
        await store.append([Draft(0, "vgg", payload) for payload in (registered, *changes)])
        engine = Engine(store, Hub(store), Metrics("test"))
        await engine.start()
        pages, before = 0, engine.revision + 1
        found: list[int] = []
        while before:
            page = await engine.history("vgg", before, 10, ChangeFilter(actor="ann"))
            found += [record.revision for record in page.changes]
            before, pages = page.before, pages + 1
        assert ([2], True) == (found, pages > 1)
        await engine.stop()

    asyncio.run(run())


def test_a_stream_that_nobody_reads_is_given_up_after_its_time() -> None:
    assert 30.0 == limits.WATCH_STALL_SECONDS == Stalls().seconds

    async def run() -> bool:
        stalls = Stalls(0.0)

        async def write() -> bool:
            stream = stalls.enter()
            stream.since = 1e-9
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                return stream.stalled
            finally:
                stalls.leave(stream)
            return False

        task = asyncio.create_task(write())
        await asyncio.sleep(0)
        stalls.sweep()
        return await task

    assert asyncio.run(run())


def test_bookmarks_come_while_nothing_happens_in_the_scope(tmp_path: Path) -> None:
    daemon = LimitedDaemon(
        tmp_path, "--job-ports", "22110-22119", environment={"TEST_LIMITS": json.dumps({"BOOKMARK_SECONDS": 0.2})}
    )  # fmt: skip
    try:
        with daemon.start().channel() as channel, daemon.control() as control:
            Process(channel, "quiet").join()
            busy = Process(channel, "vgg")
            busy.join()
            busy.declare(float_spec("v0", 0.1))
            watch = control.Watch(control_pb2.WatchRequest(job="jobs/quiet"), timeout=30)
            first = next(watch).bookmark.revision
            revision = control.SetVariables(set_request()).change.revision
            bookmark = next(watch)
            assert ("bookmark", revision) == (bookmark.WhichOneof("item"), bookmark.bookmark.revision)
            assert first < revision
            watch.cancel()
    finally:
        daemon.close()


ELSEWHERE = {
    "CHANGES_IN_FLIGHT": "test_one_message_of_too_many_changes_ends_the_stream",
    "PORT_QUARANTINE_SECONDS": "test_an_ended_jobs_port_rests_and_its_own_next_run_has_it_at_once",
    "HUB_RECORDS": "test_a_cursor_yields_its_scope_once_in_order_from_memory_or_store",
    "CLASSIC_LOG_LINES": "test_strangers_cannot_fill_the_log",
}
"""Limits whose test does not speak their name."""


def test_every_limit_has_its_unit_and_a_test() -> None:
    source = Path(limits.__file__).read_text()
    tests = "\n".join(file.read_text() for file in Path(__file__).parent.parent.rglob("test_*.py"))
    for name, doc in re.findall(r'(?m)^([A-Z_]+) = .*\n"""((?:.|\n)*?)"""', source):
        assert re.search(r"\bcount\b|bytes|seconds|1/s", doc), f"{name} names no unit"
        if name in ELSEWHERE:
            assert f"def {ELSEWHERE[name]}(" in tests, name
        else:
            assert re.search(rf"\b{name}\b|\b{name.lower()}\b", tests), f"{name} has no test"
