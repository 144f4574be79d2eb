"""A real daemon, as it is or with a planted bug, under a load, and the judgement of what its clients saw."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import SystemRandom

from livetune.v1 import types_pb2
from support.daemon import Daemon
from support.linearizability import check
from support.load import VARIABLES, Load, Plan, Saw, new_values, old_values
from support.operations import Kind, Operation, Outcome, check_revisions
from support.process import Process, float_spec
from support.watch_validators import Snapshot, validate
from support.watching import event_of


@dataclass(frozen=True, slots=True)
class Result:
    """What clients and watchers saw, and what is wrong with it."""

    saw: Saw
    found: dict[str, list[str]]
    """Violations in words, by the check that found them: "order", "revisions", "history", "answers", "snapshots", or a
    validator of the watch."""
    helped: bool
    """Whether the search for an order had to be told by the daemon's history what became of calls without an answer."""

    def __str__(self) -> str:
        shown = [f"{name} ({len(words)}):\n" + "\n".join(words[:3]) for name, words in self.found.items()]
        return "\n".join(shown) or "nothing wrong"


class PlantedDaemon(Daemon):
    """A daemon with one of the bugs of `bugs.BUGS`."""

    def __init__(self, folder: Path, *arguments: str, bug: str, seed: int) -> None:
        super().__init__(folder, *arguments, environment={"LIVETUNE_PLANTED": bug, "LIVETUNE_SEED": str(seed)})

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("bugs.py")), *super().command()[3:]]


def first_seed() -> int:
    """Returns the number that LIVETUNE_SEED says, or another one every time, and prints it."""
    seed = int(os.environ.get("LIVETUNE_SEED") or SystemRandom().randrange(10**6))
    print(f"LIVETUNE_SEED={seed}")  # noqa: T201
    return seed


def judge(folder: Path, plan: Plan, *, bug: str = "") -> Result:
    """Runs a daemon in a folder of its own under a load, judges what was seen, and cleans up.

    Args:
        folder: Is made, and removed.
        plan: The load.
        bug: Plant this one of `bugs.BUGS`.
    """
    folder.mkdir()
    ports = ("--job-ports", "22010-22029")
    daemon = PlantedDaemon(folder, *ports, bug=bug, seed=plan.seed) if bug else Daemon(folder, *ports)
    try:
        result = run(daemon, plan)
    finally:
        daemon.close()
        shutil.rmtree(folder)
    if result.found and not bug:
        # What the machine did between is in no seed: keep the history, to look at it again.
        kept = folder.with_suffix(".pickle")
        kept.write_bytes(pickle.dumps((result.saw.operations, result.saw.initial, result.saw.streams)))
        print(f"kept in {kept}")  # noqa: T201
    return result


def run(daemon: Daemon, plan: Plan) -> Result:
    """Lets clients and watchers loose on a daemon that does not run yet, and judges what they saw. Leaves it running."""
    daemon.start()
    jobs = [f"job{number}" for number in range(plan.jobs)]
    with daemon.channel() as channel:
        for job in jobs:
            process = Process(channel, job)
            process.join()
            process.declare(*(float_spec(name, 0.0) for name in VARIABLES))
            process.close()
    saw = asyncio.run(Load(daemon, plan, jobs).run())
    verdict = check(saw.operations, saw.initial)
    told = verdict if saw.history is None else check(_told(saw.operations, saw.history), saw.initial)
    found = {
        "answers": saw.wrong,
        "order": [one.words for one in (verdict, told) if not one.ok and (one.decided or not told.decided)],
        "revisions": check_revisions(saw.operations),
        # Nothing is compacted, and the store stays the same.
        "snapshots": [
            f"{stream.name}: {item}" for stream in saw.streams for item in stream.items if isinstance(item, Snapshot)
        ],
    }
    if saw.history is not None:
        found["history"] = _check_history(saw.operations, saw.history)
        found |= validate(saw.streams, [event_of(change) for change in saw.history])
    return Result(saw, {name: words for name, words in found.items() if words}, not verdict.decided)


def _told(operations: Sequence[Operation], history: Sequence[types_pb2.Change]) -> list[Operation]:
    """Returns the operations with what the history tells of those without an answer: done at any time, or not at all."""
    end = 1.0 + max(item.end for item in operations if item.outcome is not Outcome.UNKNOWN)
    changes = {change.reason: change for change in history}
    told = []
    for item in operations:
        change = changes.get(item.tag)
        if item.outcome is not Outcome.UNKNOWN:
            told.append(item)
        elif change is not None:
            new, old = new_values(change), old_values(change)
            told.append(
                replace(item, end=end, outcome=Outcome.DONE, values=new, old=old, revision=change.revision)
            )  # fmt: skip
    return told


def _check_history(operations: Sequence[Operation], history: Sequence[types_pb2.Change]) -> list[str]:
    """Compares the answers with the store's own history: every change is in it once, with the name its client gave it."""
    by_tag: dict[str, list[types_pb2.Change]] = {}
    for change in history:
        by_tag.setdefault(change.reason, []).append(change)
    wrong = []
    for item in operations:
        if item.kind is Kind.READ:
            continue
        changes = by_tag.pop(item.tag, [])
        revisions = [change.revision for change in changes]
        if item.outcome is Outcome.DONE and revisions != [item.revision]:
            wrong.append(f"in the history as revisions {revisions}: {item}")
        elif len(revisions) > (item.outcome is not Outcome.REFUSED):
            wrong.append(f"in the history all the same, as revisions {revisions}: {item}")
        wrong += [
            f"in the history revision {change.revision} is {new_values(change)}: {item}"
            for change in changes
            if item.values and item.values != new_values(change)
        ]
    return wrong + [f"nobody's change: {change}" for changes in by_tag.values() for change in changes]
