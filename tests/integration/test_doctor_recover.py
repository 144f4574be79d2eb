"""What the doctor saves of a damaged store: exactly what holds, in both ways of keeping, and it says what is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from livetuned.daemon import keeping
from livetuned.domain.state import State
from livetuned.store.headmark import HeadMark
from livetuned.store.salvage import Plan
from support.daemon import Daemon
from support.keeping import Story, contents, execute, livetuned, state_of, wipe


def whole(story: Story) -> None:
    """Sixteen records: registered 1-4, a changed 5-10, b changed 11-14; snapshots of those; a changed 15-16."""
    story.begin("a", "b")
    story.change("a", 3)
    story.change("b", 2)
    story.save("a", "b")
    story.change("a")


def compacted(story: Story) -> None:
    whole(story)
    story.compact(8)


def apart(story: Story) -> None:
    """The snapshot of a is of revision 8, that of b of 4, and the log begins after 4."""
    story.begin("a", "b")
    story.save("a", "b")
    story.change("b")
    story.change("a")
    story.save("a", covered=4)
    story.change("b")
    story.compact(4)


def altered(revision: int) -> str:
    return f"UPDATE log SET time_us = time_us + 1 WHERE revision = {revision}"  # noqa: S608 - our own number


def gone(revision: int) -> str:
    return f"DELETE FROM log WHERE revision = {revision}"  # noqa: S608 - our own number


BAD_SNAPSHOT = "UPDATE snapshots SET payload = payload || ' ' WHERE job = 'b'"

CASES: list[tuple[Callable[[Story], None], list[str], str, str]] = [
    (whole, [altered(5)],
     "keeps records 1-4 and 2 jobs as of revision 4; loses records 5-16 (12 records; 2026-09-21 14:13:24Z to 2026-09-21 14:13:35Z; of jobs a (8), b (4))",
     "keeps records 6-16 and 2 jobs as of revision 16; loses of the history only, records 1-5 (5 records; 2026-09-21 14:13:20Z to 2026-09-21 14:13:24Z; of jobs a (3), b (2))"),
    (whole, [gone(5)],
     "keeps records 1-4 and 2 jobs as of revision 4; loses records 5-16 (12 records; 2026-09-21 14:13:25Z to 2026-09-21 14:13:35Z; of jobs a (7), b (4); 1 of them can't be read)",
     "keeps records 7-16 and 2 jobs as of revision 16; loses of the history only, records 1-6 (6 records; 2026-09-21 14:13:20Z to 2026-09-21 14:13:25Z; of jobs a (3), b (2); 1 of them can't be read)"),
    (whole, [altered(15)],
     "keeps records 1-14 and 2 jobs as of revision 14; loses records 15-16 (2 records; 2026-09-21 14:13:34Z to 2026-09-21 14:13:35Z; of jobs a (2))",
     "keeps records 1-14 and 2 jobs as of revision 14; loses records 15-16 (2 records; 2026-09-21 14:13:34Z to 2026-09-21 14:13:35Z; of jobs a (2))"),
    (whole, [altered(5), altered(16)],
     "keeps records 1-4 and 2 jobs as of revision 4",
     "keeps records 6-15 and 2 jobs as of revision 15; loses records 16 (1 record; "),
    (whole, [gone(16), gone(15)],
     "keeps records 1-14 and 2 jobs as of revision 14; loses records 15-16 (2 records; 2 of them can't be read)",
     "keeps records 1-14 and 2 jobs as of revision 14; loses records 15-16 (2 records; 2 of them can't be read)"),
    (whole, [altered(1)],
     "not possible: nothing is well before the damage",
     "keeps records 2-16 and 2 jobs as of revision 16; loses of the history only, records 1 (1 record; "),
    (whole, [BAD_SNAPSHOT],
     "keeps records 1-16 and 2 jobs as of revision 16; loses nothing",
     "keeps records 1-16 and 2 jobs as of revision 16; loses nothing"),
    (whole, ["DELETE FROM snapshots"],
     "keeps records 1-16 and 2 jobs as of revision 16; loses nothing",
     "not possible: there are no snapshots"),
    (compacted, [altered(11)],
     "not possible: records up to 8 are compacted, and jobs b are known only as of revisions after the damage",
     "keeps records 12-16 and 2 jobs as of revision 16; loses of the history only, records 9-11 (3 records; "),
    (compacted, [altered(16)],
     "keeps records 9-15 and 2 jobs as of revision 15; loses records 16 (1 record; ",
     "keeps records 9-15 and 2 jobs as of revision 15; loses records 16 (1 record; "),
    (compacted, [BAD_SNAPSHOT],
     "keeps records 9-16 and 1 job as of revision 16; loses jobs b altogether",
     "keeps records 9-16 and 1 job as of revision 16; loses jobs b altogether"),
    (apart, [altered(6)],
     "not possible: records up to 4 are compacted, and jobs a are known only as of revisions after the damage",
     "keeps no record and 2 jobs as of revision 8; loses records 6-10 (5 records; 2026-09-21 14:13:25Z to 2026-09-21 14:13:29Z; of jobs b (3), a (2)); of the history only, records 5 (1 record; 2026-09-21 14:13:24Z to 2026-09-21 14:13:24Z; of jobs b (1)); the latest changes of some of the jobs a, b, which differ in age"),
]  # fmt: skip


def make(folder: Path, tell: Callable[[Story], None], damages: list[str]) -> Story:
    folder.mkdir()
    with Story(folder / "livetuned.db") as story:
        tell(story)
    execute(story.path, *damages)
    return story


@pytest.mark.parametrize(("tell", "damages", "prefix", "newest"), CASES)
def test_what_is_kept_and_lost_is_exactly_what_it_says(
    tmp_path: Path, tell: Callable[[Story], None], damages: list[str], prefix: str, newest: str
) -> None:
    story = make(tmp_path / "state", tell, damages)
    before = contents(story.path.parent)
    for keep, words in (("prefix", prefix), ("newest", newest)):
        told = keeping.diagnose(story.path, lambda _: None, save_to=None, keep=keep)
        plan = told.plans[keep]
        if isinstance(plan, str):
            assert words == f"not possible: {plan}"
            with pytest.raises(keeping.KeepingError, match=f"--keep {keep} is not possible: "):
                keeping.diagnose(story.path, lambda _: None, save_to=tmp_path / f"{keep}.db", keep=keep)
            assert not (tmp_path / f"{keep}.db").exists()
            continue
        assert plan.words().startswith(words), plan.words()
        saved = keeping.diagnose(story.path, lambda _: None, save_to=tmp_path / f"{keep}.db", keep=keep).recovered
        assert saved is not None
        check_saved(saved.path, story, plan)
        assert saved.store_id != told.found.store_id
    assert before == contents(story.path.parent)


def check_saved(path: Path, story: Story, plan: Plan) -> None:
    """The records kept are those that were written, byte for byte; the jobs are what these make of them."""
    assert [] == keeping.diagnose(path, lambda _: None, save_to=None, keep="prefix").found.failed
    jobs, records = state_of(path)
    assert story.records[plan.origin : plan.last] == records
    state = State()
    for record in story.records[: plan.last]:
        state.fold(record)
    ages = {name: 5 if name == "b" else 8 for name in plan.older}
    for name, age in ages.items():
        older = State()
        for record in story.records[:age]:
            older.fold(record)
        state.jobs[name] = older.jobs[name]
    assert {name: job for name, job in state.jobs.items() if name not in plan.gone} == jobs
    # Revisions go on after everything that is kept.
    with Story(path) as going_on:
        assert going_on._store is not None
        assert plan.last == going_on._store.head


def test_a_log_of_which_nothing_can_be_read_leaves_the_snapshots(tmp_path: Path) -> None:
    story = make(tmp_path / "state", whole, [])
    wipe(story.path, "log")
    answer = livetuned("doctor", story.path, "--recover", tmp_path / "saved.db", "--keep", "newest")
    assert 1 == answer.returncode, answer
    assert "--keep newest: keeps no record and 2 jobs as of revision 14; loses records 15-16" in answer.stdout
    jobs, records = state_of(tmp_path / "saved.db")
    assert ([], {"a": 3, "b": 2}) == (records, {name: job.variables["n"].desired for name, job in jobs.items()})


def test_the_daemon_goes_on_with_what_was_saved(tmp_path: Path, make_daemon: Callable[..., Daemon]) -> None:
    story = make(tmp_path / "state", whole, [altered(16)])
    saved = tmp_path / "saved.db"
    answer = livetuned("doctor", "--state", story.path.parent, "--recover", saved)
    assert 1 == answer.returncode
    assert f"saved into {saved}: 15 records (1-15), 2 jobs, revision 15, " in answer.stdout
    assert f"to go on with it: livetuned restore {saved} --replace [--state DIR]" in answer.stdout
    daemon = make_daemon("--job-ports", "22050-22059")
    assert 0 == livetuned("restore", saved, "--state", daemon.state).returncode
    daemon.start()
    assert daemon.ready_line.endswith("jobs 2; revision 15")


def test_a_well_store_is_not_saved_and_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    story = make(tmp_path / "state", whole, [])
    saved = tmp_path / "saved.db"
    answer = livetuned("doctor", story.path, "--recover", saved)
    assert 0 == answer.returncode
    assert f"nothing is to be saved: {saved} was not written" in answer.stdout
    assert not saved.exists()
    saved.write_text("mine")
    execute(story.path, altered(3))
    answer = livetuned("doctor", story.path, "--recover", saved)
    assert 2 == answer.returncode
    assert f"{saved} exists: choose another name" in answer.stderr
    assert "mine" == saved.read_text()


def test_both_ways_of_keeping_are_told_to_programs(tmp_path: Path) -> None:
    story = make(tmp_path / "state", whole, [altered(5)])
    HeadMark(story.path).write(json_of(story.path)["store_id"], 18)
    told = json_of(story.path)
    assert ("damaged", 16, 18) == (told["result"], told["revision"], told["acknowledged_revision"])
    prefix, newest = told["keep"]["prefix"], told["keep"]["newest"]
    assert (1, 4, [[5, 18]]) == (prefix["first_revision"], prefix["revision"], prefix["lost"]["spans"])
    assert (6, 16, [[17, 18]]) == (newest["first_revision"], newest["revision"], newest["lost"]["spans"])
    assert {"a": 3, "b": 2} == newest["lost_history_only"]["jobs"]


def json_of(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    return dict(json.loads(livetuned("doctor", path, "-o", "json").stdout))
