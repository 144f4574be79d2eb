"""The doctor finds each planted damage and nothing else, and changes nothing of what it looks at."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from livetuned.daemon import keeping
from livetuned.domain.job import Job
from livetuned.store import codec, schema
from livetuned.store.doctor import examine
from livetuned.store.findings import Examination, Status
from livetuned.store.headmark import HeadMark
from livetuned.store.private import private_copy
from support.daemon import Daemon
from support.keeping import Story, contents, execute, livetuned, state_of, wipe

Damage = Callable[[Path], object]


def tell(story: Story) -> None:
    """Sixteen records of two jobs, of which snapshots cover fourteen."""
    story.begin("a", "b")
    story.change("a", 3)
    story.change("b", 2)
    story.save("a", "b")
    story.note("retention", '{"uptime": 3600.0, "marks": [[60.0, 4]], "lost": {}, "ended": {}}')
    story.change("a")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that was closed well."""
    (tmp_path / "state").mkdir()
    with Story(tmp_path / "state" / "livetuned.db") as story:
        tell(story)
    return story.path


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """The same store of a daemon that died: everything is in the write-ahead log."""
    (tmp_path / "work").mkdir()
    with Story(tmp_path / "work" / "livetuned.db") as story:
        tell(story)
        return story.crashed(tmp_path / "state")


def look(path: Path) -> Examination:
    with private_copy(path) as copy:
        found = Examination()
        for _ in examine(copy.path, found):
            pass
    return found


def sql(*statements: str) -> Damage:
    return lambda path: execute(path, *statements)


