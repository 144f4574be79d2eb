"""Owns how fault runs are seeded and sized, and where a long run leaves its result.

That is one JSON line in the file named by LIVETUNE_FAULT_RESULTS, from which the table in docs/reliability.md is written.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path


def seed(default: int) -> int:
    """Returns LIVETUNE_SEED, else the default, and prints it: a failed test shows what it printed."""
    chosen = int(os.environ.get("LIVETUNE_SEED", default))
    sys.stdout.write(f"LIVETUNE_SEED={chosen}\n")
    return chosen


def count(name: str, default: int) -> int:
    """Returns the size of a long run: the environment variable LIVETUNE_`name`, else the default, and prints it."""
    chosen = int(os.environ.get(f"LIVETUNE_{name}", default))
    sys.stdout.write(f"LIVETUNE_{name}={chosen}\n")
    return chosen


def _machine() -> dict[str, object]:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((row.split(":", 1)[1].strip() for row in rows if "model name" in row), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


@contextmanager
def long_run(harness: str, chosen_seed: int, **counts: int) -> Iterator[dict[str, object]]:
    """Times a long run and writes its line, whether it passes or fails.

    Args:
        harness: Its name in docs/reliability.md.
        chosen_seed: The seed it runs with.
        counts: How much of what is done.

    Yields:
        The run's figures, for the caller to fill.
    """
    figures: dict[str, object] = {}
    begun = time.monotonic()
    passed = False
    try:
        yield figures
        passed = True
    finally:
        line = {
            "harness": harness,
            "passed": passed,
            "seed": chosen_seed,
            "counts": counts,
            "figures": figures,
            "seconds": round(time.monotonic() - begun, 1),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": _machine(),
        }
        text = json.dumps(line)
        sys.stdout.write(text + "\n")
        if path := os.environ.get("LIVETUNE_FAULT_RESULTS"):
            with Path(path).open("a") as file:
                file.write(text + "\n")
