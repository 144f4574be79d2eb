"""Fixtures for every layer of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Daemon


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons in folders of their own; all are ended after the test."""
    made: list[Daemon] = []

    def make(*arguments: str, name: str = "daemon", **environment: str) -> Daemon:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        daemon = Daemon(folder, *arguments, environment=environment)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that runs, with ten job ports."""
    return make_daemon("--job-ports", "22000-22009").start()
