"""Makes the golden databases: one for each schema that was released, written by the code that was current then.

    python tests/golden/make.py 1        # writes tests/golden/v1.db and v1.json; needs git and this repository's history

`vN.db` is written by the code of a commit of then, checked out into a temporary folder. `vN.json` is what the current
code reads in it, after it was found to say the same as the code of then. Both are committed and not made again: a test
opens them with whatever code is current.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMITS = {1: "31740a53f65a14187a938965edaa717f6911906c", 2: "6cf49e502bd6d6685fb0bebc3472bbf4cadbf496"}
"""Whose code wrote which schema."""
STORE_ID = "1f2e3d4c5b6a79880f1e2d3c4b5a6978"
BEGIN_US = 1_790_000_000_000_000

GREETING = 'größer als π, "quoted", \\ and \x00, 火山, שלום, 🌋\n'


def payloads(version: int) -> list[tuple[str, Any]]:
    """Returns a story with records of every kind: jobs and payloads, in order."""
    from livetuned.domain import records as r
    from livetuned.domain.specs import Scale, TriggerSpec, VariableSpec
    from livetuned.domain.values import ValueType as T

    process = r.Process("gpu-17", 4242, "änne", "train.py --größe 9", "0.1.0")
    token = ("0" * 63 + "7",) if version > 1 else ()

    def registered(run: int, port: int, rank: int, world: int, instance: str, resumed: bool) -> Any:
        return r.Registered(run, port, rank, world, instance, resumed, process, *token)

    def declared(instance: str, *specs: Any, triggers: tuple[str, ...] = ()) -> Any:
        return r.Declared(
            instance,
            tuple(r.DeclaredVariable(spec, spec.initial) for spec in specs),
            tuple(TriggerSpec(name, f"fires {name}") for name in triggers),
        )

    def changed(actor: str, reason: str, request: str, *assignments: Any, fires: tuple[Any, ...] = ()) -> Any:
        return r.Changed(actor, reason, request, tuple(r.Assignment(*item) for item in assignments), fires)

    def applied(change: int, rank: int, step: int, *outcomes: tuple[str, bool, str, Any, str]) -> Any:
        made = (r.Outcome(name, trigger, r.ApplyStatus(how), value, why) for name, trigger, how, value, why in outcomes)
        return r.Applied(change, rank, step, tuple(made))

    lr = VariableSpec("lr", T.FLOAT, 0.1, 5e-324, 1.7976931348623157e308, (), Scale.LOG, "1/step", GREETING)
    seed = VariableSpec("seed", T.INT, 2**63 - 1, -(2**63), None)
    mode = VariableSpec("mode", T.STRING, "a", choices=("a", "é", GREETING))
    warm = VariableSpec("warm.up", T.BOOL, True)
    story = [
        ("vgg", registered(1, 21_000, 0, 2, "v0", False)),
        ("vgg", declared("v0", lr, seed, mode, warm, triggers=("save", "stop"))),
        ("vgg", registered(1, 21_000, 1, 2, "v1", True)),
        ("bert", registered(1, 21_001, 0, 1, "b0", False)),
        ("bert", declared("b0", VariableSpec("lr", T.FLOAT, 1e-05))),
        ("vgg", changed("änne@gpu-17", "plateau, für jetzt", "req-1", ("lr", 0.1, 0.30000000000000004), ("seed", 2**63 - 1, -(2**63)))),
        ("bert", changed("bob@login", "", "req-2", ("lr", 1e-05, 2e-05))),
        ("vgg", applied(6, 0, 8_042, ("lr", False, "applied", 0.30000000000000004, ""), ("seed", False, "refused", 2**63 - 1, "not now, später"))),
        ("vgg", applied(6, 1, 8_042, ("lr", False, "superseded", 0.1, ""), ("seed", False, "applied", -(2**63), ""))),
        ("vgg", changed("änne@gpu-17", GREETING, "", ("mode", "a", GREETING), ("warm.up", True, False), fires=(r.Firing("save", 1),))),
        ("vgg", changed("", "", "", fires=(r.Firing("save", 2), r.Firing("stop", 1)))),
        ("vgg", applied(10, 0, 8_043, ("save", True, "applied", None, ""))),
        ("vgg", r.PortMoved(21_007, 21_000)),
        ("bert", applied(7, 0, 12, ("lr", False, "applied", 2e-05, ""))),
        ("bert", r.Ended(True, "CUDA out of memory, 火山", 99)),
        ("old", registered(1, 21_002, 0, 1, "o0", False)),
        ("old", declared("o0", VariableSpec("n", T.INT, 1, 0, 9))),
        ("old", changed("bob@login", "first run", "req-3", ("n", 1, 2))),
        ("old", r.Ended(False, "", 500)),
        ("old", registered(2, 21_003, 0, 1, "o1", False)),
        ("old", declared("o1", VariableSpec("n", T.INT, 1, 0, 9))),
    ]  # fmt: skip
    if version > 1:
        story += [
            ("old", r.Changed("bob@login", "second run", "req-4", (r.Assignment("n", 1, 3),), ())),
            ("old", r.Changed("bob@login", "back", "", (r.Assignment("n", 3, 1),), (), 22)),
            ("gone", registered(1, 21_004, 0, 1, "g0", False)),
            ("gone", r.Ended(True, "lost for 168 h", 0)),
            ("gone", r.Removed("ann@host", "für immer")),
            ("vgg", applied(11, 0, 9_000, ("save", True, "applied", None, ""), ("stop", True, "applied", None, ""))),
        ]
    return story


def write(version: int, path: Path) -> None:
    """Writes the story with the code that is imported, and prints what that code makes of it as JSON."""
    secrets.token_hex = lambda _=None: STORE_ID  # type: ignore[assignment]
    asyncio.run(_write(version, path))


async def _write(version: int, path: Path) -> None:
    from livetuned.domain.records import Draft, Record
    from livetuned.domain.state import State
    from livetuned.store.sqlite import SqliteStore

    store, state = SqliteStore(path), State()
    records: list[Record] = []
    for number, (job, payload) in enumerate(payloads(version)):
        records += await store.append([Draft(BEGIN_US + number * 1_500_000, job, payload)])
        state.fold(records[-1])
        if version > 1 and number == 17:
            saved: Any = store  # what the code of schema 1 does not have
            # vgg is not saved yet: its first record that no snapshot holds is the one after 13.
            await saved.save([state.jobs["bert"], state.jobs["old"]], [], 0)
        if version > 1 and number == 24:
            await saved.save([state.jobs["vgg"], state.jobs["old"], state.jobs["bert"]], [], 23)
            await saved.compact(9)
            await saved.put_note("retention", '{"uptime": 5400.0, "marks": [[60.0, 3], [3660.0, 17]], "lost": {}, "ended": {"bert": 66.0}}')  # fmt: skip
    await store.close()
    told = {
        "jobs": {name: {**asdict(job), "requests": dict(job.requests.items())} for name, job in state.jobs.items()},
        "records": [[record.revision, record.time_us, record.job, asdict(record.payload)] for record in records],
    }
    sys.stdout.write(json.dumps(told, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r}")


async def read(path: Path) -> dict[str, Any]:
    """Returns everything that the current code reads in a store, as plain data."""
    from livetuned.domain.state import State
    from livetuned.store import codec
    from livetuned.store.sqlite import SqliteStore

    store = SqliteStore(path)
    try:
        loaded = await store.load()
        state = State(loaded.jobs, loaded.covered)
        records = await store.read(store.compacted, 1_000)
        for record in records:
            if record.revision > state.revision:
                state.fold(record)
        jobs = sorted(state.jobs)
        return {
            "store_id": store.store_id,
            "head": store.head,
            "compacted": store.compacted,
            "retention": await store.note("retention"),
            "jobs": {name: json.loads(codec.encode_job(state.jobs[name])) for name in jobs},
            "records": [
                {
                    "revision": record.revision,
                    "time_us": record.time_us,
                    "job": record.job,
                    "kind": codec.kind_of(record.payload),
                    "payload": json.loads(codec.encode(record.payload)),
                }
                for record in records
            ],
            "changes": {name: [change.revision for change in await store.changes(name, 1_000, 100)] for name in jobs},
            "applies": {name: [item.revision for item in await store.applies(name, 1, 1_000)] for name in jobs},
        }
    finally:
        await store.close()


def _says_the_same(old: Any, new: Any, where: str = "") -> None:
    """Checks that what the code of then says is part of what the current code says."""
    if isinstance(old, dict) and isinstance(new, list):
        # by rank, by name: lists in the store's JSON
        if not old or not isinstance(new[0], dict):
            new = {str(item[0]): item[-1] if len(item) == 2 else dict(zip(("value", "revision", "step"), item[1:], strict=True)) for item in new}  # fmt: skip
        else:
            new = {str(item["rank"] if "rank" in item else item["spec"]["name"]): item for item in new}
    if isinstance(old, dict):
        for key, value in old.items():
            assert key in new, (where, key, new)
            _says_the_same(value, new[key], f"{where}.{key}")
    elif isinstance(old, list):
        assert len(old) == len(new), (where, old, new)
        for number, value in enumerate(old):
            _says_the_same(value, new[number], f"{where}[{number}]")
    else:
        assert (type(old), old) == (type(new), new), where


def make(version: int) -> None:
    """Makes the database and the JSON of a schema."""
    folder = Path(tempfile.mkdtemp())
    root = HERE.parents[1]
    tree = folder / "tree"
    try:
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), COMMITS[version]], cwd=root, check=True)
        path = folder / "store.db"
        told = subprocess.run(
            [sys.executable, str(HERE / "make.py"), "--write", str(version), str(path)],
            env={**os.environ, "PYTHONPATH": str(tree)}, cwd=folder, check=True, stdout=subprocess.PIPE,
        ).stdout  # fmt: skip
        shutil.copyfile(path, HERE / f"v{version}.db")
        now, then = asyncio.run(read(path)), json.loads(told)
        _says_the_same(then["jobs"], now["jobs"])
        kept = [[item["revision"], item["time_us"], item["job"], item["payload"]] for item in now["records"]]
        _says_the_same(then["records"][now["compacted"] :], kept)
        (HERE / f"v{version}.json").write_text(json.dumps(now, indent=1, ensure_ascii=True) + "\n")
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=root, check=False)
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        make(int(sys.argv[1]))
