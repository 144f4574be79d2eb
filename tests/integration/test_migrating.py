"""docs/migrating.md: its programs run, against a real daemon that also speaks the classic protocol."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from livetune.v1 import control_pb2, types_pb2
from support.classic import TRIGGER, ask, tell
from support.daemon import Daemon, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
DICTIONARY = 25_520
"""Dictionary port of the first job: the first job port, and the default offset."""

BEGIN = """\
import time


def train(lr, momentum):
    if (lr, momentum) not in seen:
        seen.append((lr, momentum))
        print("seen", lr, momentum, flush=True)
    time.sleep(0.002)


seen = []
"""
ORIGINAL = "import sys, livetune.compat\nsys.modules['LiveTune'] = livetune.compat\n"
"""The original is not installed: its name stands for ours."""


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "24520-24529", LIVETUNED_CLASSIC_ENABLED="true").start()


def get_job(daemon: Daemon, name: str) -> types_pb2.Job:
    with daemon.control() as control:
        return control.GetJob(control_pb2.GetJobRequest(name=f"jobs/{name}")).job


def running(daemon: Daemon, name: str) -> bool:
    with daemon.control() as control:
        jobs = control.ListJobs(control_pb2.ListJobsRequest()).jobs
    return any(
        job.name == f"jobs/{name}" and len(job.variables or get_job(daemon, name).variables) == 2 for job in jobs
    )


@pytest.mark.parametrize("number", range(4))
def test_the_programs_of_the_page_are_tuned(daemon: Daemon, tmp_path: Path, number: int) -> None:
    assert 4 == len(PROGRAMS)
    name = "vgg" if number >= 2 else "train-vgg"
    (tmp_path / "train_vgg.py").write_text((ORIGINAL if number == 0 else "") + BEGIN + PROGRAMS[number])
    environment = {**os.environ, "LIVETUNE_ENDPOINT": daemon.target}
    environment.pop("LIVETUNE_JOB", None)
    program = subprocess.Popen(
        [sys.executable, "train_vgg.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    try:
        eventually(lambda: running(daemon, name), 30)
        with daemon.control() as control:
            request = control_pb2.SetVariablesRequest(job=f"jobs/{name}")
            for variable, value in (("lr", 0.01), ("momentum", 0.5)):
                request.updates.add(variable_id=variable).value.float_value = value
            revision = control.SetVariables(request).change.revision
        eventually(
            lambda: all(v.applied and v.applied[0].revision == revision for v in get_job(daemon, name).variables)
        )
        assert all(v.applied[0].step > 0 for v in get_job(daemon, name).variables)
        # The classic client's way, too.
        tell(ask(DICTIONARY, "lr"), b"0.02")
        eventually(lambda: get_job(daemon, name).variables[0].applied[0].value.float_value == 0.02)
        tell(ask(DICTIONARY, "stop"), TRIGGER)
        assert 0 == program.wait(30)
        said = program.stdout.read().splitlines()
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
    # Both variables of the change in the same iteration, never one of them.
    assert ["seen 0.1 0.9", "seen 0.01 0.5", "seen 0.02 0.5"] == [line for line in said if line.startswith("seen")]
    assert (["lr is now 0.01", "lr is now 0.02"] if number < 2 else []) == [line for line in said if "is now" in line]
    assert types_pb2.JOB_STATE_FINISHED == get_job(daemon, name).state


PORTS = """\
import sys
from livetune.compat import liveTrigger, liveVar

lr, stop = liveVar(0.1, "lr"), liveTrigger("stop")
print(lr.port, lr["port"] == lr.port, stop.port, lr.get_dictionary_port(), liveVar.dictionary_port[0], flush=True)
while not stop():
    lr()
lr += 1.0
print(lr)
"""


def test_it_tells_the_ports_that_the_classic_client_uses(daemon: Daemon) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PORTS], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "LIVETUNE_ENDPOINT": daemon.target, "LIVETUNE_JOB": "ports"},
    )  # fmt: skip
    assert program.stdout is not None
    try:
        port, same, trigger, dictionary, first = program.stdout.readline().split()
        assert ("True", str(DICTIONARY), str(DICTIONARY)) == (same, dictionary, first)
        assert (int(port), int(trigger)) == (ask(DICTIONARY, "lr"), ask(DICTIONARY, "stop"))
        assert b"float" == tell(int(port), b"0.5")
        eventually(
            lambda: [apply.value.float_value for apply in get_job(daemon, "ports").variables[0].applied] == [0.5]
        )
        tell(int(trigger), TRIGGER)
        assert 0 == program.wait(30)
        assert "1.5" == program.stdout.read().strip()
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
