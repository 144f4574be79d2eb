"""kill -9 of the daemon while it writes: nothing acknowledged is lost, nothing is half done. With its control."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from support import needs
from support.daemon import Daemon
from support.injected import InjectedDaemon
from support.ledger import Ledger
from support.results import count, long_run, seed

BROKEN = Path(__file__).parent.parent / "support" / "ack_before_commit.py"
PORTS = ("--job-ports", "22010-22019")
SWEPT = "pwrite64,fdatasync,ftruncate"
"""What the store does to its files: the daemon is killed at the nth of these calls."""


class BrokenDaemon(Daemon):
    """A daemon that acknowledges before it commits."""

    def command(self) -> list[str]:
        return [sys.executable, str(BROKEN), *super().command()[3:]]


def kill_while_writing(daemon: Daemon, kills: int, chosen_seed: int) -> tuple[int, int, list[float]]:
    """Kills a daemon so often.

    Returns:
        How many changes were acknowledged, how many are wrong in the end, and the seconds until it was ready, each time.
    """
    generator = random.Random(chosen_seed)
    ledger, ready = Ledger(), list[float]()
    daemon.start()
    ledger.declare(daemon)
    for _ in range(kills):
        begun = threading.Event()
        writer = threading.Thread(target=ledger.write_until_error, args=(daemon, begun))
        writer.start()
        assert begun.wait(20)
        time.sleep(generator.uniform(0, 0.05))
        daemon.kill()
        writer.join()
        down = time.monotonic()
        daemon.start()
        ready.append(time.monotonic() - down)
    return len(ledger.acknowledged), ledger.wrong(daemon), ready


def test_no_acknowledged_change_is_lost_by_kill_9(make_daemon: Callable[..., Daemon]) -> None:
    acknowledged, wrong, _ = kill_while_writing(make_daemon(*PORTS), kills=5, chosen_seed=seed(1))
    assert acknowledged > 5
    assert 0 == wrong


def test_control_acknowledging_before_the_commit_loses_changes(tmp_path: Path) -> None:
    daemon = BrokenDaemon(tmp_path, *PORTS)
    try:
        _, wrong, _ = kill_while_writing(daemon, kills=5, chosen_seed=seed(1))
    finally:
        daemon.close()
    assert wrong > 0


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_no_acknowledged_change_is_lost_by_many_kills(make_daemon: Callable[..., Daemon]) -> None:
    chosen, kills = seed(2), count("KILLS", 1_000)
    # Two at a time: most of it is waiting for a process that starts.
    daemons = [make_daemon("--job-ports", f"22{number}10-22{number}19", name=f"d{number}") for number in (6, 7)]
    with long_run("kill -9 while writing", chosen, kills=kills) as figures, ThreadPoolExecutor(2) as pool:
        shares = [kills - kills // 2, kills // 2]
        results = list(pool.map(kill_while_writing, daemons, shares, [chosen, chosen + 1]))
        ready = sorted(seconds for _, _, times in results for seconds in times)
        figures["acknowledged"] = sum(acknowledged for acknowledged, _, _ in results)
        figures["wrong"] = sum(wrong for _, wrong, _ in results)
        figures["ready_s_median"], figures["ready_s_longest"] = round(ready[len(ready) // 2], 2), round(ready[-1], 2)
        assert 0 == figures["wrong"]


def kill_at_call(folder: Path, number: int) -> str:
    """Kills a new daemon at the nth call that touches its files. Returns what that came to."""
    daemon = InjectedDaemon(folder, "--job-ports", f"22{8 + number % 2}00-22{8 + number % 2}09")
    daemon.fault = f"{SWEPT}:signal=KILL:when={number}"
    ledger = Ledger()
    came_to = "killed while it started"
    try:
        try:
            daemon.start()
            ledger.declare(daemon)
            came_to = "killed while it wrote"
            ledger.write_until_error(daemon)
        except (AssertionError, grpc.RpcError):
            assert came_to == "killed while it started"
        assert -signal.SIGKILL == daemon.ended()
        daemon.fault = ""
        daemon.start()
        if came_to == "killed while it wrote":
            assert 0 == ledger.wrong(daemon)
        else:
            ledger.declare(daemon)  # whatever it was killed at, it is a store that works
    finally:
        daemon.close()
    return came_to


@pytest.mark.parametrize("number", [3, 70])
def test_a_daemon_killed_at_one_call_comes_back(number: int, tmp_path: Path) -> None:
    needs.strace()
    kill_at_call(tmp_path, number)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_daemon_killed_at_any_call_comes_back(tmp_path: Path) -> None:
    needs.strace()
    calls = count("KILLED_CALLS", 300)

    def one(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        return kill_at_call(folder, number)

    with long_run("kill at each system call of the store", seed(0), calls=calls) as figures:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(one, range(1, calls + 1)))
        figures.update({came_to: results.count(came_to) for came_to in sorted(set(results))})
        assert results[-1] == "killed while it wrote" or calls < 100
