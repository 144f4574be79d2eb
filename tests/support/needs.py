"""What some fault runs need of the machine. Where it is missing, they are skipped and say why."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def strace() -> None:
    """Skips where programs can't be traced."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    answer = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, timeout=10)
    if answer.returncode:
        pytest.skip(f"programs can't be traced here: {answer.stderr.strip()[:200]}")


def faketime() -> str:
    """Returns the path of libfaketime; skips where there is none, or where it does not work."""
    found = sorted(Path("/usr").glob("lib*/**/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("needs libfaketime")
    environment = {**os.environ, "LD_PRELOAD": str(found[0]), "FAKETIME": "@2001-01-01 00:00:00"}
    answer = subprocess.run(["date", "+%Y"], capture_output=True, text=True, timeout=10, env=environment)
    if answer.stdout.strip() != "2001":
        pytest.skip(f"libfaketime does not work here: {answer.stdout}{answer.stderr}")
    return str(found[0])


def real_disk(folder: Path) -> None:
    """Skips where the folder is kept in memory: fsync proves nothing there."""
    if kind := memory_file_system(folder):
        pytest.skip(f"{folder} is on {kind}, where fsync proves nothing: choose a disk with --basetemp")


def memory_file_system(folder: Path) -> str:
    """Returns the type of the folder's file system if that keeps its files in memory, else ``""``."""
    where = folder.resolve()
    depth, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].encode().decode("unicode_escape"))
        # Of two mounts at one place the later one is seen.
        if (where == mount or mount in where.parents) and len(mount.parts) >= depth:
            depth, kind = len(mount.parts), after.split()[0]
    return kind if kind in ("tmpfs", "ramfs") else ""
