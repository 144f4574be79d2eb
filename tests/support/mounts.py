"""A small file system of the test's own, in memory: it can be filled up, and made larger while it is in use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system.

    Args:
        folder: Where it is mounted.
        kilobytes: Its size, in KiB.
    """

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self.folder = folder
        self.kilobytes = kilobytes

    def resize(self, kilobytes: int) -> None:
        """Makes it larger."""
        self.kilobytes = kilobytes
        _run("mount", "-o", f"remount,size={kilobytes}k", str(self.folder))

    def fill(self) -> None:
        """Leaves no room on it."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4_096))
            except OSError:  # full: what was wanted
                pass

    def empty(self) -> None:
        """Takes back what `fill` took."""
        (self.folder / "filler").unlink(missing_ok=True)


def _run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    if answer.returncode:
        raise OSError(f"{' '.join(command)}: {answer.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Mounts one while it is needed; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a small file system")
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "tmpfs", str(folder))
    except OSError as error:
        pytest.skip(f"a small file system can't be mounted here: {error}")
    try:
        yield SmallDisk(folder, kilobytes)
    finally:
        _run("umount", "--lazy", str(folder))
