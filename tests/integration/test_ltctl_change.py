"""The verbs that change, with a real training job: undo, dry runs, merged firings, removing; and their exit codes."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.process import Process, float_spec
from support.shell import Shell, state_of, training


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


@pytest.fixture
def vgg(daemon: Daemon, shell: Shell) -> Iterator[str]:
    """The port of a job that trains, with lr 0.1, wd 0, and the triggers stop and save."""
    with training(daemon, "vgg"):
        yield str(shell.data("describe", "vgg")["port"])


def watchers(daemon: Daemon) -> int:
    """How many watches are open."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}/metrics", timeout=10) as answer:
        found = re.search(r"^livetune_watchers (\d+)", answer.read().decode(), re.MULTILINE)
    assert found
    return int(found[1])


def test_undo_restores_what_a_change_replaced_and_says_at_which_step(shell: Shell, vgg: str) -> None:
    first = shell.data("set", "vgg", "lr=0.01", "wd=0.5", "--reason", "plateau")["revision"]
    answer = shell("undo", "vgg")
    assert 0 == answer.code
    lines = [re.sub(r"step \d+", "step N", line) for line in answer.out.splitlines()]
    assert [
        f"lr 0.01 → 0.1   applied at step N   (undo of {first})",
        f"wd 0.5 → 0   applied at step N   (undo of {first})",
    ] == lines
    assert answer.err.startswith(f"the newest change is {first}: lr 0.1 → 0.01, wd 0 → 0.5  ")
    assert '  "plateau"' in answer.err
    undone = shell.data("history", "vgg")[-1]
    assert (first, f"undo of {first}") == (undone["undone_revision"], undone["reason"])
    # An undo of the undo brings it back.
    again = shell("--port", vgg, "undo", "--reason", "better so")
    assert "lr 0.1 → 0.01   applied" in again.out
    last = shell("history", "vgg").out.splitlines()[-1]
    assert f"lr 0.1 → 0.01, wd 0 → 0.5 (undo of {undone['revision']})" in last
    assert last.endswith("better so")


def test_undo_of_a_change_that_was_overwritten_is_a_conflict_unless_forced(shell: Shell, vgg: str) -> None:
    first = shell.data("set", "vgg", "lr=0.01")["revision"]
    second = shell.data("set", "vgg", "lr=0.02")["revision"]
    before = shell("history", "vgg", "-o", "json").out
    for words in (
        ("undo", "vgg", str(first)),
        ("--port", vgg, "undo", str(first)),
        ("undo", "vgg", str(first), "--dry-run"),
    ):
        answer = shell.inside(*words)
        assert (4, "") == (answer.code, answer.out)
        assert f"variable 'lr' was set anew at revision {second}, after change {first}" in answer.err
        assert "--force does it all the same" in answer.err
    assert before == shell("history", "vgg", "-o", "json").out
    forced = shell("undo", "vgg", str(first), "--force", "-o", "json")
    assert 0 == forced.code
    assert "lr 0.02 → 0.1 (undo of" in shell("history", "vgg").out


def test_undo_that_cannot_be_has_its_exit_code(shell: Shell, vgg: str) -> None:
    assert (3, "ltctl: error: no change of job 'vgg' to undo\n") == (
        (nothing := shell("undo", "vgg")).code,
        nothing.err,
    )
    fired = shell.data("trigger", "vgg", "save")["revision"]
    cases = [
        (("undo", "vgg", str(fired)), 2, "a firing can't be undone"),
        (("undo", "vgg"), 2, "name another one: ltctl undo JOB REVISION"),
        (("undo", "vgg", "1"), 3, "no change of revision 1"),
        (("undo", "vgg", "999"), 3, "no change of revision 999"),
        (("undo", "vg"), 3, "did you mean 'vgg'?"),
        (("undo", "4711"), 3, "ltctl undo JOB 4711"),
        (("undo",), 2, "which job?"),
        (("undo", "vgg", "lr"), 2, "'lr' is not a revision"),
        (("undo", "vgg", "0"), 2, "no change has revision 0"),
        (("undo", "vgg", "1", "2"), 2, "one change at a time"),
    ]
    for words, code, text in cases:
        answer = shell.inside(*words)
        assert (code, "") == (answer.code, answer.out), (words, answer)
        assert text in answer.err, (words, answer)
    assert [fired] == [change["revision"] for change in shell.data("history", "vgg")]


