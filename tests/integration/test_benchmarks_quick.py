"""The benchmarks run to their end. What they measure is asserted nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(600)
# set_to_visible is missing on purpose: it installs LiveTune from a package index (durable_set does without it).
@pytest.mark.parametrize(
    "name", ["change_cost", "durable_set", "fan_out", "start_up", "step_overhead", "step_under_faults"]
)
def test_a_benchmark_runs_to_its_end(name: str) -> None:
    readme = (BENCHMARKS / "README.md").read_text()

    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--no-write"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip

    assert 0 == ended.returncode, ended.stderr
    assert "| livetuned" in ended.stdout
    assert readme == (BENCHMARKS / "README.md").read_text()
