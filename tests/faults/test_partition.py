"""A job cut off from its daemon, in every way a proxy can: training goes on, and follows again when the way is clear."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from support.calls import set_values
from support.daemon import Daemon
from support.metrics import metric
from support.programs import Program, program
from support.proxy import Proxy, proxy
from support.results import count, long_run, seed

PORTS = ("--job-ports", "22120-22129")
STEPS = 300
"""How many steps the job makes while it is cut off, at least."""

BREAKS: Mapping[str, Callable[[Proxy], object]] = {
    "pause": lambda way: way.pause(),
    "delay": lambda way: way.slow(delay=0.05),
    "slices": lambda way: way.slow(slice_bytes=1),
    "swallow": lambda way: way.swallow(),
    "half close": lambda way: way.half_close(),
    "reset": lambda way: way.reset(),
    "refuse and reset": lambda way: (way.refuse(), way.reset()),
}


def heal(way: Proxy, *, broken: bool) -> None:
    way.slow()
    way.swallow(on=False)
    way.refuse(on=False)
    way.resume()
    if broken:
        way.reset()  # bytes are missing: no stream can go on over what is left of these connections


def break_and_heal(daemon: Daemon, way: Proxy, job: Program, how: str, lr: float) -> float:
    """Breaks the way, changes a value meanwhile, heals it. Returns the seconds until the job follows."""
    before = job.facts(lambda fact: True)["step"]
    BREAKS[how](way)
    set_values(daemon, lr=lr)
    job.facts(lambda fact: fact["step"] > before + STEPS)
    heal(way, broken=how == "swallow")
    healed = time.monotonic()
    fact = job.facts(lambda fact: fact["lr"] == lr and fact["connected"], 30)
    assert 0 == fact["errors"]
    return time.monotonic() - healed


def cut_off(daemon: Daemon, folder: Path, rounds: int, chosen_seed: int) -> dict[str, object]:
    generator = random.Random(chosen_seed)
    longest: dict[str, float] = dict.fromkeys(BREAKS, 0.0)
    with (
        proxy(daemon.socket) as way,
        program("trainer.py", "vgg", log=folder / "trainer.log", LIVETUNE_ENDPOINT=way.target) as job,
    ):
        job.facts(lambda fact: fact["connected"])
        for number in range(rounds):
            how = list(BREAKS)[number] if number < len(BREAKS) else generator.choice(list(BREAKS))
            lr = generator.uniform(0.001, 1.0)
            longest[how] = max(longest[how], break_and_heal(daemon, way, job, how, lr))
        job.tell()
        over = job.facts(lambda fact: "done" in fact)
    assert 0 == over["errors"]
    assert "Traceback" not in daemon.log
    assert 0 == metric(daemon, "livetune_rpc_total", code="INTERNAL")
    return {"longest_s_until_it_follows": {how: round(seconds, 2) for how, seconds in longest.items()}, **over}


def test_a_job_that_was_cut_off_trains_on_and_follows_again(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    cut_off(make_daemon(*PORTS).start(), tmp_path, rounds=len(BREAKS), chosen_seed=seed(111))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_cut_off_often_trains_on(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    chosen, rounds = seed(112), count("PARTITIONS", 100)
    with long_run("partition", chosen, partitions=rounds) as figures:
        figures.update(cut_off(make_daemon(*PORTS).start(), tmp_path, rounds, chosen))
