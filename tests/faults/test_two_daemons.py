"""Two daemons on one store: the second ends with its own exit code, the first notices nothing. With its control."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from livetuned.daemon.lifecycle import ExitCode
from support.daemon import Daemon
from support.ledger import Ledger
from support.plants import PlantedDaemon
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22190-22194")
OTHER_PORTS = ("--job-ports", "22195-22199")


class Second(PlantedDaemon):
    """A daemon with an address of its own on the state of another."""

    def __init__(self, folder: Path, state: Path, plants: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, plants, *OTHER_PORTS)
        self.state = state

    def outcome(self) -> str:
        """Starts it and returns how it ended, or that it serves."""
        with (self.folder / "daemon.log").open("a") as log:
            process = subprocess.Popen(
                self.command(), stdout=subprocess.PIPE, stderr=log, text=True, env=dict(os.environ)
            )
        assert process.stdout is not None
        with process:
            ready, _, _ = select.select([process.stdout], [], [], 30)  # its line when it is ready, or its end
            assert ready
            if process.stdout.readline():
                process.kill()
                return "serves"
            return ExitCode(process.wait(30)).name


def intrude(daemon: Daemon, folder: Path, times: int, *plants: str) -> tuple[int, set[str]]:
    """Starts second daemons while the first one is written to. Returns how many changes it made, and how the others ended."""
    ledger, over, begun = Ledger(), threading.Event(), threading.Event()
    daemon.start()
    ledger.declare(daemon)

    def write() -> None:
        with daemon.control() as control:
            while not over.is_set():
                ledger.write(control)
                begun.set()

    failed: list[BaseException] = []
    writer = threading.Thread(target=_noting(write, failed))
    writer.start()
    try:
        assert begun.wait(20)
        outcomes = {Second(folder / "second", daemon.state, list(plants)).outcome() for _ in range(times)}
    finally:
        over.set()
        writer.join()
    assert [] == failed
    assert 0 == ledger.wrong(daemon)
    return len(ledger.acknowledged), outcomes


def _noting(work: Callable[[], None], failed: list[BaseException]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is looked at where the thread is joined
            failed.append(error)

    return run


def test_a_second_daemon_ends_and_the_first_goes_on(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    _, outcomes = intrude(make_daemon(*PORTS), tmp_path, times=3)
    assert {"STORE_LOCKED"} == outcomes


def test_of_two_that_start_at_once_one_serves(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outcomes: list[str] = []
    begin = threading.Barrier(2)

    def start(number: int) -> None:
        second = Second(tmp_path / str(number), state, [])
        begin.wait()
        outcomes.append(second.outcome())

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The one that serves is ended as soon as it does: the other may then have found the store free.
    assert "serves" in outcomes
    assert set(outcomes) <= {"serves", "STORE_LOCKED"}


def test_control_a_store_that_is_shared_lets_the_second_in(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["shared_store"], *PORTS)
    try:
        # Where both are let in, the first one fails as well, sooner or later.
        with pytest.raises(AssertionError):  # noqa: PT012
            _, outcomes = intrude(daemon, tmp_path, 3, "shared_store")
            assert {"STORE_LOCKED"} == outcomes
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_second_daemons_end_and_the_first_goes_on(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    times = count("SECOND_DAEMONS", 100)
    with long_run("two daemons on one file", seed(0), second_daemons=times) as figures:
        figures["changes_meanwhile"], outcomes = intrude(make_daemon(*PORTS), tmp_path, times)
        figures["ended"] = sorted(outcomes)
        assert {"STORE_LOCKED"} == outcomes
