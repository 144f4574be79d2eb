"""Failed writes and fsyncs: nothing is acknowledged after one, the daemon ends and says why, and comes back with all it said.

No room (ENOSPC at a write) is the one failure after which it goes on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from livetuned.daemon.lifecycle import ExitCode
from support import needs
from support.injected import InjectedDaemon
from support.ledger import Ledger
from support.results import count, long_run, seed

FAILURES = ("fdatasync:error=EIO", "fdatasync:error=ENOSPC", "pwrite64:error=EIO", "pwrite64:error=ENOSPC")
WRITES = 60


def fail_once(folder: Path, ports: str, failure: str, number: int, plants: list[str] | None = None) -> str:
    """Makes the nth call of a new daemon's store fail, and starts the daemon anew. Returns how it took that."""
    needs.strace()
    folder.mkdir()
    daemon = InjectedDaemon(folder, "--job-ports", ports, plants=plants)
    daemon.fault = f"{failure}:when={number}"
    ledger = Ledger()
    try:
        took_it = _write(daemon, ledger)
        daemon.fault = ""
        daemon.start()
        if not ledger.acknowledged:
            ledger.declare(daemon)
        assert 0 == ledger.wrong(daemon), "acknowledged changes are lost"
        with daemon.control() as control:
            ledger.write(control)
        assert "Traceback" not in daemon.log, daemon.log
    finally:
        daemon.close()
    return took_it


def _write(daemon: InjectedDaemon, ledger: Ledger) -> str:
    try:
        daemon.start()
    except AssertionError:
        assert daemon.ended() in (ExitCode.STORE_UNUSABLE, ExitCode.STORE_FAILED)
        return "did not start"
    took_it = "went on"
    try:
        ledger.declare(daemon)
        with daemon.control() as control:
            for _ in range(WRITES):
                ledger.write(control)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            assert ExitCode.STORE_FAILED == daemon.ended()
            assert "commit failed" in daemon.log
            return "ended"
        took_it = "refused and went on"
    if not ledger.acknowledged:
        ledger.declare(daemon)
    with daemon.control() as control:
        ledger.write(control)
    daemon.kill()
    return took_it


@pytest.mark.parametrize(
    ("failure", "number", "took_it"),
    [
        ("fdatasync:error=EIO", 20, {"ended"}),
        # A write may be of the mark beside the store, which only helps to notice.
        ("pwrite64:error=ENOSPC", 150, {"refused and went on", "went on"}),
    ],
)
def test_what_failed_is_not_acknowledged(tmp_path: Path, failure: str, number: int, took_it: set[str]) -> None:
    assert fail_once(tmp_path / "d", "22040-22049", failure, number) in took_it


def test_control_going_on_after_a_failed_commit_loses_changes(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"lost|missing"):
        fail_once(tmp_path / "d", "22040-22049", "fdatasync:error=EIO", 20, ["ignore_failed_commits"])


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_no_failed_call_is_acknowledged(tmp_path: Path) -> None:
    calls = count("FAILED_CALLS", 200)
    # Few of the calls are fsyncs: 50 of them are as far as 150 writes.
    cases = [(FAILURES[n % 4], 1 + n // 4 if n % 4 < 2 else 1 + 3 * (n // 4)) for n in range(calls)]

    def one(case: int) -> str:
        failure, number = cases[case]
        took_it = fail_once(tmp_path / str(case), f"22{case % 2}40-22{case % 2}49", failure, number)
        return f"{failure.replace(':error=', ' ')}: {took_it}"

    with long_run("failed fsync and write", seed(0), calls=calls) as figures:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(one, range(calls)))
        figures.update({took_it: results.count(took_it) for took_it in sorted(set(results))})
        synced = results[10 * 4 : WRITES * 4 : 4]
        # Not every nth call is reached: commits come from two threads, which strace counts each by itself.
        assert {"fdatasync EIO: ended"} <= set(synced) <= {"fdatasync EIO: ended", "fdatasync EIO: went on"}
        assert synced.count("fdatasync EIO: ended") > 3 * synced.count("fdatasync EIO: went on")
