"""Databases of every schema that was released: opened, migrated and restored to exactly what was in them, or refused.

`tests/golden/make.py` tells how they were made.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golden.make import read
from livetuned.daemon import keeping, restoring
from livetuned.store import schema
from livetuned.store.doctor import examine
from livetuned.store.findings import Examination
from livetuned.store.interface import StoreDamagedError, StoreOpenError
from livetuned.store.private import private_copy
from livetuned.store.sqlite import SqliteStore
from support import needs

GOLDEN = Path(__file__).parent
VERSIONS = sorted(int(path.stem[1:]) for path in GOLDEN.glob("v*.db"))


def golden(version: int, folder: Path, name: str = "livetuned.db") -> Path:
    """A copy of the database, to be opened."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copyfile(GOLDEN / f"v{version}.db", folder / name))


def expected(version: int) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / f"v{version}.json").read_text()))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification times of all files of a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def examined(path: Path) -> tuple[Examination, int]:
    """What the doctor finds, and the schema of the file, looked at in a private copy."""
    with private_copy(path) as copy:
        found = Examination()
        checks = {check.name: check for check in examine(copy.path, found)}
        version = int(checks["schema"].words.split()[1].rstrip(",;"))
    return found, version


def test_there_is_one_of_every_schema() -> None:
    assert list(range(1, schema.SCHEMA_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_it_opens_to_exactly_what_was_in_it(version: int, tmp_path: Path) -> None:
    path = golden(version, tmp_path)
    for _ in ("brought up", "opened again"):
        assert expected(version) == asyncio.run(read(path))
    found, now = examined(path)
    assert ([], schema.SCHEMA_VERSION) == (found.failed, now)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_restored_to_exactly_what_was_in_it_and_stays_as_it_is(version: int, tmp_path: Path) -> None:
    backup = golden(version, tmp_path / "backups", "backup.db")
    before = contents(backup.parent)
    restored = restoring.restore(backup, tmp_path / "state", aside=False)
    assert before == contents(backup.parent)
    wanted, there = expected(version), asyncio.run(read(tmp_path / "state" / "livetuned.db"))
    assert wanted["store_id"] != there["store_id"] == restored.written.store_id
    assert {**wanted, "store_id": ""} == {**there, "store_id": ""}


def make_newer(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(60)
        file.write((schema.SCHEMA_VERSION + 1).to_bytes(4, "big"))


def copy_open(path: Path, *statements: str) -> None:
    """Does something to a database and leaves it as a daemon that died leaves it: not checkpointed."""
    work = path.with_name("work")
    work.mkdir()
    shutil.copyfile(path, work / path.name)
    connection = sqlite3.connect(work / path.name, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in statements:
        connection.execute(statement)
    for file in work.glob(f"{path.name}*"):
        if not file.name.endswith("-shm"):
            shutil.copyfile(file, path.with_name(file.name))
    connection.close()
    shutil.rmtree(work)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "prepare",
    [
        make_newer,
        lambda path: (copy_open(path, "CREATE TABLE later (x)"), make_newer(path)),
        lambda path: copy_open(path, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}"),
    ],
    ids=["in the file", "with a write-ahead log", "in the write-ahead log only"],
)
def test_a_newer_one_is_refused_byte_for_byte_untouched(
    version: int, prepare: Callable[[Path], object], tmp_path: Path
) -> None:
    path = golden(version, tmp_path)
    prepare(path)
    before = contents(tmp_path)
    with pytest.raises(StoreOpenError, match=f"schema version {schema.SCHEMA_VERSION + 1}, of a newer livetuned"):
        SqliteStore(path)
    assert before == contents(tmp_path)


DAMAGE = "UPDATE log SET payload = replace(payload, 'plateau', 'Plateau') WHERE revision = 6"


def test_a_damaged_one_of_an_old_schema_is_refused_untouched(tmp_path: Path) -> None:
    path = golden(1, tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(DAMAGE)
    connection.close()
    before = contents(tmp_path)
    with pytest.raises(StoreDamagedError, match="record 6 is missing or does not keep its checksum"):
        SqliteStore(path)
    assert before == contents(tmp_path)


def test_a_damaged_one_of_a_daemon_that_died_is_refused_as_it_is(tmp_path: Path) -> None:
    """SQLite moves its write-ahead log into the file, which is the same to all who read it."""
    path = golden(1, tmp_path)
    copy_open(path, DAMAGE)
    before = dump(path)
    with pytest.raises(StoreDamagedError, match="record 6 is missing or does not keep its checksum"):
        SqliteStore(path)
    assert before == dump(path)


def dump(path: Path) -> list[str]:
    """All that SQLite reads in a file, looked at in a private copy."""
    with private_copy(path) as copy:
        connection = sqlite3.connect(copy.path)
        lines = [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]
        connection.close()
    return lines


MIGRATE = """
import os, signal, sqlite3, sys
from pathlib import Path
from livetuned.store import schema
path, at, transaction = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "whole"
count = 0
class Connection(sqlite3.Connection):
    def execute(self, sql, *values):
        global count
        if sql.split()[0] not in ("SELECT", "PRAGMA"):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if not transaction and sql in ("BEGIN IMMEDIATE", "COMMIT"):
                sql = "SELECT 1"
        return super().execute(sql, *values)
connect = sqlite3.connect
sqlite3.connect = lambda *given, **named: connect(*given, factory=Connection, **named)
schema.connect(path)
print(count)
"""
"""Migrates a store, and dies as by kill -9 before a statement that writes."""


def migrate(path: Path, at: int, how: str = "whole", *around: str) -> subprocess.CompletedProcess[str]:
    command = [*around, sys.executable, "-c", MIGRATE, str(path), str(at), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


def intact(path: Path) -> bool:
    """Whether a store is of schema 1, whole, and migrates to exactly what was in it."""
    found, version = examined(path)
    return version == 1 and not found.failed and expected(1) == asyncio.run(read(path))


def test_a_migration_killed_before_any_statement_leaves_the_old_schema_intact(tmp_path: Path) -> None:
    count = int(migrate(golden(1, tmp_path / "count"), 0).stdout)
    assert count > 30
    for at in sorted({1, 2, 3, 5, 9, count // 2, count - 1, count}):
        path = golden(1, tmp_path / str(at))
        assert -9 == migrate(path, at).returncode
        assert intact(path), at


def test_control_a_migration_without_its_transaction_does_not(tmp_path: Path) -> None:
    path = golden(1, tmp_path)
    assert -9 == migrate(path, 20, "in pieces").returncode
    with pytest.raises((AssertionError, StoreDamagedError, StoreOpenError)):
        assert intact(path)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("pwrite64", 1),
        ("pwrite64", 13),
        ("fdatasync", 1),
        *(pytest.param("pwrite64", at, marks=pytest.mark.slow) for at in range(2, 60)),
        *(pytest.param(name, at, marks=pytest.mark.slow) for name in ("fdatasync", "unlink") for at in range(1, 4)),
    ],
)
def test_a_migration_killed_at_any_system_call_is_done_or_not_begun(name: str, at: int, tmp_path: Path) -> None:
    needs.strace()
    path = golden(1, tmp_path)
    kill = f"inject={name}:signal=KILL:when={at}"
    ended = migrate(path, 0, "whole", "strace", "-f", "-qq", "-o", "/dev/null", "-e", kill)
    assert ended.returncode in (0, -9), ended
    assert examined(path)[1] in (1, schema.SCHEMA_VERSION)
    assert expected(1) == asyncio.run(read(path))
    assert [] == examined(path)[0].failed


def test_a_subject_that_schema_1_did_not_protect_is_found_and_put_right(tmp_path: Path) -> None:
    path = golden(1, tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE log SET subject = 7 WHERE revision = 8")
    connection.close()
    found, _ = examined(path)
    assert ["record 8 stands under change 7, and is of 6"] == [check.words for check in found.failed]
    keeping.diagnose(path, lambda _: None, save_to=tmp_path / "saved.db", keep="prefix")
    assert expected(1)["applies"] == asyncio.run(read(tmp_path / "saved.db"))["applies"]
    assert expected(1) == asyncio.run(read(path))
