"""Damaged files: a store refuses to open, or refuses to read, or tells exactly the truth. With its control."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from livetuned.domain.records import Record
from livetuned.domain.state import State
from livetuned.store import codec
from livetuned.store.interface import CompactedError, Store, StoreDamagedError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from support import stories
from support.damage import PAGE, damage
from support.results import count, long_run, seed

NAME = "livetuned.db"
RECORDS = 120
EVERYTHING = 1_000_000
REMOVED = 0.03
"""Share of the cases in which the whole file is gone."""


@dataclass(frozen=True)
class Original:
    """The files of a store as they were left, and what reading them gives."""

    how: str
    files: Mapping[str, bytes]
    truth: Mapping[str, object]


async def read_everything(store: Store) -> dict[str, object]:
    """Reads by every path there is. What a path gives is its result, or the error that says it is damaged."""
    head, start = store.head, store.compacted
    paths: dict[str, Callable[[], Awaitable[object]]] = {
        "state": lambda: _folded(store),
        "read": lambda: store.read(start, EVERYTHING),
        "follow": lambda: _followed(store, start),
        "note": lambda: store.note("place"),
    }
    for page in range(start, head, 17):
        paths[f"read {page}"] = lambda page=page: store.read(page, 17)
    for job in (*stories.JOBS, "nobody"):
        paths[f"read {job}"] = lambda job=job: store.read(start, EVERYTHING, job)
        paths[f"changes {job}"] = lambda job=job: store.changes(job, head + 1, EVERYTHING)
        paths[f"changes {job} page"] = lambda job=job: store.changes(job, (start + head) // 2, 5)
        paths[f"applies {job}"] = lambda job=job: store.applies(job, 1, head)
        paths[f"applies {job} page"] = lambda job=job: store.applies(job, start + 5, (start + head) // 2)
    paths["changes of all"] = lambda: store.changes("", head + 1, EVERYTHING)
    found: dict[str, object] = {"store_id": store.store_id, "head": head, "compacted": start}
    for name, path in paths.items():
        try:
            found[name] = await path()
        except StoreDamagedError as error:
            found[name] = error
        except CompactedError as error:
            found[name] = f"compacted: {error}"
    return found


async def _folded(store: Store) -> object:
    # Not the snapshots by themselves: a store that lost the end of its log with one of them is as true without it.
    loaded = await store.load()
    state = State(loaded.jobs, loaded.covered)
    for record in await store.read(loaded.covered, EVERYTHING):
        state.fold(record)
    return state.jobs


async def _followed(store: Store, after: int) -> object:
    seen: list[Record] = []
    caught_up = asyncio.get_running_loop().create_future()

    def deliver(records: list[Record]) -> None:
        seen.extend(records)
        if seen[-1].revision >= store.head and not caught_up.done():
            caught_up.set_result(None)

    if after < store.head:
        following = asyncio.ensure_future(store.follow(after, deliver))
        await asyncio.wait((following, caught_up), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()  # the error that ended it
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return seen


def read_folder(folder: Path, verified_at_open: int = EVERYTHING) -> dict[str, object]:
    async def run() -> dict[str, object]:
        store = SqliteStore(folder / NAME, verified_at_open=verified_at_open)
        try:
            return await read_everything(store)
        finally:
            await store.close()

    return asyncio.run(run())


def write(folder: Path, chosen_seed: int, how: str) -> Original:
    """Leaves a store with a history of several jobs in a folder.

    Args:
        folder: Made by this.
        chosen_seed: Of the history.
        how: ``closed``, or ``killed``, with a write-ahead log. ``snapshots``: most of the history is part of snapshots too,
            so that opening need not look at it. ``compacted``: its beginning is in snapshots only.
    """
    drafts = stories.story(chosen_seed, RECORDS)
    history = stories.records(drafts)

    async def run() -> dict[str, bytes]:
        store = SqliteStore(folder / NAME)
        for start in range(0, RECORDS, 5):
            assert history[start : start + 5] == await store.append(drafts[start : start + 5])
            if start == RECORDS // 2:
                if "compacted" in how:
                    covered = start + 5
                    await store.save(list(stories.fold(history[:covered]).values()), [], covered)
                    await store.compact(covered - 10)
                await store.put_note("place", "here")
                # Closing moves the write-ahead log into the file: killed later, both hold a part of the truth.
                await store.close()
                store = SqliteStore(folder / NAME)
        if "snapshots" in how:
            await store.save(list(stories.fold(history[: RECORDS - 10]).values()), [], RECORDS - 10)
        # What a process that is killed here leaves behind: nothing is under way, and the kernel has it all.
        left = _files(folder)
        await store.close()
        return left if "killed" in how else _files(folder)

    folder.mkdir()
    files = asyncio.run(run())
    check = folder.with_name(folder.name + "-check")
    _put(check, files)
    truth = read_folder(check)
    shutil.rmtree(folder)
    shutil.rmtree(check)
    kept = history[truth["compacted"] :]  # type: ignore[misc]
    assert kept == truth["read"]
    assert "compacted" not in how or len(kept) < RECORDS
    for job in stories.JOBS:
        assert [record for record in kept if record.job == job] == truth[f"read {job}"]
    return Original(how, files, truth)


HOW = ("closed", "killed", "snapshots, closed", "snapshots, killed", "compacted, closed", "compacted, killed")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Original]:
    folder = tmp_path_factory.mktemp("originals")
    return [write(folder / how.replace(", ", "-"), 1, how) for how in HOW]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def judge(folder: Path, truth: Mapping[str, object], verified_at_open: int) -> tuple[str, str]:
    """Opens and reads damaged files. Returns what that came to, and what was wrong."""
    try:
        found = read_folder(folder, verified_at_open)
    except (StoreDamagedError, StoreOpenError):
        return "refused to open", ""
    except Exception as error:  # noqa: BLE001 - whatever else comes is what this looks for
        return "other error", repr(error)
    damaged = [name for name, value in found.items() if isinstance(value, StoreDamagedError)]
    wrong = [name for name, value in truth.items() if name not in damaged and value != found.get(name, "nothing")]
    if "head" in wrong:
        return "lost tail", f"head {found['head']} instead of {truth['head']}"
    if wrong:
        return "wrong", f"{wrong[0]}: {str(found.get(wrong[0]))[:300]} instead of {str(truth[wrong[0]])[:300]}"
    return ("refused to read" if damaged else "harmless"), ""


def damage_many(
    originals: Sequence[Original], folder: Path, cases: int, chosen_seed: int
) -> tuple[Counter[str], list[str]]:
    """Damages one file of a copy at a time. Returns how often what came of it, and the cases that are wrong."""
    generator = random.Random(chosen_seed)
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    for number, original in zip(range(cases), _round(originals), strict=False):
        names = [name for name, data in sorted(original.files.items()) if data and not name.endswith("-shm")]
        name = generator.choices(names, [4 if len(original.files[name]) > PAGE else 1 for name in names])[0]
        copy = folder / str(number)
        if generator.random() < REMOVED:
            words = "removed"
            _put(copy, {other: data for other, data in original.files.items() if other != name})
        else:
            _, words, data = damage(original.files[name], generator)
            _put(copy, {**original.files, name: data})
        outcome, what = judge(copy, original.truth, generator.choice([1, EVERYTHING]))
        outcomes[outcome] += 1
        if outcome in ("lost tail", "wrong", "other error"):
            bad.append(f"case {number}, {original.how}, {name}, {words}: {outcome}: {what}")
        shutil.rmtree(copy)
    sys.stdout.write("\n".join([str(dict(outcomes)), *bad[:20]]) + "\n")
    return outcomes, bad


def _round(originals: Sequence[Original]) -> Iterator[Original]:
    while True:
        yield from originals


def test_damage_is_noticed_or_harmless(originals: Sequence[Original], tmp_path: Path) -> None:
    outcomes, bad = damage_many(originals, tmp_path, cases=200, chosen_seed=seed(21))
    assert [] == bad
    assert outcomes["refused to open"] > 0


def test_control_without_checksums_wrong_values_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in vars(codec) if name.startswith("checksum")]:
        monkeypatch.setattr(codec, name, lambda *_: b"\0" * codec.CHECKSUM_BYTES)
    originals = [write(tmp_path / how.replace(", ", "-"), 1, how) for how in HOW]
    outcomes, _ = damage_many(originals, tmp_path, cases=200, chosen_seed=seed(21))
    assert outcomes["wrong"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_damage_is_noticed_or_harmless_many_times(originals: Sequence[Original], tmp_path: Path) -> None:
    chosen, cases = seed(22), count("DAMAGES", 2_000)
    with long_run("damaged file", chosen, damages=cases) as figures:
        outcomes, bad = damage_many(originals, tmp_path, cases, chosen)
        figures.update(outcomes)
        assert [] == bad
