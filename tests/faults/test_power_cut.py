"""Power cuts while the store is written: nothing acknowledged is lost, nothing is damaged, nothing is invented."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from livetuned.domain.state import State
from livetuned.store.interface import StoreDamagedError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from support import needs, stories
from support.powercut import Event, cuts, record
from support.results import count, long_run, seed

TESTS = Path(__file__).parent.parent

CHECKPOINTS = (8, 40, 1_000)
"""Pages after which SQLite moves its log into the file, one recording for each: 1,000 is what it does by itself."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder on a real disk."""
    needs.strace()
    needs.real_disk(tmp_path)
    return tmp_path


def record_writer(disk: Path, story_seed: int, length: int, checkpoint: int, synchronous: str) -> list[Event]:
    folder = disk / "written"
    folder.mkdir()
    arguments = [str(folder), str(story_seed), str(length), str(checkpoint), synchronous]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    events = record([sys.executable, "-m", "support.powercut_writer", *arguments], folder, {"PYTHONPATH": path})
    shutil.rmtree(folder)
    return events


class Judge:
    """Knows what was written, and judges what is found after a cut."""

    def __init__(self, story_seed: int, length: int) -> None:
        self._history = stories.records(stories.story(story_seed, length))
        state = State()
        self._states = [dict(state.jobs)]
        for item in self._history:
            state.fold(item)
            self._states.append(dict(state.jobs))

    def judge(self, folder: Path, said: Sequence[str]) -> str:
        """Opens what was found. Returns what is wrong with it, ``""`` for nothing."""
        promised: Mapping[str, object] = json.loads(said[-1]) if said else {}
        try:
            return asyncio.run(self._judge(folder, promised))
        except (StoreDamagedError, StoreOpenError) as error:
            return f"damaged: {error}"

    async def _judge(self, folder: Path, promised: Mapping[str, object]) -> str:
        store = SqliteStore(folder / "livetuned.db")
        try:
            head, compacted, loaded = store.head, store.compacted, await store.load()
            found = {"head": head, "covered": loaded.covered, "compacted": compacted}
            for what, now in found.items():
                if now < promised.get(what, 0):  # type: ignore[operator]
                    return f"lost: {what} {now}, promised was {promised[what]}"
            if promised and promised["store_id"] != store.store_id:
                return "lost: the store is another one"
            kept = await store.read(compacted, len(self._history) + 1)
            if head > len(self._history) or self._history[compacted:head] != kept:
                return "invented: the records are not those that were written"
            state = State(loaded.jobs, loaded.covered)
            for item in kept[loaded.covered - compacted :]:
                state.fold(item)
            return "" if state.jobs == self._states[head] else "invented: the state is not that of the records"
        finally:
            await store.close()


def cut_many(disk: Path, cases: int, chosen_seed: int, length: int, synchronous: str = "FULL") -> list[str]:
    """Cuts the power so often, over recordings that differ. Returns what was wrong."""
    wrong: list[str] = []
    for number, checkpoint in enumerate(CHECKPOINTS):
        generator = random.Random(chosen_seed * len(CHECKPOINTS) + number)
        story_seed = generator.randrange(2**32)
        events = record_writer(disk, story_seed, length, checkpoint, synchronous)
        judge = Judge(story_seed, length)
        share = cases // len(CHECKPOINTS) + (number < cases % len(CHECKPOINTS))
        for moment, said, files in cuts(events, share, generator):
            folder = disk / "found"
            folder.mkdir()
            for name, data in files.items():
                (folder / name).write_bytes(data)
            if what := judge.judge(folder, said):
                wrong.append(f"{checkpoint} pages, cut at {moment} of {len(events)}: {what}")
            shutil.rmtree(folder)
    kinds = Counter(text.split(": ")[1] for text in wrong)
    sys.stdout.write("\n".join([f"{cases} cuts, wrong: {dict(kinds)}", *wrong[:20]]) + "\n")
    return wrong


def test_a_power_cut_loses_nothing_acknowledged(disk: Path) -> None:
    assert [] == cut_many(disk, cases=150, chosen_seed=seed(31), length=150)


def test_control_synchronous_normal_loses_what_was_acknowledged(disk: Path) -> None:
    wrong = cut_many(disk, cases=60, chosen_seed=seed(31), length=150, synchronous="NORMAL")
    assert len(wrong) > 5


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_many_power_cuts_lose_nothing_acknowledged(disk: Path) -> None:
    chosen, cases = seed(32), count("POWER_CUTS", 5_000)
    with long_run("power cut", chosen, cuts=cases) as figures:
        wrong = cut_many(disk, cases, chosen, length=600)
        figures["wrong"] = len(wrong)
        assert [] == wrong
