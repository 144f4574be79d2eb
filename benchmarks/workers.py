"""Client processes that are told what to do by lines and answer by lines of JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).parent / "clients"

ANSWER_SECONDS = 120.0


class Worker:
    """One client process. To be closed.

    Args:
        script: File name in `clients/`.
        arguments: What it is started with.
        environment: Its environment; this process's own if None.
        quiet: Drops what it says on standard error, as a traceback that is meant to be.
    """

    def __init__(
        self, script: str, *arguments: str, environment: Mapping[str, str] | None = None, quiet: bool = False
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(CLIENTS / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            stderr=subprocess.DEVNULL if quiet else None,
        )

    def interrupt(self) -> None:
        """Does what Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, seconds: float = ANSWER_SECONDS) -> int:
        """Waits until it has ended by itself. Returns its exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        return self._process.wait(seconds)

    def tell(self, line: str) -> None:
        """Sends a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self, seconds: float = ANSWER_SECONDS) -> Any:
        """Returns its next answer.

        Raises:
            RuntimeError: It ended, or did not answer in time and was ended.
        """
        assert self._process.stdout is not None
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise RuntimeError(f"{self._process.args} gave no answer, exit code {self._process.wait(10)}")
        return json.loads(line)

    def ask(self, line: str) -> Any:
        """Sends a line and returns the answer."""
        self.tell(line)
        return self.read()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
