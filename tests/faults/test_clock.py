"""A wall clock that jumps by ten years, forth and back: no call fails, the order stands, no lease ends, nothing is deleted."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import grpc
import pytest

from livetune.v1 import control_pb2, control_pb2_grpc, types_pb2
from support import needs
from support.calls import get_job, set_values
from support.daemon import eventually
from support.ledger import Ledger, all_changes
from support.metrics import metric
from support.plants import PlantedDaemon
from support.process import Process, float_spec
from support.programs import program
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22150-22159")
YEARS = ("+10y", "-10y", "+5y", "-1d", "+0")


class Clock:
    """The wall clock of a daemon. What it is told counts from the daemon's next look at it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": needs.faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # The name changed between its versions.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        beside = self._file.with_name("clock-next")
        beside.write_text(offset + "\n")
        beside.replace(self._file)  # at once: a file that is half written would be no time at all


class Watcher:
    """A watch of everything, read in a thread."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stream = control_pb2_grpc.ControlServiceStub(channel).Watch(control_pb2.WatchRequest())
        next(self._stream)
        self.revisions: list[int] = []
        self.ended = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._stream:
                if response.HasField("event"):
                    self.revisions.append(response.event.revision)
        except grpc.RpcError as error:
            self.ended = error.code().name

    def close(self) -> None:
        assert "" == self.ended
        self._stream.cancel()
        self._thread.join(10)


def jump(folder: Path, jumps: int, chosen_seed: int, *plants: str) -> dict[str, object]:
    """Lets a daemon's clock jump while it works. Returns figures."""
    generator = random.Random(chosen_seed)
    clock = Clock(folder)
    daemon = PlantedDaemon(folder, ["tick_seconds=0.05", *plants], *PORTS, **clock.environment)
    ledger = Ledger()
    try:
        daemon.start()
        with daemon.channel() as channel:
            lost = Process(channel, "lost")
            lost.join()
            lost.declare(float_spec("x", 0.0))
            lost.close()
        ledger.declare(daemon)
        with (
            program("trainer.py", "vgg", log=folder / "trainer.log", LIVETUNE_ENDPOINT=daemon.target) as job,
            daemon.channel() as channel,
            daemon.control() as control,
        ):
            job.facts(lambda fact: fact["connected"])
            watcher = Watcher(channel)
            first = ledger_head = int(metric(daemon, "livetune_revision"))
            for number in range(jumps):
                clock.set(YEARS[number] if number < len(YEARS) else generator.choice(YEARS))
                for _ in range(10):
                    ledger.write(control)
                lr = generator.uniform(0.01, 1.0)
                set_values(daemon, "vgg", lr=lr)
                fact = job.facts(lambda fact, lr=lr: _connected(fact) and fact["lr"] == lr, 30)
                assert 0 == fact["errors"]
            clock.set("+0")
            set_values(daemon, "vgg", lr=0.5)
            eventually(lambda: [item.value.float_value for item in get_job(daemon).variables[0].applied] == [0.5])
            ledger_head = int(metric(daemon, "livetune_revision"))
            eventually(lambda: watcher.revisions and watcher.revisions[-1] == ledger_head)
            assert list(range(first + 1, ledger_head + 1)) == watcher.revisions
            watcher.close()
            job.tell()
            assert 0 == job.facts(lambda fact: "done" in fact)["errors"]
        clock.set("-10y")
        daemon.kill()
        daemon.start()
        assert 0 == ledger.wrong(daemon)
        # Whoever is lost stays so: nobody was away for a week.
        assert types_pb2.JOB_STATE_LOST == get_job(daemon, "lost").state
        assert types_pb2.JOB_STATE_FINISHED == get_job(daemon, "vgg").state
        years = {change.time.ToDatetime().year for change in all_changes(daemon, ledger.job)}
        assert max(years) - min(years) >= 15, "the clock did not jump"
        assert "Traceback" not in daemon.log
        assert 0 == metric(daemon, "livetune_rpc_total", code="INTERNAL")
    finally:
        daemon.close()
    return {"changes": len(ledger.acknowledged), "failed_calls": 0, "disorder": 0}


def _connected(fact: dict[str, object]) -> bool:
    assert fact["connected"], "the session ended"
    return True


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    jump(tmp_path, jumps=len(YEARS), chosen_seed=seed(51))


def test_control_ages_by_the_wall_clock_give_jobs_up(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, grpc.RpcError)):
        jump(tmp_path, len(YEARS), seed(51), "wall_clock")
    assert "is given up: lost for 87600 h" in (tmp_path / "daemon.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_clock_that_jumps_often_changes_nothing(tmp_path: Path) -> None:
    chosen, jumps = seed(52), count("CLOCK_JUMPS", 200)
    with long_run("clock by ten years", chosen, jumps=jumps) as figures:
        figures.update(jump(tmp_path, jumps, chosen))