def meta(key: str, value: str) -> Damage:
    def write(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            schema.put_meta(connection, key, value)
        connection.close()

    return write


def lying_snapshot(path: Path) -> None:
    """A snapshot that keeps all checksums and is not what the records make."""
    with sqlite3.connect(path) as connection:
        (revision, text) = connection.execute("SELECT revision, payload FROM snapshots WHERE job = 'a'").fetchone()
        text = text.replace('"desired":3', '"desired":2')
        checksum = codec.checksum_of("a", str(revision), text)
        connection.execute("UPDATE snapshots SET payload = ?, checksum = ? WHERE job = 'a'", (text, checksum))
        checksums = dict(connection.execute("SELECT job, checksum FROM snapshots").fetchall())
        schema.put_meta(connection, "snapshots", schema.snapshots_digest(checksums))
    connection.close()


def lost_tail(path: Path) -> None:
    execute(path, "DELETE FROM log WHERE revision > 14")


def overwrite(offset: int, data: bytes, suffix: str = "") -> Damage:
    def write(path: Path) -> None:
        with path.with_name(path.name + suffix).open("r+b") as file:
            file.seek(offset if offset >= 0 else file.seek(0, 2) + offset)
            file.write(data)

    return write


def page_of(table: str) -> Damage:
    return lambda path: wipe(path, table)


def frame(number: int) -> Damage:
    """Damages a page in the write-ahead log."""
    return overwrite(32 + (number - 1) * (24 + 4_096) + 3_000, b"\xff\xee\xdd", "-wal")


DAMAGES: dict[str, tuple[Damage, dict[str, str]]] = {
    "value": (
        sql("UPDATE log SET payload = replace(payload, '\"new\":1', '\"new\":9') WHERE revision = 5"),
        {"chain": "record 5 does not keep its checksum; 1-4 are well; the last one found is 16"},
    ),
    "record": (sql("DELETE FROM log WHERE revision = 7"), {"chain": "record 7 is missing; 1-6 are well"}),
    "job": (sql("UPDATE log SET job = 'b' WHERE revision = 6"), {"chain": "record 6 does not keep its checksum"}),
    "time": (sql("UPDATE log SET time_us = 0 WHERE revision = 6"), {"chain": "record 6 does not keep its checksum"}),
    "subject": (sql("UPDATE log SET subject = 3 WHERE revision = 6"), {"chain": "record 6 does not keep its checksum"}),
    "first record": (sql("DELETE FROM log WHERE revision = 1"), {"chain": "record 1 is missing; the last one found is 16"}),
    "checksum": (sql("UPDATE log SET checksum = x'00' WHERE revision = 5"), {"chain": "record 5 does not keep its checksum"}),
    "meta line": (
        sql("UPDATE meta SET value = '13' WHERE key = 'covered'"),
        {"meta": "'covered' does not keep its checksum"},
    ),
    "meta line gone": (sql("DELETE FROM meta WHERE key = 'origin'"), {"meta": "'origin' is missing"}),
    "identity": (
        sql("UPDATE meta SET value = '00' WHERE key = 'store_id'"),
        {"meta": "'store_id' does not keep its checksum"},
    ),
    "meta gone": (sql("DROP TABLE meta"), {"schema": "missing: meta", "meta": "can't be read", "snapshots": "whether one is missing"}),
    "snapshot": (
        sql("UPDATE snapshots SET payload = replace(payload, '\"desired\":3', '\"desired\":4') WHERE job = 'a'"),
        {"snapshots": "not what was written: those of jobs a"},
    ),
    "snapshot gone": (
        sql("DELETE FROM snapshots WHERE job = 'b'"),
        {"snapshots": "one is missing"},
    ),
    "lying snapshot": (lying_snapshot, {"fold": "the snapshots say otherwise than the records: jobs a"}),
    "index gone": (sql("DROP INDEX log_applies"), {"indexes": "no such index: log_applies"}),
    "name of a column": (
        sql(
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_schema SET sql = replace(sql, 'checksum', 'checkqum') WHERE name = 'log'",
        ),
        {"schema": "not defined as livetuned does: log"},
    ),
    "nonsense for a definition": (
        sql("PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = 'CREATE TABL log(' WHERE name = 'log'"),
        {"schema": "not defined as livetuned does: log"},
    ),
    "a trigger": (
        sql("CREATE TRIGGER evil AFTER INSERT ON log BEGIN DELETE FROM log; END"),
        {"schema": "not defined as livetuned does: evil"},
    ),
    "index of another kind": (
        sql(
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_schema SET sql = replace(sql, '''applied''', '''replied''') WHERE name = 'log_applies'",
        ),
        {"schema": "not defined as livetuned does: log_applies"},
    ),
    "tail": (lost_tail, {"head mark": "records up to 16 were acknowledged, the last one found is 14: 15-16 missing"}),
    "tail that snapshots cover": (
        sql("DELETE FROM log WHERE revision > 11"),
        {
            "head mark": "12-16 missing",
            "meta": "snapshots cover records up to 14, of 0 to 11",
        },
    ),
    "head mark ahead": (
        lambda path: HeadMark(path).write(look(path).store_id, 99),
        {"head mark": "17-99 missing"},
    ),
    "note": (
        sql("UPDATE meta SET value = '{}' WHERE key = 'note retention'"),
        {"meta": "'note retention' does not keep its checksum"},
    ),
    "note of nonsense": (meta("note retention", "{}"), {"retention": "the note of ages can't be read"}),
    "note from the future": (
        meta("note retention", '{"uptime": 1.0, "marks": [[1.0, 17]]}'),
        {"retention": "a mark at revision 17, the last record is 16"},
    ),
    "schema version": (sql("PRAGMA user_version = 0"), {"schema": "version 0; by its tables it is 2"}),
    "application id": (sql("PRAGMA application_id = 5"), {"file": "application id 0x5 is not that of livetuned"}),
    "first bytes": (overwrite(0, bytes(16)), {"file": "it does not begin as a SQLite database does"}),
    "page of the log": (page_of("log"), {"integrity": ".", "chain": "record 1 can't be read"}),
    "page of an index": (page_of("log_applies"), {"integrity": ".", "indexes": "malformed"}),
    "page of the snapshots": (page_of("snapshots"), {"integrity": ".", "snapshots": "can't be read"}),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_where_it_is(store: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    assert [] == look(store).failed
    damage(store)
    failed = {check.name: check.words for check in look(store).failed}
    assert set(expected) == set(failed), failed
    for check, words in expected.items():
        assert words in failed[check] or words == ".", failed


def shorten(path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    os.truncate(log, log.stat().st_size - 5_000)


WAL_DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    "none": (lambda _: None, set()),
    "a frame in the middle": (frame(12), {"write-ahead log", "head mark"}),
    "the first frame": (frame(1), {"file", "write-ahead log"}),
    "the last commit": (overwrite(-10, b"\xff\xfe\xfd", "-wal"), {"write-ahead log", "head mark"}),
    "its header": (overwrite(17, b"\xff", "-wal"), {"file", "write-ahead log"}),
    "its end": (shorten, {"head mark"}),
}


@pytest.mark.parametrize("name", WAL_DAMAGES)
def test_damage_of_the_write_ahead_log_is_found(crashed: Path, name: str) -> None:
    damage, expected = WAL_DAMAGES[name]
    damage(crashed)
    assert expected == {check.name for check in look(crashed).failed}


def test_a_commit_that_a_power_cut_tore_is_no_damage(crashed: Path) -> None:
    """It was never acknowledged: the head mark is behind it."""
    overwrite(-10, b"\xff\xfe\xfd", "-wal")(crashed)
    found = look(crashed)
    HeadMark(crashed).write(found.store_id, found.head)
    checks = {check.name: check for check in look(crashed).checks}
    assert Status.OK is checks["write-ahead log"].status
    assert "it ends in what was cut off, and nothing acknowledged is missing" in checks["write-ahead log"].words


def test_control_without_checksums_the_altered_value_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetuned.store.codec.checksum", lambda *_: b"\0" * 16)
    with Story(tmp_path / "livetuned.db") as story:
        tell(story)
    # The acknowledgement's step: of no consequence to the fold.
    execute(story.path, "UPDATE log SET time_us = 0 WHERE revision = 6")
    assert [] == look(story.path).failed


def flips(folder: Path, count: int, seed: int, *, compacted: bool) -> dict[str, int]:
    """Flips one random bit at a time and tells what became of it.

    `harmless`: the doctor finds all well, and it is what was written. `found`: the doctor said so, and what it saved is
    part of what was written. `wrong`: neither.
    """
    folder.mkdir()
    with Story(folder / "good.db") as story:
        tell(story)
        if compacted:
            story.compact(8)
    good_jobs, good_records = state_of(story.path)
    original = story.path.read_bytes()
    by_revision = states_by_revision(story)
    used = [position for position, byte in enumerate(original) if byte]
    generator, results = random.Random(seed), {"harmless": 0, "found": 0, "saved": 0, "wrong": 0}
    for number in range(count):
        damaged = bytearray(original)
        damaged[generator.choice(used)] ^= 1 << generator.randrange(8)
        path = folder / f"flip{number}.db"
        path.write_bytes(damaged)
        diagnosis = keeping.diagnose(path, lambda _: None, save_to=None, keep="prefix")
        if not diagnosis.found.failed:
            results["harmless" if (good_jobs, good_records) == state_of(path) else "wrong"] += 1
            continue
        results["found"] += 1
        for keep in (keep for keep, plan in diagnosis.plans.items() if not isinstance(plan, str)):
            saved = folder / f"saved{number}{keep}.db"
            try:
                keeping.diagnose(path, lambda _: None, save_to=saved, keep=keep)
                results["saved" if is_part(saved, story, by_revision) else "wrong"] += 1
            except keeping.KeepingError:
                results["wrong"] += 1
    return results


def states_by_revision(story: Story) -> list[dict[str, Job]]:
    from livetuned.domain.state import State

    state, states = State(), [dict[str, Job]()]
    for record in story.records:
        state.fold(record)
        states.append(dict(state.jobs))
    return states


def is_part(path: Path, story: Story, by_revision: list[dict[str, Job]]) -> bool:
    """Whether what was saved is well, a part of the log without gaps, and each job as it once was."""
    if look(path).failed:
        return False
    jobs, records = state_of(path)
    first = records[0].revision if records else 0
    if records and records != story.records[first - 1 : first - 1 + len(records)]:
        return False
    last = records[-1].revision if records else None
    return all(
        job == by_revision[last].get(name) if last is not None else job == by_revision[job.revision].get(name)
        for name, job in jobs.items()
    )


@pytest.mark.parametrize("compacted", [False, True], ids=["whole", "compacted"])
def test_flipped_bits_are_found_and_what_is_saved_is_true(tmp_path: Path, compacted: bool) -> None:
    results = flips(tmp_path / "flips", 60, seed=3, compacted=compacted)
    assert 0 == results["wrong"], results
    assert results["found"] > 5
    assert results["saved"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("compacted", [False, True], ids=["whole", "compacted"])
def test_many_flipped_bits_are_found_and_what_is_saved_is_true(tmp_path: Path, compacted: bool) -> None:
    results = flips(tmp_path / "flips", 1_000, seed=4, compacted=compacted)
    assert 0 == results["wrong"], results


def test_control_without_checksums_flipped_bits_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetuned.store.codec.checksum", lambda *_: b"\0" * 16)
    monkeypatch.setattr("livetuned.store.codec.checksum_of", lambda *_: b"\0" * 16)
    results = flips(tmp_path / "flips", 60, seed=3, compacted=False)
    assert results["wrong"] > 0, results


@pytest.mark.parametrize("how", ["closed well", "crashed", "damaged", "read-only"])
def test_nothing_of_what_it_looks_at_is_changed(store: Path, crashed_copy: Path, how: str, tmp_path: Path) -> None:
    path = crashed_copy if how == "crashed" else store
    if how == "damaged":
        DAMAGES["value"][0](path)
    if how == "read-only":
        path.chmod(0o400)
        path.parent.chmod(0o500)
    before, folder = contents(path.parent), path.parent.stat()
    answer = livetuned("doctor", path, TMPDIR=str(tmp_path))
    after = path.parent.stat()
    path.parent.chmod(0o700)
    assert (1 if how == "damaged" else 0) == answer.returncode, answer
    assert before == contents(path.parent)
    assert (folder.st_mtime_ns, folder.st_mode) == (after.st_mtime_ns, after.st_mode)
    assert [] == list(tmp_path.glob("livetuned-*"))


@pytest.fixture
def crashed_copy(tmp_path: Path) -> Path:
    (tmp_path / "work2").mkdir()
    with Story(tmp_path / "work2" / "livetuned.db") as story:
        tell(story)
        return story.crashed(tmp_path / "dead")


def test_all_is_well_in_words_and_as_json(store: Path) -> None:
    answer = livetuned("doctor", "--state", store.parent)
    assert (0, "") == (answer.returncode, answer.stderr)
    lines = answer.stdout.splitlines()
    assert "OK        chain            16 records, 1-16, of 2026-09-21 14:13:20Z to 2026-09-21 14:13:35Z" in lines
    assert lines[-1].startswith("all is well: 16 records, 2 jobs, revision 16, ")
    told = json.loads(livetuned("doctor", store, "-o", "json").stdout)
    assert ("ok", 16, 16, 2) == (told["result"], told["revision"], told["acknowledged_revision"], told["jobs"])
    assert {"OK"} == {check["status"] for check in told["checks"]}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"no database at all " * 500), "no store of livetuned can be read in it"),
        (lambda path: execute(path, "CREATE TABLE other (x)"), "it has no table 'log'"),
        (lambda path: execute(path, "CREATE TABLE log (x)"), "not a store of livetuned"),
        (lambda path: os.mkfifo(path), "is not a file"),
    ],
)
def test_what_is_no_store_is_told_and_ends_with_5(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "x.db"
    make(path)
    answer = livetuned("doctor", path)
    assert 5 == answer.returncode, answer
    assert words in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_newer_schema_is_told_and_ends_with_5(store: Path) -> None:
    execute(store, "PRAGMA user_version = 99")
    answer = livetuned("doctor", store)
    assert 5 == answer.returncode
    assert (
        "FAILED    schema           version 99, of a newer livetuned; this one knows versions up to 2" in answer.stdout
    )


def test_a_store_in_use_is_refused_with_advice(daemon: Daemon) -> None:
    answer = livetuned("doctor", "--state", daemon.state)
    assert 4 == answer.returncode
    assert "is in use by a running livetuned" in answer.stderr
    assert "`livetuned backup FILE`" in answer.stderr
    assert daemon.process is not None
    assert daemon.process.poll() is None


def test_a_daemon_that_is_damaged_at_the_start_sends_to_the_doctor(
    store: Path, make_daemon: Callable[..., Daemon]
) -> None:
    DAMAGES["tail"][0](store)
    daemon = make_daemon()
    shutil.copytree(store.parent, daemon.state)
    with pytest.raises(AssertionError, match="livetuned doctor"):
        daemon.start()
    assert daemon.process is not None
    assert 5 == daemon.stop()


def test_too_little_room_for_the_copy_is_told_with_the_bytes_needed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetuned.store.private.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(keeping.KeepingError, match=r"needs a private copy of [0-9,]+ bytes; .* has 1 bytes free"):
        keeping.diagnose(store, lambda _: None, save_to=None, keep="prefix")


def test_the_copy_is_private(store: Path) -> None:
    with private_copy(store) as copy:
        assert 0o700 == stat.S_IMODE(copy.path.parent.stat().st_mode)
    assert not copy.path.parent.exists()
