"""A real daemon process for tests: started in a folder of its own, killed and started again, always ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from livetune.v1 import control_pb2_grpc, job_pb2_grpc

T = TypeVar("T")

READY_SECONDS = 20.0


def eventually(condition: Callable[[], T], seconds: float = 10.0) -> T:
    """Returns what the condition returns once it is true; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.01)


class Daemon:
    """A `livetuned serve` of the test's own."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "run" / "d.sock"
        self._arguments = arguments
        self._environment = environment or {}
        self.process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    @property
    def target(self) -> str:
        """The gRPC target of its Unix socket."""
        return f"unix:{self.socket}"

    @property
    def metrics_port(self) -> int:
        """The port of its HTTP endpoint."""
        match = re.search(r"metrics http://127\.0\.0\.1:(\d+)/metrics", self.ready_line)
        assert match, self.ready_line
        return int(match[1])

    @property
    def log(self) -> str:
        """What it logged so far, over all its starts."""
        return (self.folder / "daemon.log").read_text()

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "livetuned", "serve", "--state", str(self.state), "--listen", self.target,
            "--metrics", "127.0.0.1:0", *self._arguments,
        ]  # fmt: skip

    def start(self) -> Daemon:
        """Starts it and waits until it is ready."""
        with (self.folder / "daemon.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **self._environment}
            )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline().strip()
        assert self.ready_line.startswith("livetuned ready:"), self.log
        return self

    def kill(self) -> None:
        """Ends it as a crash does: SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """Ends it as systemd does: SIGTERM. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        process, self.process = self.process, None
        assert process is not None
        assert process.stdout is not None
        code = process.wait(timeout=READY_SECONDS)
        process.stdout.close()
        return code

    def close(self) -> None:
        """Ends it if it still runs."""
        if self.process is not None:
            self.kill()

    @contextmanager
    def channel(self, target: str = "") -> Iterator[grpc.Channel]:
        """A channel to it, or to another target of it, that waits for the connection."""
        with grpc.insecure_channel(target or self.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            grpc.channel_ready_future(channel).result(timeout=READY_SECONDS)
            yield channel

    @contextmanager
    def control(self, target: str = "") -> Iterator[control_pb2_grpc.ControlServiceStub]:
        with self.channel(target) as channel:
            yield control_pb2_grpc.ControlServiceStub(channel)

    @contextmanager
    def jobs(self, target: str = "") -> Iterator[job_pb2_grpc.JobServiceStub]:
        with self.channel(target) as channel:
            yield job_pb2_grpc.JobServiceStub(channel)