def test_a_dry_run_answers_like_the_real_thing_and_changes_nothing(shell: Shell, vgg: str) -> None:
    made = shell.data("set", "vgg", "lr=0.01")["revision"]
    before = shell("describe", "vgg", "lr", "wd", "save", "-o", "json").out
    history = shell("history", "vgg", "-o", "json").out
    cases = [
        (("set", "vgg", "lr=0.5", "wd=1"), 0, "would set lr 0.01 → 0.5\nwould set wd 0 → 1\n"),
        (("trigger", "vgg", "save"), 0, "would fire save\n"),
        (("undo", "vgg"), 0, f"would set lr 0.01 → 0.1   (undo of {made})\n"),
        (("--port", vgg, "undo"), 0, f"would set lr 0.01 → 0.1   (undo of {made})\n"),
        (("set", "vgg", "lr=7"), 5, ""),
        (("set", "vgg", "lr=abc"), 2, ""),
        (("set", "vgg", "momentum=1"), 3, ""),
        (("set", "vgg", "lr=0.5", "--if-revision", "1"), 4, ""),
        (("set", "vgg", "lr=0.5", "--if-job-revision", "1"), 4, ""),
        (("trigger", "vgg", "sav"), 3, ""),
    ]
    for words, code, out in cases:
        answer = shell.inside(*words, "--dry-run")
        assert (code, out) == (answer.code, answer.out), (words, answer)
    data = shell.data("set", "vgg", "lr=0.5", "--dry-run")
    assert (None, True, {}) == (data["revision"], data["dry_run"], data["applied"])
    assert history == shell("history", "vgg", "-o", "json").out
    after = shell.data("describe", "vgg", "lr", "wd", "save")
    steps = re.compile(r'"step": \d+')
    assert steps.sub("", before) == steps.sub("", shell("describe", "vgg", "lr", "wd", "save", "-o", "json").out), after


def test_only_if_the_whole_job_is_as_it_was(shell: Shell, vgg: str) -> None:
    seen = shell.data("set", "vgg", "lr=0.01")["revision"]
    other = shell.data("set", "vgg", "wd=0.5")["revision"]
    assert 0 == shell("set", "vgg", "lr=0.02", "--if-revision", str(seen), "--dry-run").code
    answer = shell("set", "vgg", "lr=0.02", "--if-job-revision", str(seen))
    assert 4 == answer.code
    assert f"job 'vgg' was changed at revision {other}, after revision {seen}" in answer.err
    assert 0 == shell("set", "vgg", "lr=0.02", "--if-job-revision", str(other)).code


def test_a_firing_is_merged_with_one_that_waits(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "slow")
        process.join()
        process.declare(float_spec("lr", 0.1), triggers=("save", "stop"))
        first = shell.data("trigger", "slow", "save", "--merge", "--wait", "accepted")
        waits = first["revision"]
        assert ([{"trigger": "save", "number": 1}], {}) == (first["firings"], first["merged"])
        assert (
            f"save waits already (revision {waits}): would add none\n"
            == shell("trigger", "slow", "save", "--merge", "--dry-run").out
        )
        both = shell.data("trigger", "slow", "save", "stop", "--merge", "--wait", "accepted")
        assert ([{"trigger": "stop", "number": 1}], {"save": waits}) == (both["firings"], both["merged"])
        waiting = shell.start("trigger", "slow", "save", "--merge", "--timeout", "30")
        saved, stopped = process.expect("change").change, process.expect("change").change
        eventually(lambda: watchers(daemon) == 1)
        process.apply(saved, step=7)
        process.apply(stopped, step=8)
        out, err = waiting.communicate(timeout=30)
        assert (0, f"save waits already (revision {waits})   consumed at step 7\n") == (waiting.returncode, out), err
        assert 2 == len(shell.data("history", "slow"))
        assert 2 == shell.data("trigger", "slow", "save", "--wait", "accepted")["firings"][0]["number"]
        process.close()


