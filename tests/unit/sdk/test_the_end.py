"""How long the end of a program may wait for a daemon that is there and says nothing: counted, not timed."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import livetune
import livetune.job
from support.daemon import eventually

PROMISED_SECONDS = 2.0


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[str]:
    """The endpoint of a daemon that takes connections and never answers, as one that is frozen."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "d.sock"))
        listening.listen()
        yield f"unix:{tmp_path / 'd.sock'}"


@contextmanager
def waits_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Lets this thread wait for nothing, and notes how many seconds it asked for each time; without an end: infinity."""
    asked: list[float] = []
    here = threading.current_thread()
    wait, join = threading.Condition.wait, threading.Thread.join

    def counted_wait(self: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is not here:
            return wait(self, timeout)
        asked.append(math.inf if timeout is None else timeout)
        return False

    def counted_join(self: threading.Thread, timeout: float | None = None) -> None:
        if threading.current_thread() is not here:
            return join(self, timeout)
        asked.append(math.inf if timeout is None else timeout)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait", counted_wait)
        patch.setattr(threading.Thread, "join", counted_join)
        patch.setattr("time.sleep", asked.append)
        yield asked


def connecting(name: str, endpoint: str) -> livetune.Job:
    """A job whose thread waits for an answer of the daemon."""
    job = livetune.init(name, endpoint=endpoint)
    job.variable("lr", 0.1)
    job.step()
    eventually(lambda: job._driver is not None and job._driver.trying)
    return job


def test_finish_asks_for_less_than_two_seconds(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = connecting("end", silent)
    with waits_counted(monkeypatch) as asked:
        job.finish()
    assert 0 < sum(asked) < PROMISED_SECONDS, asked


def test_control_a_longer_wait_is_counted(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = connecting("end-late", silent)
    monkeypatch.setattr(livetune.job, "FINISH_SECONDS", None)
    with waits_counted(monkeypatch) as asked:
        job.finish()
    assert math.inf == sum(asked)


def test_the_exit_of_a_program_with_two_jobs_asks_for_less_than_two_seconds(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("end-one", "end-two"):
        connecting(name, silent)
    with waits_counted(monkeypatch) as asked:
        livetune.job._finish_all()
    assert sum(asked) < PROMISED_SECONDS, asked
