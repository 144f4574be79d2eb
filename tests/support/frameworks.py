"""Trainings of Lightning and Hugging Face as processes beside a daemon, and ltctl to tune them with."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.shell import Shell, state_of

JOB = "vgg"


class Tuned:
    """A training that runs, and the person who tunes it."""

    def __init__(self, process: Program, shell: Shell) -> None:
        self.process = process
        self.shell = shell

    def set(self, *assignments: str) -> int:
        """Sets variables; returns the step at whose safe point all took effect."""
        applied = self.shell.data("set", JOB, *assignments)["applied"]
        (step,) = {item["step"] for name in applied for item in applied[name]}
        return int(step)

    def trigger(self, *names: str) -> None:
        answer = self.shell("trigger", JOB, *names)
        assert 0 == answer.code, answer

    def value(self, name: str) -> Any:
        """The value that the job really uses."""
        (found,) = [item for item in self.variables() if item["name"] == name]
        return found["applied"][0]["value"] if found["applied"] else found["desired"]

    def variables(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.shell.data("get", JOB)["variables"]
        return found

    def logged(self) -> dict[str, float]:
        """The newest value of each series that the job logs."""
        return {series["name"]: series["value"] for series in self.shell.data("metrics", JOB)}

    def at(self, count: int, name: str | None = None) -> dict[str, Any]:
        """What the optimizer's step of that number in this process said."""
        return self.process.facts(lambda fact: fact.get("count") == count and (name is None or fact["name"] == name))

    def fact(self, key: str) -> Any:
        return self.process.facts(lambda fact: key in fact)[key]

    def stop(self) -> dict[str, Any]:
        """Ends it gracefully; returns what its test loop found."""
        self.trigger("run.stop")
        return self.tested()

    def tested(self) -> dict[str, Any]:
        found = self.process.facts(lambda fact: "tested" in fact)
        assert 0 == self.process.wait(), self.process.log.read_text()[-3_000:]
        return found


@contextmanager
def tuned(daemon: Daemon, script: str, folder: Path, *arguments: str, **environment: str) -> Iterator[Tuned]:
    """A training once the daemon sees it run and its optimizer has stepped."""
    folder.mkdir(exist_ok=True)
    said = {"LIVETUNE_ENDPOINT": daemon.target, "HF_HUB_OFFLINE": "1", **environment}
    with program(script, JOB, str(folder), *arguments, log=folder / "log", **said) as process:

        def runs() -> bool:
            assert process.process.poll() is None, process.log.read_text()[-3_000:]
            return types_pb2.JOB_STATE_RUNNING == state_of(daemon, JOB)

        eventually(runs, 180)
        process.facts(lambda fact: "count" in fact)
        run = Tuned(process, Shell(daemon))
        eventually(lambda: any("weight_decay" in item["name"] for item in run.variables()), 30)
        yield run


def meeting(size: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes of one machine, where they meet at a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "GROUP_RANK": "0"}
    common |= {"LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def cosine(step: int, steps: int, base: float = 0.1) -> float:
    """The learning rate of a step, counted from 1, under a cosine from `base` to 0 over so many steps."""
    return base * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def close(expected: list[float], actual: list[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(expected, actual, strict=True))