def test_a_lost_job_is_given_up_and_an_ended_one_forgotten(daemon: Daemon, shell: Shell) -> None:
    with training(daemon, "vgg") as process:
        connected = shell("remove", "vgg")
        assert (1, "", "ltctl: error: job 'vgg' is connected: stop its program\n") == (
            connected.code,
            connected.out,
            connected.err,
        )
        process.send_signal(signal.SIGKILL)
        eventually(lambda: state_of(daemon, "vgg") == types_pb2.JOB_STATE_LOST)
    given_up = shell("remove", "vgg", "--reason", "its node died")
    assert (0, "") == (given_up.code, given_up.err)
    assert given_up.out.startswith("job vgg is given up: its port is free, and it stays readable")
    described = shell("describe", "vgg").out
    assert "job vgg: failed at step" in described
    assert "port -" in described
    assert ": its node died" in described
    assert [] == shell.data("jobs")
    assert ["vgg"] == [job["name"] for job in shell.data("jobs", "-a")]
    assert 1 == shell("set", "vgg", "lr=0.5").code
    assert {"job": "vgg", "result": "forgotten"} == shell.data("remove", "vgg")
    assert [] == shell.data("jobs", "-a")
    gone = shell("remove", "vgg")
    assert (3, "ltctl: error: job 'vgg' not found; there are no jobs\n") == (gone.code, gone.err)
    assert 2 == shell("remove").code
    events = shell("watch", "--after", "0", "-n", "4").out.splitlines()
    assert "failed: given up by" in events[-2]
    assert "  vgg  forgotten  by " in events[-1]


def test_waiting_for_a_job_that_is_removed(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "gone")
        process.join()
        process.declare(float_spec("lr", 0.1))
        process.close()
        eventually(lambda: state_of(daemon, "gone") == types_pb2.JOB_STATE_LOST)
    waiting = shell.start("set", "gone", "lr=0.5")
    eventually(lambda: shell.data("history", "gone"))
    assert 0 == shell("remove", "gone").code
    _, err = waiting.communicate(timeout=30)
    assert 8 == waiting.returncode
    assert "accepted as revision 3, but the job ended before it applied it" in err


def test_jobs_shows_ranks_and_who_lags_behind(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        ranks = [Process(channel, "ddp", rank=rank, world_size=3) for rank in range(2)]
        for process in ranks:
            process.join()
            process.declare(float_spec("lr", 0.1))
        assert 0 == shell("set", "ddp", "lr=0.5", "--wait", "accepted").code
        changes = [process.expect("change").change for process in ranks]
        ranks[0].apply(changes[0], step=7)
        revision = changes[0].revision
        head, row = shell("jobs", "-o", "wide").out.splitlines()
        assert re.search(r"RANKS +STARTED +RUN +REVISION +APPLIED +USER +HOST +PID", head)
        assert "   2/3   " in row
        assert f"   {revision} (rank 1: -)   tester   testhost   42" in row
        described = shell("describe", "ddp").out
        assert "2 of 3 ranks have registered so far" in described
        assert f"rank 0: connected at step 7, applied revision {revision}, pid 42 of tester on testhost" in described
        assert "rank 1: connected at step 0, no change applied yet" in described
        (job,) = shell.data("jobs")
        assert (3, [revision, 0]) == (job["world_size"], [rank["applied_revision"] for rank in job["ranks"]])
        for process in ranks:
            process.close()


def test_describe_tells_what_a_restart_does_to_a_variable(daemon: Daemon, shell: Shell) -> None:
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        reset = float_spec("warm", 1.0)
        reset.on_restart = types_pb2.RESTART_POLICY_RESET
        process.declare(float_spec("lr", 0.1), reset)
        assert ["keep", "reset"] == [item["on_restart"] for item in shell.data("describe", "vgg")["variables"]]
        assert 1 == shell("describe", "vgg").out.count("begins with what its program declares")
        process.close()
