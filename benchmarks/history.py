"""A store as a daemon leaves it after a long life: many jobs with many variables, and a long history of changes.

Written through the store's own interface, in large batches, and folded by the domain's own functions: the only code
of the benchmarks that knows the daemon's inside.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path

from livetuned.domain import limits
from livetuned.domain.job import Job
from livetuned.domain.records import Assignment, Changed, Declared, DeclaredVariable, Draft, Process, Record, Registered
from livetuned.domain.specs import VariableSpec
from livetuned.domain.state import State
from livetuned.domain.values import ValueType
from livetuned.store.interface import Store
from livetuned.store.sqlite import SqliteStore

DATABASE = "livetuned.db"
BATCH = 5_000
FIRST_PORT = 23_000


def build(folder: Path, jobs: int, variables: int, changes: int) -> int:
    """Writes the store into the folder, its snapshots as far behind as a daemon lets them get. Returns its bytes.

    Args:
        folder: The daemon's state folder; made if it does not exist.
        jobs: Jobs.
        variables: Variables of each job.
        changes: Changes of all jobs together, each of one variable.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    asyncio.run(_build(SqliteStore(folder / DATABASE), jobs, variables, changes))
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


async def _build(store: Store, jobs: int, variables: int, changes: int) -> None:
    names = [f"job-{number:03}" for number in range(jobs)]
    records = await store.append(
        [_registered(name, FIRST_PORT + number) for number, name in enumerate(names)]
        + [_declared(name, variables) for name in names]
    )
    behind = min(limits.SNAPSHOT_LAG, changes // 2)
    # The newest change of every variable decides what a job is: only those are folded, a million would take minutes.
    newest: dict[str, deque[Record]] = {name: deque(maxlen=variables) for name in names}
    for first in range(0, changes - behind, BATCH):
        numbers = range(first, min(first + BATCH, changes - behind))
        for record in await store.append([_changed(number, names, variables) for number in numbers]):
            newest[record.job].append(record)
    await store.save(_fold(records, newest), [], store.head)
    for first in range(changes - behind, changes, BATCH):
        numbers = range(first, min(first + BATCH, changes))
        await store.append([_changed(number, names, variables) for number in numbers])
    await store.close()


def _fold(declared: list[Record], newest: dict[str, deque[Record]]) -> list[Job]:
    state = State()
    for record in declared:
        state.fold(record)
    for record in sorted((one for some in newest.values() for one in some), key=lambda record: record.revision):
        state.revision = record.revision - 1
        state.fold(record)
    return list(state.jobs.values())


def _now_us() -> int:
    return time.time_ns() // 1_000


def _registered(name: str, port: int) -> Draft:
    process = Process("host", 1, "user", "python train.py", "0")
    return Draft(_now_us(), name, Registered(1, port, 0, 1, f"instance of {name}", False, process))


def _declared(name: str, variables: int) -> Draft:
    declared = tuple(
        DeclaredVariable(VariableSpec(f"v{number}", ValueType.FLOAT, 0.0, 0.0, 1e9, doc="What it is for."), 0.0)
        for number in range(variables)
    )
    return Draft(_now_us(), name, Declared(f"instance of {name}", declared, ()))


def _changed(number: int, names: list[str], variables: int) -> Draft:
    """Round robin: over the jobs, and over the variables of each."""
    turn, place = divmod(number, len(names))
    old, new = max(0, turn - variables) * 1e-3, turn * 1e-3
    assignment = Assignment(f"v{turn % variables}", old, new)
    return Draft(_now_us(), names[place], Changed("bench", "a reason", f"{number:032x}", (assignment,), ()))
