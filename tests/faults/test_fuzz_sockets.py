"""Garbage on every socket and in every method: no crash, no status that says nothing, no traceback, and others undisturbed."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from livetune.v1 import admin_pb2, control_pb2, job_pb2
from support import fuzzing
from support.calls import set_values
from support.daemon import Daemon, eventually
from support.metrics import metric, page
from support.plants import PlantedDaemon
from support.process import Process, float_spec
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22170-22179")
WORDS = (
    "jobs/vgg",
    "vgg",
    "jobs/",
    "jobs/nobody",
    "lr",
    "x",
    "save",
    "0.5",
    "true",
    "instance",
    "",
    "jobs/vgg/variables/x",
)
NOTHING_SAID = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (control_pb2, job_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
LIFE = 100
"""After so many cases the job that is fuzzed begins anew."""
ANSWERS = 3
"""How many answers of a stream are read before it is cancelled."""


class Fuzzer:
    """Sends what a daemon must bear.

    Args:
        daemon: Runs.
        channel: To it, for the job that is fuzzed.
        chosen_seed: Where chance comes from.
    """

    def __init__(self, daemon: Daemon, channel: grpc.Channel, chosen_seed: int) -> None:
        self.daemon = daemon
        self._channel = channel
        self._process: Process | None = None
        self.outcomes: Counter[str] = Counter()
        self.bad: list[str] = []
        self._generator = random.Random(chosen_seed)
        self._messages = fuzzing.Messages(self._generator, WORDS)
        self._kinds: list[Callable[[grpc.Channel], None]] = [self._method] * 4 + [self._http2, self._bytes, self._http]
        self._addresses: list[str | tuple[str, int]] = [str(daemon.socket), str(daemon.socket)]

    def run(self, cases: int) -> None:
        """Sends so many cases."""
        # Not the SDK's options: what is sent here is nobody's fault but the test's.
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.daemon.target, options=options) as channel:
            for number in range(cases):
                if number % LIFE == 0:
                    self._revive()
                self._generator.choice(self._kinds)(channel)

    def _revive(self) -> None:
        """Gives the job that is fuzzed a new process: what was sent may have ended it, or taken its session."""
        if self._process is not None:
            self._process.close()
        eventually(self._join, 30)
        assert self._process is not None
        assert self._process.registration is not None
        self._addresses[1] = ("127.0.0.1", self._process.registration.port)
        revision = self._process.registration.revision
        self._messages.sensible = {
            "job": ["jobs/vgg"], "name": ["jobs/vgg"], "variable_id": ["x"], "trigger_id": ["save"], "trigger_ids": ["save"],
            "type": [1, 2, 3, 4], "float_value": [0.5, 7.0], "text": ["0.5", "nan", "1e999"], "rank": [0], "world_size": [1],
            "instance_id": [self._process.instance_id], "job_token": [self._process.token], "page_size": [10],
            "after_revision": [0, revision], "before_revision": [0, revision + 5], "revision": [revision + 2, revision + 3],
            "change_revision": [revision + 2], "if_revision": [revision + 2], "request_id": ["r1", "r2"], "choices": ["a"],
            "seconds": [0, 1_700_000_000], "nanos": [0, 5], "on_restart": [0, 1, 2], "scale": [0, 1, 2], "step": [7],
        }  # fmt: skip

    def _join(self) -> bool:
        # The name may be held for a moment by whoever took it meanwhile.
        self._process = Process(self._channel, "vgg")
        with suppress(grpc.RpcError):
            self._process.join()
            self._process.declare(float_spec("x", 0.0, 0.0, 10.0), triggers=("save",))
            return True
        return False

    def _body(self, path: str) -> bytes:
        message = self._messages.message(METHODS[path].input_type)
        return fuzzing.mutated(message.SerializeToString(), self._generator)

    def _method(self, channel: grpc.Channel) -> None:
        path = self._generator.choice(list(METHODS))
        method = METHODS[path]
        bodies = [self._body(path) for _ in range(self._generator.randint(1, 4) if method.client_streaming else 1)]
        status = self._call(channel, path, bodies)
        self.outcomes[status.name] += 1
        if status in NOTHING_SAID:
            self.bad.append(f"{path}: {status.name} for {bodies!r}"[:500])

    def _call(self, channel: grpc.Channel, path: str, bodies: list[bytes]) -> grpc.StatusCode:
        method = METHODS[path]
        try:
            if not method.client_streaming and not method.server_streaming:
                channel.unary_unary(path)(bodies[0], timeout=10)
            elif method.client_streaming:
                self._read(channel.stream_stream(path)(iter(bodies), timeout=10), path)
            else:
                self._read(channel.unary_stream(path)(bodies[0], timeout=10), path)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def _read(self, answers: Iterator[bytes], path: str) -> None:
        for number, answer in enumerate(answers, 1):
            if path.endswith("/StreamChanges"):
                for change in control_pb2.StreamChangesResponse.FromString(answer).answers:
                    if change.error.code in [status.value[0] for status in NOTHING_SAID]:
                        self.bad.append(f"{path}: an answer says {change.error.code}")
            if number == ANSWERS or path.endswith("/Watch"):
                answers.cancel()  # type: ignore[attr-defined]
                return

    def _http2(self, _: grpc.Channel) -> None:
        path = self._generator.choice(list(METHODS)) if self._generator.random() < 0.9 else "/nonsense"
        body = self._body(path) if path in METHODS else b""
        frames = fuzzing.call(path, body, self._generator)
        self._send(self._generator.choice(self._addresses), fuzzing.PREFACE + fuzzing.mutated(frames, self._generator))

    def _bytes(self, _: grpc.Channel) -> None:
        start = fuzzing.PREFACE[: self._generator.randrange(len(fuzzing.PREFACE) + 1)]
        garbage = self._generator.randbytes(self._generator.choice((0, 1, 9, 100, 10_000)))
        self._send(self._generator.choice(self._addresses), start + garbage)

    def _http(self, _: grpc.Channel) -> None:
        self._send(
            ("127.0.0.1", self.daemon.metrics_port),
            fuzzing.mutated(fuzzing.http_request(self._generator), self._generator),
        )

    def _send(self, address: str | tuple[str, int], data: bytes) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            try:
                connection.connect(address)
            except ConnectionRefusedError:  # the port of a job that was ended by what went before
                assert address == self._addresses[1], f"{address} is not served any more"
                return
            # The daemon may close at any moment; that it never hangs is what the time-out is for.
            with suppress(BrokenPipeError, ConnectionResetError, OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            self.outcomes["bytes sent"] += 1
            try:
                while connection.recv(65_536):
                    pass
            except ConnectionResetError:
                pass
            except TimeoutError:
                self.bad.append(f"not answered and not closed: {data!r}"[:500])

    def close(self) -> None:
        """Ends what is open."""
        if self._process is not None:
            self._process.close()

    def check(self) -> None:
        """Checks that nothing came of it."""
        assert [] == sorted(self.bad)[:5]
        assert self.daemon.process is not None
        assert self.daemon.process.poll() is None
        for code in ("INTERNAL", "UNKNOWN"):
            assert 0 == metric(self.daemon, "livetune_rpc_total", code=code)
        assert "Traceback" not in self.daemon.log
        assert "ok" in page(self.daemon, "/healthz")
        # Connections that were left half open are let go.
        eventually(lambda: metric(self.daemon, "livetune_watchers") == 0, 30)


def fuzz(daemon: Daemon, cases: int, chosen_seed: int) -> Counter[str]:
    """Fuzzes a new daemon, and checks it and a job beside it. Returns how often what came of it."""
    daemon.start()
    with daemon.channel() as channel:
        fuzzer = Fuzzer(daemon, channel, chosen_seed)
        fuzzer.run(cases)
        fuzzer.check()
        with daemon.channel() as other:
            beside = Process(other, "beside")
            beside.join()
            beside.declare(float_spec("x", 0.0))
            set_values(daemon, "beside", x=1.0)
            beside.apply(beside.expect("change").change, 1)
            beside.close()
        fuzzer.close()
    return fuzzer.outcomes


def test_a_path_that_is_no_text_does_not_end_the_server(make_daemon: Callable[..., Daemon]) -> None:
    # grpc.aio 1.85 decodes the path of an unknown method in the loop that accepts calls: an error there ends the server.
    daemon = make_daemon(*PORTS).start()
    with daemon.control() as control, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(daemon.socket))
        connection.sendall(fuzzing.PREFACE + fuzzing.plain_call("/livetune.v1.Control\xffService/ListJobs", b""))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
        assert 0 == len(control.ListJobs(control_pb2.ListJobsRequest(), timeout=10).jobs)


def test_garbage_does_no_harm(make_daemon: Callable[..., Daemon]) -> None:
    outcomes = fuzz(make_daemon(*PORTS), cases=800, chosen_seed=seed(91))
    assert {"INVALID_ARGUMENT", "OK", "bytes sent"} <= set(outcomes)


def test_control_a_handler_that_fails_without_the_interceptor_is_found(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["bare_handler"], *PORTS)
    try:
        with pytest.raises(AssertionError, match="UNKNOWN"):
            fuzz(daemon, cases=400, chosen_seed=seed(91))
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_much_garbage_does_no_harm(make_daemon: Callable[..., Daemon]) -> None:
    chosen, cases = seed(92), count("FUZZ_CASES", 20_000)
    with long_run("fuzz of sockets and methods", chosen, cases=cases) as figures:
        figures.update(fuzz(make_daemon(*PORTS), cases, chosen))
