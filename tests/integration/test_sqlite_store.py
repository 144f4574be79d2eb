"""What is particular to the SQLite store: what it refuses to open, what it notices, what a full disk does."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from livetuned.domain.records import Assignment, Changed, Record
from livetuned.store.interface import StoreDamagedError, StoreFullError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from support.domain import draft


def change(number: int, text: str = "") -> Changed:
    return Changed("ann", text, "", (Assignment("n", number - 1, number),), ())


def fill(path: Path, count: int) -> list[Record]:
    async def run() -> list[Record]:
        store = SqliteStore(path)
        try:
            return await store.append([draft(change(number)) for number in range(1, count + 1)])
        finally:
            await store.close()

    return asyncio.run(run())


def open_and_read(path: Path) -> list[Record]:
    async def run() -> list[Record]:
        store = SqliteStore(path)
        try:
            return await store.read(0, 1_000)
        finally:
            await store.close()

    return asyncio.run(run())


def test_the_file_is_private_and_durable_settings_hold(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    try:
        assert 0o600 == stat.S_IMODE((tmp_path / "s.db").stat().st_mode)

        def setting(name: str) -> object:
            return store._thread.submit(lambda: store._connection.execute(f"PRAGMA {name}").fetchone()[0]).result()

        assert ("wal", 2, "exclusive", 0) == tuple(
            map(setting, ("journal_mode", "synchronous", "locking_mode", "mmap_size"))
        )
    finally:
        asyncio.run(store.close())


def test_a_second_daemon_on_the_file_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    code = f"from pathlib import Path; from livetuned.store.sqlite import SqliteStore; SqliteStore(Path({str(tmp_path / 's.db')!r}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    asyncio.run(store.close())
    assert "StoreLockedError" in answer.stderr
    assert "in use by another livetuned" in answer.stderr


def make_foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()


def make_newer(path: Path) -> None:
    fill(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: path.write_bytes(b"no database at all " * 100), "can't be opened as a store"),
        (lambda path: path.mkdir(), "can't be opened as a store"),
        (make_foreign, "not one of livetuned"),
        (make_newer, "schema version 99"),
    ],
)
def test_what_is_not_ours_is_refused_untouched(tmp_path: Path, prepare: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "s.db"
    prepare(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreOpenError, match=words):
        SqliteStore(path)
    assert before == (path.read_bytes() if path.is_file() else b"")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match="No such file or directory"):
        SqliteStore(tmp_path / "missing" / "s.db")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log SET payload = replace(payload, '\"new\":5', '\"new\":6') WHERE revision = 5",
        "DELETE FROM log WHERE revision = 5",
        "UPDATE log SET job = 'other' WHERE revision = 5",
        "UPDATE log SET time_us = 0 WHERE revision = 5",
        "UPDATE meta SET value = '00' WHERE key = 'store_id'",
        "DELETE FROM meta",
    ],
)
def test_a_record_that_was_altered_is_noticed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.db"
    fill(path, 10)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(StoreDamagedError):
        SqliteStore(path)


def test_a_refused_store_keeps_its_log(tmp_path: Path) -> None:
    async def crashed() -> None:
        store = SqliteStore(tmp_path / "s.db")
        for number in range(1, 20):
            await store.append([draft(change(number))])
        for name in ("s.db", "s.db-wal", "s.db-head"):  # as kill -9 leaves it
            (tmp_path / name.replace("s.db", "crashed.db")).write_bytes((tmp_path / name).read_bytes())
        await store.close()

    asyncio.run(crashed())
    log = tmp_path / "crashed.db-wal"
    damaged = bytearray(log.read_bytes())
    damaged[-100] ^= 1  # the last commit that was acknowledged
    log.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="records up to 19 were acknowledged"):
            SqliteStore(tmp_path / "crashed.db")
        assert damaged == log.read_bytes()


def flips(path: Path, count: int, seed: int) -> dict[str, int]:
    """Flips one random bit at a time and tells how it went: noticed, harmless (same records), or wrong."""
    fill(path, 60)
    good = open_and_read(path)
    original = path.read_bytes()
    generator = random.Random(seed)
    results = {"noticed": 0, "harmless": 0, "wrong": 0}
    for number in range(count):
        damaged = bytearray(original)
        position = generator.randrange(len(damaged) * 8)
        damaged[position // 8] ^= 1 << position % 8
        copy = path.with_name(f"flip{number}.db")
        copy.write_bytes(damaged)
        try:
            records = open_and_read(copy)
        except (StoreDamagedError, StoreOpenError):
            results["noticed"] += 1
        else:
            results["harmless" if records == good else "wrong"] += 1
        for leftover in path.parent.glob(f"flip{number}.db*"):
            leftover.unlink()
    return results


def test_flipped_bits_never_give_a_wrong_value(tmp_path: Path) -> None:
    results = flips(tmp_path / "s.db", 100, seed=7)
    assert 0 == results["wrong"], results
    assert results["noticed"] > 0


def test_control_without_the_checksum_flipped_bits_do_give_wrong_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetuned.store.codec.checksum", lambda *_: b"\0" * 16)
    results = flips(tmp_path / "s.db", 100, seed=7)
    assert results["wrong"] > 0, results


def test_a_full_disk_refuses_writes_keeps_reads_and_recovers(tmp_path: Path) -> None:
    # A limit on the file's size gives SQLITE_FULL as a full disk does, and needs no mount.
    async def run() -> None:
        store = SqliteStore(tmp_path / "s.db")
        pages = store._thread.submit(
            lambda: store._connection.execute("PRAGMA max_page_count = 20").fetchone()[0]
        ).result()
        assert 20 == pages
        written = 0
        full = False
        while not full:
            try:
                await store.append([draft(change(written + 1, "x" * 1_000))])
                written += 1
            except StoreFullError:
                full = True
        assert written == store.head
        assert list(range(1, written + 1)) == [record.revision for record in await store.read(0, 1_000)]
        store._thread.submit(lambda: store._connection.execute("PRAGMA max_page_count = 10000").fetchone()).result()
        assert [written + 1] == [record.revision for record in await store.append([draft(change(written + 1))])]
        await store.close()

    asyncio.run(run())
