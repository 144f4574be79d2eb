"""The examples, as a person uses them: started and tuned as the table of examples/README.md says."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.shell import Shell, state_of

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "README.md").read_text()
LONG = {"schedulers.py": ("--steps", "100000"), "ddp.py": ("--steps", "100000")}
"""Longer than any test: they end because they are told to. Two have a length in steps."""
SECONDS = ("--seconds", "3600")
PATIENCE = 100.0
"""Seconds until something shows that takes a few on an idle machine."""

pytestmark = pytest.mark.timeout(400)


@dataclass
class Typed:
    """A command of the table, and what is to be seen then."""

    command: str
    seen: list[str]
    exit_code: int


@dataclass
class Example:
    """The rows of one example."""

    name: str
    start: str
    typed: list[Typed] = field(default_factory=list)

    @property
    def job(self) -> str:
        return self.typed[0].command.split()[2]


def table() -> dict[str, Example]:
    examples: dict[str, Example] = {}
    for row in re.findall(r"^\| (?!example|---).*\|$", README, re.MULTILINE):
        name, start, command, see = (cell.strip() for cell in row.split("|")[1:-1])
        if linked := re.match(r"\[(\w+\.py)\]\(\1\)", name):
            example = examples[linked[1]] = Example(linked[1], code(start)[0])
        told = re.search(r"exit code (\d)", see)
        example.typed.append(Typed(code(command)[0], code(see), int(told[1]) if told else 0))
    return examples


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


EXAMPLES = table()


def environment(target: str) -> dict[str, str]:
    return {
        **os.environ,
        "LIVETUNE_ENDPOINT": target,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        # Where the cores are shared, threads of OpenMP that wait for each other multiply the time.
        "OMP_NUM_THREADS": "1",
    }


class Run:
    """An example that runs beside a daemon, and the person who tunes it."""

    def __init__(self, example: Example, daemon: Daemon, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.example = example
        self._daemon = daemon
        self._log = log
        self._process = process
        self.answers = ""
        """What ltctl said to the last command."""

    @property
    def said(self) -> str:
        """What the program said so far."""
        return self._log.read_text()

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Waits until the program has said something, from a place of what it said on."""

        def found() -> re.Match[str] | None:
            match = re.compile(pattern, re.MULTILINE).search(self.said, after)
            assert match or self._process.poll() is None, self.said
            return match

        try:
            return eventually(found, PATIENCE)  # type: ignore[return-value] # it returns what is true
        except AssertionError:
            raise AssertionError(f"{pattern!r} was not said: {self.said}") from None

    def trains(self) -> None:
        """Waits until the job is connected and has told of its training."""
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(self._daemon, self.example.job), PATIENCE)
        self.wait_for(r"^step \d+")

    def type(self, typed: Typed) -> int:
        """Types a command and waits for what is to be seen. Returns the place in what the program had said before."""
        before = len(self.said)
        answer = subprocess.run(
            shlex.split(typed.command), capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE,
            env=environment(self._daemon.target),
        )  # fmt: skip
        assert typed.exit_code == answer.returncode, (typed, answer)
        self.answers = answer.stdout + answer.stderr
        for piece in typed.seen:
            pattern = re.escape(piece).replace("…", ".+")
            if not re.search(pattern, self.answers):
                self.wait_for(pattern, before)
        return before

    def ends(self) -> None:
        assert 0 == self._process.wait(PATIENCE), self.said
        assert "Traceback" not in self.said
        assert types_pb2.JOB_STATE_FINISHED == state_of(self._daemon, self.example.job)


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "22200-22209").start()


@contextmanager
def running(daemon: Daemon, folder: Path, name: str, *arguments: str) -> Iterator[Run]:
    """An example, started as its row says and for a long time, once it trains."""
    example = EXAMPLES[name]
    log = folder / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shlex.split(example.start), *LONG.get(name, SECONDS), *arguments], cwd=ROOT, stdout=output,
            stderr=subprocess.STDOUT, env=environment(daemon.target),
        )  # fmt: skip
    try:
        run = Run(example, daemon, log, process)
        run.trains()
        yield run
    finally:
        process.terminate()  # torchrun ends its ranks
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def step_in(answer: str) -> int:
    """The step at which ltctl says that a change was applied."""
    told = {int(step) for step in re.findall(r"applied at step (\d+)", answer)}
    assert 1 == len(told), answer
    return told.pop()


def test_the_table_has_every_example_and_its_docstring_says_the_same() -> None:
    files = {file.name for file in (ROOT / "examples").glob("*.py")}
    assert files == set(re.findall(r"\]\((\w+\.py)\)", README))
    for example in EXAMPLES.values():
        text = (ROOT / "examples" / example.name).read_text().split('"""')[1]
        commands = re.findall(r"^    (ltctl .*)$", text, re.MULTILINE)
        assert len(commands) >= 2
        assert set(commands) <= {typed.command for typed in example.typed}


