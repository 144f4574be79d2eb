"""The examples with Lightning and Hugging Face, as a person uses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.shell import Shell, state_of

EXAMPLES = Path(__file__).parents[2] / "examples"
LIBRARIES = {"lightning": "lightning", "huggingface": "transformers"}
RATES = {"lightning": "0.5", "huggingface": "0.003"}
PATIENCE = 200.0
"""Seconds until something shows that takes a few on an idle machine."""

pytestmark = pytest.mark.timeout(600)
both = pytest.mark.parametrize("name", ["lightning", "huggingface"])


@contextmanager
def example(name: str, folder: Path, steps: int, endpoint: str) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip(LIBRARIES[name], reason=f"needs the extra `{name}`")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / f"{name}_digits.py", "--steps", str(steps), "--out", folder / "out"],
            stdout=log, stderr=subprocess.STDOUT, cwd=folder, text=True,
            env={**os.environ, "LIVETUNE_ENDPOINT": endpoint, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@both
def test_it_is_tuned_evaluated_saved_and_stopped_as_its_text_says(name: str, daemon: Daemon, tmp_path: Path) -> None:
    job, shell = f"{name}-digits", Shell(daemon)
    text = (EXAMPLES / f"{name}_digits.py").read_text().split('"""')[1]
    with example(name, tmp_path, 1_000_000, daemon.target) as process:

        def log() -> str:
            assert process.poll() in (None, 0), (tmp_path / "log").read_text()
            return (tmp_path / "log").read_text()

        eventually(lambda: log() and types_pb2.JOB_STATE_RUNNING == state_of(daemon, job), PATIENCE)
        eventually(lambda: [item for item in shell.data("get", job)["variables"] if item["name"] == "lr"], PATIENCE)
        commands = re.findall(r"^    ltctl (.*)$", text, re.MULTILINE)
        assert ["set", "trigger", "metrics", "trigger"] == [command.split()[0] for command in commands]
        answer = shell(*re.sub(r' --reason ".*"', "", commands[0]).split(), "--timeout", str(PATIENCE))
        assert (0, "") == (answer.code, answer.err)
        assert re.search(rf"{re.escape(RATES[name])} +applied at step \d+", answer.out)

        def accuracy() -> float:
            trigger = shell(*commands[1].split(), "--timeout", str(PATIENCE))
            assert 0 == trigger.code, trigger
            wanted = "accuracy" if name == "lightning" else "eval_accuracy"
            found = {series["name"]: series["value"] for series in shell.data("metrics", job)}
            return float(found.get(wanted, 0.0))

        eventually(lambda: accuracy() > 0.8, PATIENCE)
        saved = "checkpoints/livetune-*.ckpt" if name == "lightning" else "checkpoint-*/model.safetensors"
        eventually(lambda: list((tmp_path / "out").glob(saved)), PATIENCE)
        assert 0 == shell(*commands[3].split(), "--timeout", str(PATIENCE)).code
        assert 0 == process.wait(PATIENCE), log()
        assert float(re.findall(r"ended at step \d+: test accuracy ([\d.]+)%", log())[-1]) > 70
    assert types_pb2.JOB_STATE_FINISHED == state_of(daemon, job)


@both
def test_untuned_it_ends_by_itself_having_learned_nothing(name: str, tmp_path: Path) -> None:
    """The control: what the other test sees learned was learned with the learning rate that it set."""
    with example(name, tmp_path, 60, "unix:/nowhere/d.sock") as process:
        assert 0 == process.wait(PATIENCE), (tmp_path / "log").read_text()
        (found,) = re.findall(r"ended at step 60: test accuracy ([\d.]+)%", (tmp_path / "log").read_text())
        assert float(found) < 50
