"""What benchmarks share: flags, the machine, LiveTune's environment, quantiles, and writing results and tables."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent

LOAD_BEFORE = os.getloadavg()[0]
"""What else ran on the machine when the benchmark began: processes that wanted a core, a mean over a minute."""

CLASSIC_VERSION = "0.0.8"
CLASSIC_PYTHON = HERE / ".venv-livetune" / "bin" / "python"


def classic_environment() -> None:
    """Installs LiveTune into an environment of its own: its licence and ours do not mix, nor do their dependencies."""
    if not CLASSIC_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(CLASSIC_PYTHON.parent.parent)], check=True)
    pip = [str(CLASSIC_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"LiveTune=={CLASSIC_VERSION}"], check=True)


def machine() -> dict[str, object]:
    """Describes the machine and the versions that were measured."""
    model = next(
        (row.split(":", 1)[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row),
        "",
    )
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "load before": round(LOAD_BEFORE, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "livetuned": version("livetuned"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the value below which the share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Returns the median of the ratios of values measured side by side, and the least and the greatest of them."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def median_interval(values: Sequence[float]) -> str:
    """Returns the median, and the interval that holds the true one with 95 % (order statistics, by the sign test)."""
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return f"{statistics.median(ordered):.3f} ({ordered[outside]:.3f} to {ordered[-1 - outside]:.3f})"


def left_out(what: str) -> None:
    """Says what is not measured, and why."""
    print(f"LEFT OUT: {what}", flush=True)


def arguments(description: str | None) -> argparse.Namespace:
    """Reads the flags that every benchmark has: `quick` and `no_write`."""
    return parser(description).parse_args()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark has."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--quick", action="store_true", help="a few runs of everything: whether it works, no figures")
    flags.add_argument("--no-write", action="store_true", help="print the tables and leave files as they are")
    return flags


def write_results(
    name: str, results: dict[str, object], tables: dict[str, list[list[str]]], *, write: bool = True
) -> None:
    """Prints the tables, writes results/NAME.json, and replaces the tables between their markers in README.md.

    Args:
        name: The benchmark's name.
        results: What was measured. Its `machine` is written below the marker of that name.
        tables: By marker, rows of cells, the head first.
        write: False only prints.
    """
    readme = HERE / "README.md"
    text = readme.read_text()
    for table, (head, *rows) in tables.items():
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        block = "\n".join(lines)
        print(f"\n{table}\n{block}")
        begin, end = f"<!-- {table} -->", f"<!-- end {table} -->"
        text, found = re.subn(
            re.escape(begin) + ".*?" + re.escape(end),
            lambda _, b=begin, e=end, t=block: f"{b}\n{t}\n{e}",
            text,
            flags=re.DOTALL,
        )
        if not found:
            raise RuntimeError(f"benchmarks/README.md has no place for table {table}")
    if not write:
        return
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    about = results.get("machine")
    if isinstance(about, dict):
        about_line = ", ".join(f"{key} {value}" for key, value in about.items())
        marker = f"<!-- machine {name} -->"
        text = re.sub(re.escape(marker) + ".*", lambda _: f"{marker} {about_line}", text)
    readme.write_text(text)
