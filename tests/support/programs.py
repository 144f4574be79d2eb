"""Programs that tests start beside the daemon: they speak line by line, and are always ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Program:
    """A script of `tests/support` as a process.

    Args:
        script: Its file name.
        arguments: What it is told.
        log: Where its standard error goes.
        under: The command that runs it, such as strace with its flags.
        environment: Added to the test's own.
    """

    def __init__(self, script: str, *arguments: str, log: Path, under: Sequence[str] = (), **environment: str) -> None:
        self.log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*under, sys.executable, str(HERE / script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env={**os.environ, **environment},
            )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self, seconds: float = 60.0) -> str:
        """Returns the next line it says.

        Raises:
            AssertionError: It said nothing for so long.
        """
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"nothing for {seconds} s; its log: {self.log.read_text()[-2_000:]}") from None

    def facts(self, wanted: Callable[[dict[str, Any]], object], seconds: float = 60.0) -> dict[str, Any]:
        """Returns the next line of JSON that is wanted."""
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = json.loads(self.line(max(0.0, deadline - time.monotonic())))
            if wanted(found):
                return found

    def tell(self, line: str = "") -> None:
        """Writes a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def wait(self, seconds: float = 60.0) -> int:
        """Returns its exit code, once it has ended."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """Ends it if it still runs."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def program(
    script: str, *arguments: str, log: Path, under: Sequence[str] = (), **environment: str
) -> Iterator[Program]:
    """A program while it is needed."""
    started = Program(script, *arguments, log=log, under=under, **environment)
    try:
        yield started
    finally:
        started.close()
