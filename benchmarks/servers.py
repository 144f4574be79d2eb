"""The servers that are compared: each a process of its own, its data in a folder, ended afterwards."""

from __future__ import annotations

import functools
import http.client
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from common import CLASSIC_PYTHON, HERE
from livetune.v1 import job_pb2, job_pb2_grpc, types_pb2

READY_SECONDS = 600.0
"""How long a server may take to be ready: one of them recovers a million changes."""

UNLIMITED = 1_000_000_000

CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
"""A connection for each channel: by default the channels of a process to one address share one."""


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        target: Where clients reach it over TCP on loopback: HOST:PORT.
        process: Its process.
        seconds: From its start to ready.
        unix: The gRPC target of its Unix socket, where it has one.
    """

    target: str
    process: subprocess.Popen[str]
    seconds: float
    unix: str = ""


def raise_file_limit() -> None:
    """Lets this process, and those it starts, hold as many files as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def missing(*programs: str) -> list[str]:
    """Returns those of the programs that are not installed."""
    return [program for program in programs if shutil.which(program) is None]


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of the peers that are installed."""
    found = {}
    for program, pattern in (("etcd", r"etcd Version: (\S+)"), ("redis-server", r"v=(\S+)")):
        if shutil.which(program):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=30)
            match = re.search(pattern, said.stdout)
            found[program] = match[1] if match else said.stdout.strip()
    return found


def free_port() -> int:
    """Returns a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("a") as out:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=out, text=True)
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
        process.stdout.close()


@functools.cache
def _serve_help() -> str:
    return subprocess.run(
        [sys.executable, "-m", "livetuned", "serve", "--help"], capture_output=True, text=True, check=True, timeout=30
    ).stdout


@contextmanager
def livetuned(folder: Path, *flags: str) -> Iterator[Server]:
    """A daemon without a limit on how fast one caller may change things, its state in the folder."""
    unix = f"unix:{folder}/run/d.sock"
    arguments = [sys.executable, "-m", "livetuned", "serve", "--state", str(folder / "state"), "--listen", unix]
    arguments += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--job-ports", "23000-23999", *flags]
    if "--config" in _serve_help():
        config = folder / "livetuned.toml"
        config.write_text(f"[limits]\nchanges_per_second = {UNLIMITED}\n")
        arguments += ["--config", str(config)]
    begun = time.monotonic()
    with _running(arguments, folder / "livetuned.log") as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        seconds = time.monotonic() - begun
        port = re.search(r"127\.0\.0\.1:(\d+)", ready)
        if not port:
            raise RuntimeError(f"livetuned did not start: {(folder / 'livetuned.log').read_text()[-2_000:]}")
        yield Server(f"127.0.0.1:{port[1]}", process, seconds, unix)


def _until(
    ready: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = READY_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args} did not start: {log.read_text()[-2_000:]}")
        time.sleep(0.002)


def _healthy(port: int) -> bool:
    # etcd's own question: it is answered "true" only when the member serves linearizable reads.
    with (
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection,
        suppress(OSError, http.client.HTTPException),
    ):
        connection.request("GET", "/health")
        return b'"true"' in connection.getresponse().read()
    return False


@contextmanager
def etcd(folder: Path) -> Iterator[Server]:
    """One member with its defaults: every put is fsynced in its write-ahead log before it is answered."""
    port, peer = free_port(), free_port()
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    log = folder / "etcd.log"
    # Fast polling of its health would fill the log.
    arguments = ["etcd", "--name", "bench", "--data-dir", str(folder / "etcd"), "--log-level", "error"]
    arguments += ["--listen-client-urls", client_url, "--advertise-client-urls", client_url]
    arguments += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
    arguments += ["--initial-cluster", f"bench={peer_url}", "--logger", "zap"]
    begun = time.monotonic()
    with _running(arguments, log) as process:
        _until(lambda: _healthy(port), process, log)
        yield Server(f"127.0.0.1:{port}", process, time.monotonic() - begun)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """A server with `appendfsync always`: every SET is fsynced before it is answered. No snapshots beside it."""
    port = free_port()
    arguments = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    arguments += ["--appendonly", "yes", "--appendfsync", "always", "--logfile", str(folder / "redis.log")]
    begun = time.monotonic()
    with _running(arguments, folder / "redis.out") as process:
        _until(lambda: _accepts(port), process, folder / "redis.out")
        yield Server(f"127.0.0.1:{port}", process, time.monotonic() - begun)


@contextmanager
def livetune(folder: Path, *words: str) -> Iterator[Server]:
    """A program with one variable of LiveTune; its target is the dictionary port.

    LiveTune draws that port first and binds it later, in a thread that dies when another program has it by then.

    Args:
        folder: Where its log goes.
        words: What `loops/classic.py` is told.
    """
    arguments = [str(CLASSIC_PYTHON), str(HERE / "loops" / "classic.py"), *words]
    log = folder / "livetune.log"
    for _ in range(5):
        begun = time.monotonic()
        with _running(arguments, log) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[1])
            try:
                _until(functools.partial(_accepts, port), process, log, 5)
            except RuntimeError:
                continue
            yield Server(f"127.0.0.1:{port}", process, time.monotonic() - begun)
            return
    raise RuntimeError("LiveTune did not get the port it drew, five times")


def declare(target: str, job: str, variables: int) -> None:
    """Registers a job and declares float variables v0, v1, ... over the contract; its session ends with the call.

    Args:
        target: The daemon's gRPC target.
        job: The job's name.
        variables: How many.
    """
    specs = []
    for number in range(variables):
        spec = types_pb2.VariableSpec(variable_id=f"v{number}", type=types_pb2.VARIABLE_TYPE_FLOAT)
        spec.initial.float_value = 0.0
        specs.append(job_pb2.VariableDeclaration(spec=spec, current=spec.initial))
    with grpc.insecure_channel(target, CHANNEL_OPTIONS) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        instance = uuid.uuid4().hex
        registration = stub.Register(
            job_pb2.RegisterRequest(
                job=f"jobs/{job}",
                instance_id=instance,
                world_size=1,
                process=types_pb2.Process(host="bench", pid=os.getpid()),
            ),
            timeout=30,
        )
        opening = job_pb2.SessionOpen(
            job=f"jobs/{job}",
            instance_id=instance,
            after_revision=registration.revision,
            job_token=registration.job_token,
        )
        declare_all = job_pb2.Declare(variables=specs)
        messages = (job_pb2.SessionRequest(open=opening), job_pb2.SessionRequest(declare=declare_all))
        for answer in stub.Session(iter(messages), timeout=30):
            if answer.WhichOneof("message") == "declared":
                refused = [item for item in answer.declared.variables if item.HasField("error")]
                if refused:
                    raise RuntimeError(f"declaration refused: {refused[0]}")
                return
        raise RuntimeError("the session ended before it answered the declaration")
