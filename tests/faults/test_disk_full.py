"""A full disk: writes are refused at once and say why, everything else goes on, and writing goes on when there is room."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from livetune.status import refusal_of
from livetune.v1 import control_pb2, control_pb2_grpc, job_pb2, types_pb2
from support.calls import get_job, set_values
from support.daemon import Daemon, eventually
from support.metrics import metric, page
from support.mounts import SmallDisk, small_disk
from support.plants import PlantedDaemon
from support.process import Process, float_spec
from support.programs import Program, program
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22130-22139")
KILOBYTES = 1_500
LARGER = 3
"""How many times larger the disk is made: SQLite may have the same pages in its log and in the file for a while."""


class Disk:
    """A daemon on a small disk, and what it acknowledged."""

    def __init__(self, daemon: Daemon, disk: SmallDisk, generator: random.Random) -> None:
        self.daemon = daemon
        self.disk = disk
        self.acknowledged: dict[int, str] = {}
        self._generator = generator

    def set_text(self, control: control_pb2_grpc.ControlServiceStub, longest: int = 40_000) -> str:
        """Sets a text of a random length. Returns the reason of a refusal, ``""`` for none."""
        text = self._generator.choice("abcdefgh") * self._generator.randint(1, longest)
        request = control_pb2.SetVariablesRequest(job="jobs/texts")
        request.updates.add(variable_id="text").value.string_value = text
        try:
            revision = control.SetVariables(request, timeout=10).change.revision
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            return f"{refusal.code} {refusal.reason}"
        self.acknowledged[revision] = text
        return ""

    def fill(self) -> None:
        """Sets texts until not even the shortest has room; each is accepted or refused as it should be."""
        reason, longest = "", 40_000
        with self.daemon.control() as control:
            while not reason or longest > 1:
                longest = longest // 2 if reason else longest
                reason = self.set_text(control, longest)
                assert reason in ("", "RESOURCE_EXHAUSTED STORE_FULL")
                if reason:
                    self.disk.fill()

    def check_that_the_rest_goes_on(self, job: Program) -> None:
        """Reads, watches, metrics, health and the session of a job, while the disk is full."""
        with self.daemon.control() as control:
            after = max(self.acknowledged) - 1
            watch = control.Watch(control_pb2.WatchRequest(job="jobs/texts", after_revision=after), timeout=30)
            assert after == next(watch).bookmark.revision
            assert after + 1 == next(watch).event.revision
            watch.cancel()
            assert control.ListChanges(control_pb2.ListChangesRequest(job="jobs/texts", page_size=1)).changes
            assert 3 == len(control.ListJobs(control_pb2.ListJobsRequest()).jobs)
        assert "ok" in page(self.daemon, "/healthz")
        assert metric(self.daemon, "livetune_revision") >= max(self.acknowledged)
        begin = job.facts(still_connected)["step"]
        assert 0 == job.facts(lambda fact: still_connected(fact) and fact["step"] > begin + 300)["errors"]
        eventually(lambda: get_job(self.daemon, "vgg").state == types_pb2.JOB_STATE_RUNNING)

    def recover(self) -> float:
        """Makes room and returns the seconds until a change is accepted again."""
        self.disk.resize(LARGER * self.disk.kilobytes)
        self.disk.empty()
        begun = time.monotonic()
        with self.daemon.control() as control:
            eventually(lambda: self.set_text(control) == "", 5)
        return time.monotonic() - begun

    def lost(self) -> int:
        """Returns how many of the acknowledged changes are missing or not as they were."""
        found: dict[int, str] = {}
        with self.daemon.control() as control:
            before = 0
            while True:
                request = control_pb2.ListChangesRequest(job="jobs/texts", page_size=20, before_revision=before)
                try:
                    answer = control.ListChanges(request, timeout=30)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.DATA_LOSS:
                        return len(self.acknowledged)
                    raise
                found |= {change.revision: change.assignments[0].new_value.string_value for change in answer.changes}
                before = answer.previous_before_revision
                if not before:
                    return sum(found.get(revision) != text for revision, text in self.acknowledged.items())


def still_connected(fact: dict[str, Any]) -> bool:
    assert fact.get("connected", True), "the job's session broke while the disk was full"
    return True


def applied_lr(daemon: Daemon) -> float:
    return get_job(daemon, "vgg").variables[0].applied[0].value.float_value


def ltctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ltctl", "--endpoint", daemon.target, *arguments], capture_output=True, text=True,
        timeout=30, env=dict(os.environ),
    )  # fmt: skip


def declare_text(daemon: Daemon) -> None:
    """Leaves a job with a text variable."""
    spec = types_pb2.VariableSpec(variable_id="text", type=types_pb2.VARIABLE_TYPE_STRING)
    spec.initial.string_value = ""
    with daemon.channel() as channel:
        process = Process(channel, "texts")
        process.join()
        process.declare(spec)
        process.close()


def fill_and_recover(daemon: Daemon, disk: SmallDisk, folder: Path, generator: random.Random) -> tuple[int, float]:
    """Fills the disk and makes room. Returns how many changes were acknowledged, and the seconds until one was again."""
    filled = Disk(daemon.start(), disk, generator)
    declare_text(daemon)
    with (
        program("trainer.py", "vgg", log=folder / "trainer.log", LIVETUNE_ENDPOINT=daemon.target) as job,
        daemon.channel() as channel,
    ):
        job.facts(lambda fact: fact["connected"])
        process = Process(channel, "raw")
        process.join()
        process.declare(float_spec("x", 0.0))
        set_values(daemon, "raw", x=1.0)
        unacknowledged = process.expect("change").change
        filled.fill()
        answers = (ltctl(daemon, "set", "vgg", f"lr={0.1 + i / 100}", "--wait", "accepted") for i in range(50))
        refused = next(answer for answer in answers if answer.returncode)
        assert 1 == refused.returncode, refused.stderr
        assert "disk is full" in refused.stderr
        outcome = types_pb2.Outcome(variable_id="x", status=types_pb2.APPLY_STATUS_APPLIED)
        outcome.effective.float_value = 1.0
        report = job_pb2.ApplyReport(change_revision=unacknowledged.revision, step=7, outcomes=[outcome])
        process.send(apply=report)
        filled.check_that_the_rest_goes_on(job)
        seconds = filled.recover()
        # What it acknowledged meanwhile waited for room: its session did not break over it.
        process.expect("apply_recorded")
        set_values(daemon, "vgg", lr=0.75)
        job.facts(lambda fact: still_connected(fact) and fact["lr"] == 0.75, 30)
        eventually(lambda: applied_lr(daemon) == 0.75)
        job.tell()
        assert 0 == job.facts(lambda fact: "done" in fact)["errors"]
        process.close()
    assert 0 == filled.lost(), "acknowledged changes are lost"
    assert "Traceback" not in daemon.log
    daemon.kill()
    daemon.start()
    assert 0 == filled.lost(), "acknowledged changes are lost after a restart"
    daemon.close()
    return len(filled.acknowledged), seconds


def test_a_full_disk_refuses_writes_and_nothing_else(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon(*PORTS)
    with small_disk(daemon.state, KILOBYTES) as disk:
        fill_and_recover(daemon, disk, tmp_path, random.Random(seed(41)))


def test_control_acknowledging_what_had_no_room_is_noticed(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["acknowledge_when_full"], *PORTS)
    with small_disk(daemon.state, KILOBYTES) as disk:
        try:
            filled = Disk(daemon.start(), disk, random.Random(seed(41)))
            declare_text(daemon)
            disk.fill()
            with daemon.control() as control:
                while "acknowledged without room" not in daemon.log:
                    assert "" == filled.set_text(control)
            assert filled.lost() > 0
        finally:
            daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_disks_of_many_sizes_fill_up(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    chosen, disks = seed(42), count("FULL_DISKS", 30)
    generator = random.Random(chosen)
    acknowledged, longest = 0, 0.0
    with long_run("disk full", chosen, disks=disks) as figures:
        for number in range(disks):
            daemon = make_daemon(*PORTS, name=f"daemon{number}")
            # Before, while and after SQLite first moves its log, of 4 MB, into the file.
            with small_disk(daemon.state, generator.randrange(1_000, 10_000)) as disk:
                more, seconds = fill_and_recover(daemon, disk, daemon.folder, generator)
            acknowledged, longest = acknowledged + more, max(longest, seconds)
            figures.update(acknowledged=acknowledged, lost=0, longest_s_until_it_writes=round(longest, 3))
