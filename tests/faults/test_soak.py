"""Many changes and many watches: memory and descriptors stay where they are. With its control."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from livetune.v1 import control_pb2
from support.calls import set_values
from support.daemon import Daemon, eventually
from support.metrics import metric
from support.plants import PlantedDaemon
from support.process import Process, float_spec
from support.results import count, long_run, seed
from support.soaking import Samples, change_often, slope, watch_often

PORTS = ("--job-ports", "22180-22189")
NO_RATE = {"LIVETUNED_LIMITS_CHANGES_PER_SECOND": "1000000", "LIVETUNED_LIMITS_CHANGES_BURST": "1000000"}
SAMPLES = 60
BYTES_PER_CYCLE = 512
"""What a watch that was opened and closed may leave behind, in bytes."""
FEW = 20_000
"""The same where there are few: the allocator takes memory by the megabyte."""


def soak(daemon: Daemon, changes: int, cycles: int, bytes_per_cycle: int) -> dict[str, float]:
    """Makes changes, then opens and closes watches. Returns figures."""
    daemon.start()
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    with daemon.channel() as channel:
        job = Process(channel, "vgg")
        job.join()
        job.declare(float_spec("x", 0.0))
        job.close()
    set_values(daemon, x=0.5)
    changing, watching = Samples(process), Samples(process)
    begun = time.monotonic()
    change_often(daemon, "vgg", changes, changing, SAMPLES)
    changed = time.monotonic()
    watch_often(daemon, "vgg", cycles, watching, SAMPLES)
    watched = time.monotonic()
    eventually(lambda: metric(daemon, "livetune_watchers") == 0)
    figures = {
        "bytes_per_change": round(changing.bytes_each(), 1),
        "bytes_per_cycle": round(watching.bytes_each(), 1),
        "most_descriptors": max(changing.descriptors + watching.descriptors),
        "descriptors_per_1000_cycles": round(1_000 * slope(watching.done, watching.descriptors), 3),
        "memory_mb": process.memory_info().rss // 10**6,
        "changes_s": round(changed - begun, 1),
        "cycles_s": round(watched - changed, 1),
    }
    with daemon.control() as control:
        newest = control.ListChanges(control_pb2.ListChangesRequest(job="jobs/vgg", page_size=1)).changes[0]
        assert changes - 1 == newest.assignments[0].new_value.float_value
    assert figures["bytes_per_cycle"] < bytes_per_cycle, f"each watch leaves {figures['bytes_per_cycle']} bytes behind"
    assert figures["bytes_per_change"] < bytes_per_cycle
    # A handful of connections at a time, whatever went before.
    assert max(watching.descriptors) - min(watching.descriptors) < 20
    assert "Traceback" not in daemon.log
    daemon.kill()
    begun = time.monotonic()
    daemon.start()
    figures["ready_again_s"] = round(time.monotonic() - begun, 2)
    return figures


def test_what_was_done_leaves_nothing_behind(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, *PORTS, environment=NO_RATE)
    try:
        soak(daemon, changes=5_000, cycles=300, bytes_per_cycle=FEW)
    finally:
        daemon.close()


def test_control_cursors_that_are_kept_are_noticed(tmp_path: Path) -> None:
    daemon = PlantedDaemon(tmp_path, ["leaky_hub=65536"], *PORTS, **NO_RATE)
    try:
        with pytest.raises(AssertionError, match="each watch leaves"):
            soak(daemon, changes=1_000, cycles=300, bytes_per_cycle=FEW)
    finally:
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_million_changes_leave_nothing_behind(tmp_path: Path) -> None:
    changes, cycles = count("SOAK_CHANGES", 1_000_000), count("SOAK_CYCLES", 100_000)
    daemon = Daemon(tmp_path, *PORTS, environment=NO_RATE)
    with long_run("soak", seed(0), changes=changes, cycles=cycles) as figures:
        try:
            figures.update(soak(daemon, changes, cycles, BYTES_PER_CYCLE if cycles >= 20_000 else FEW))
        finally:
            daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_control_small_cursors_that_are_kept_are_noticed(tmp_path: Path) -> None:
    cycles = max(20_000, count("SOAK_CYCLES", 100_000) // 5)
    daemon = PlantedDaemon(tmp_path, ["leaky_hub=512"], *PORTS, **NO_RATE)
    with long_run("soak, control with a leaked cursor", seed(0), cycles=cycles) as figures:
        try:
            with pytest.raises(AssertionError, match="each watch leaves") as caught:
                soak(daemon, 1_000, cycles, BYTES_PER_CYCLE)
            figures["found"] = str(caught.value).splitlines()[0]
        finally:
            daemon.close()