def test_plain_loop(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "plain_loop.py") as run:
        change, *others = run.example.typed
        before = run.type(change)
        run.wait_for(rf"^step {step_in(run.answers)}: lr is now 0\.5$", before)
        assert all(float(share) < 50 for share in re.findall(r"accuracy ([\d.]+)%", run.said[:before]))
        # Soon: at the old rate it would get there in the end, too.
        soon = run.wait_for(r"is now 0\.5\n(?:.*\n){5}.*accuracy ([\d.]+)%$", before)
        assert float(soon[1]) > 80
        shell = Shell(daemon)
        eventually(lambda: "test_accuracy" in shell.inside("metrics", run.example.job).out, PATIENCE)
        for typed in others:
            run.type(typed)
        run.ends()


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "lambda"])
def test_schedulers(daemon: Daemon, tmp_path: Path, schedule: str) -> None:
    steps, base, asked = int(LONG["schedulers.py"][1]), 0.1, 0.02

    def scheduled(step: int) -> float:
        """What the schedule says for a step, counted from 1, in the words of torch's documentation."""
        done = (step - 1) / steps
        if schedule == "cosine":
            return base * (1 + math.cos(math.pi * done)) / 2
        if schedule == "lambda":
            return base * 0.1**done
        first, up = base / 25, 0.3 * steps - 1
        return first + (base - first) * (1 - math.cos(math.pi * (step - 1) / up)) / 2

    with running(daemon, tmp_path, "schedulers.py", "--schedule", schedule) as run:
        change, stop = run.example.typed
        before = run.type(change)
        first = step_in(run.answers) + 1
        run.wait_for(r"(?:^step .*\n){4}", before)
        lines = [
            (int(step), [float(rate) for rate in rates])
            for step, *rates in re.findall(
                r"^step (\d+) used lr: SCALE (\S+), REBASE (\S+), OVERRIDE (\S+)$", run.said, re.MULTILINE
            )
        ]
        assert first in [step for step, _ in lines]
        for step, rates in lines:
            s = scheduled(step)
            expected = [s, s, s] if step < first else [asked * s / scheduled(first), asked / base * s, asked]
            assert pytest.approx(expected, abs=1.1e-5) == rates, step
        run.type(stop)
        run.ends()


def test_ddp(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "ddp.py") as run:
        change, stop = run.example.typed
        before = run.type(change)
        step = step_in(run.answers)
        assert {(str(step), str(rank)) for rank in range(4)} == set(
            re.findall(r"step (\d+): rank (\d) uses lr 0\.1", run.said[before:])
        )
        run.type(stop)
        run.wait_for(rf"all 4 ranks took changes at steps \[{step}\]")
        run.ends()


def test_augmentation(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "augmentation.py") as run:
        change, stop = run.example.typed
        before = run.type(change)
        step_in(run.answers)  # both at one step
        assert {"0"} == set(re.findall(r"(\d+)% negatives in the batch", run.said[:before]))
        run.wait_for(r" [3-7]\d% negatives in the batch; .* negatives [89]\d%", before)
        run.type(stop)
        run.ends()


def test_reward_weights(daemon: Daemon, tmp_path: Path) -> None:
    with running(daemon, tmp_path, "reward_weights.py") as run:
        run.wait_for(re.escape(">>>>G / ....."))
        for typed in run.example.typed:
            run.type(typed)
        run.ends()


@pytest.mark.parametrize("name", ["migrating_before.py", "migrating_after.py"])
def test_migrating(daemon: Daemon, tmp_path: Path, name: str) -> None:
    with running(daemon, tmp_path, name) as run:
        change, stop = run.example.typed
        before = run.type(change)
        assert all(float(loss) > 1.5 for loss in re.findall(r"loss ([\d.]+)$", run.said[:before], re.MULTILINE))
        run.wait_for(r"loss 0\.[01]\d+$", before)
        run.type(stop)
        run.ends()


def test_without_a_daemon_an_example_trains_to_its_end() -> None:
    start = shlex.split(EXAMPLES["plain_loop.py"].start)
    answer = subprocess.run(
        [*start, "--seconds", "2"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        env=environment("unix:/nowhere/d.sock"),
    )  # fmt: skip
    assert 0 == answer.returncode, answer
    assert re.search(r"^ended at step [1-9]\d*$", answer.stdout, re.MULTILINE)
    assert re.fullmatch(r"job plain-loop: no daemon, training on .*\n", answer.stderr)
