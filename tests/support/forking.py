"""Runs parts of a test in a child of the test's own process."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Child:
    """A forked child that computes something.

    Args:
        work: What it does; its result must be picklable.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:  # pragma: no cover - in the child
            result = None
            try:
                result = pickle.dumps((True, work()))
            except BaseException:  # noqa: BLE001 - told to the parent
                result = pickle.dumps((False, traceback.format_exc()))
            finally:
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(result or b"")
                os._exit(0)
        os.close(writing)

    def result(self, seconds: float = 30.0) -> Any:
        """Returns what it computed; one that hangs is a failure."""
        deadline = time.monotonic() + seconds
        said = b""
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0] and (
                piece := pipe.read(65_536)
            ):
                said += piece
        if time.monotonic() > deadline:
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        assert said, f"the child said nothing within {seconds} s"
        well, result = pickle.loads(said)
        assert well, result
        return result


def in_child(work: Callable[[], T]) -> T:
    """Returns what a forked child computes."""
    result: T = Child(work).result()
    return result
