"""ltctl as a person types it, and a real training job to type about."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc

from livetune.v1 import control_pb2, types_pb2
from ltctl.main import run
from support.daemon import Daemon, eventually

TRAINING = Path(__file__).parent / "training.py"


@dataclass
class Answer:
    code: int
    out: str
    err: str


class Shell:
    """Types ltctl commands to a daemon, or to whatever answers at a gRPC target."""

    def __init__(self, daemon: Daemon | str) -> None:
        target = daemon if isinstance(daemon, str) else daemon.target
        self.environment = {**os.environ, "LIVETUNE_ENDPOINT": target, "PYTHONIOENCODING": "utf-8"}

    def __call__(self, *words: str, encoding: str = "utf-8") -> Answer:
        environment = {**self.environment, "PYTHONIOENCODING": encoding}
        run = subprocess.run([sys.executable, "-m", "ltctl", *words], capture_output=True, env=environment, timeout=60)
        return Answer(run.returncode, run.stdout.decode(encoding), run.stderr.decode(encoding))

    def inside(self, *words: str) -> Answer:
        """Types a command without a process of its own: quick, for tables of cases."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, self.environment):
            code = run(words)
        return Answer(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]

    def data(self, *words: str) -> Any:
        """Types a command that must succeed and returns what it prints as JSON."""
        answer = self.inside(*words, "-o", "json")
        assert 0 == answer.code, answer
        return json.loads(answer.out)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ltctl", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )


@contextmanager
def training(daemon: Daemon, job: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the SDK that trains until it is told to stop; yielded once the daemon sees it run."""
    process = subprocess.Popen(
        [sys.executable, str(TRAINING), job],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target},
    )
    try:
        eventually(lambda: state_of(daemon, job) == types_pb2.JOB_STATE_RUNNING, 30)
        yield process
    finally:
        process.kill()
        process.wait()


def state_of(daemon: Daemon, job: str) -> types_pb2.JobState.ValueType:
    """What a job is doing; UNSPECIFIED if there is none."""
    with daemon.control() as stub:
        try:
            return stub.GetJob(control_pb2.GetJobRequest(name=f"jobs/{job}"), timeout=10).job.state
        except grpc.RpcError:
            return types_pb2.JOB_STATE_UNSPECIFIED
