"""What the doctor reads in a write-ahead log is what SQLite takes of it, whatever happened to the log."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from livetuned.store.wal import WalReport, examine_wal

COMMITS = 40


def make(folder: Path, page_size: int = 4_096) -> Path:
    """A database as a process that died left it: each commit adds a row, some of more than one page."""
    path = folder / "x.db"
    work = sqlite3.connect(folder / "work.db", isolation_level=None)
    for statement in (
        f"PRAGMA page_size = {page_size}",
        "PRAGMA journal_mode = WAL",
        "PRAGMA wal_autocheckpoint = 0",
        "CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ):
        work.execute(statement).fetchall()
    for number in range(COMMITS):
        work.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * (number % 7 * 1_500)))
    for suffix in ("", "-wal"):
        shutil.copyfile(folder / f"work.db{suffix}", f"{path}{suffix}")
    work.close()
    return path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def rows_in(path: Path) -> int:
    """How many rows SQLite finds."""
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    connection = sqlite3.connect(copy)
    (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.close()
    return int(count)


@pytest.mark.parametrize("page_size", [512, 4_096, 65_536])
def test_a_log_that_is_well(tmp_path: Path, page_size: int) -> None:
    path = make(tmp_path, page_size)
    report = examine_wal(log_of(path))
    assert COMMITS == rows_in(path) == report.commits
    assert WalReport(report.size, COMMITS, first_page=report.first_page) == report


def test_one_that_is_not_there_or_empty(tmp_path: Path) -> None:
    assert WalReport() == examine_wal(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    assert WalReport() == examine_wal(tmp_path / "empty")


def test_a_log_that_is_used_again_has_the_old_frames_behind_the_new_ones(tmp_path: Path) -> None:
    make(tmp_path)
    work = sqlite3.connect(tmp_path / "again.db", isolation_level=None)
    work.execute("PRAGMA journal_mode = WAL")
    work.execute("CREATE TABLE rows (number INTEGER)")
    for number in range(30):
        work.execute("INSERT INTO rows VALUES (?)", (number,))
    work.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    for number in range(3):
        work.execute("INSERT INTO rows VALUES (?)", (number,))
    report = examine_wal(log_of(tmp_path / "again.db"))
    work.close()
    assert (3, 0, 0) == (report.commits, report.bad_frame, report.commits_behind)
    assert report.size > 30 * 4_096


def test_cut_or_flipped_anywhere_sqlite_takes_what_it_says(tmp_path: Path) -> None:
    path = make(tmp_path)
    log = log_of(path)
    original = log.read_bytes()
    generator = random.Random(1)
    noticed = 0
    for number in range(150):
        damaged = bytearray(original)
        position = generator.randrange(len(damaged)) if number > 40 else number
        if number % 3:
            damaged[position] ^= 1 << generator.randrange(8)
        else:
            del damaged[position:]
        log.write_bytes(damaged)
        report = examine_wal(log)
        assert rows_in(path) == report.commits, position
        if number % 3 and report.commits < COMMITS - 1:
            # Whole commits stand behind the damage, or the header is damaged: that is never taken for a power cut.
            assert report.damaged or report.header_damaged, position
            noticed += 1
    assert noticed > 50


def test_a_commit_torn_by_a_power_cut_is_none(tmp_path: Path) -> None:
    """A page of the last commit never came to the disk, the one after it did."""
    path = make(tmp_path)
    log = log_of(path)
    data = log.read_bytes()
    frames = (len(data) - 32) // (24 + 4_096)
    start = 32 + (frames - 2) * (24 + 4_096)
    log.write_bytes(data[:start] + bytes(24 + 4_096) + data[start + 24 + 4_096 :])
    report = examine_wal(log)
    assert (COMMITS - 1, frames - 1, 1, False) == (
        report.commits, report.bad_frame, report.commits_behind, report.damaged,
    )  # fmt: skip
    assert COMMITS - 1 == rows_in(path)
