"""`ltctl history`: filters over two jobs, pages that are short or empty, what retention dropped, large exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml

from livetune.v1 import control_pb2
from support.compaction import compact
from support.daemon import Daemon
from support.process import Process, float_spec
from support.shell import Shell


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    """Two jobs with six changes of two actors, revisions 5 to 10."""
    with daemon.channel() as channel:
        for job in ("one", "two"):
            process = Process(channel, job)
            process.join()
            process.declare(float_spec("lr", 0.1), float_spec("wd", 0.0), triggers=("save",))
            process.close()
    with daemon.control() as stub:
        for number, (job, variable, actor) in enumerate(
            [
                ("one", "lr", "ann@a"),
                ("two", "lr", "bob@b"),
                ("one", "wd", "bob@b"),
                ("two", "wd", "ann@a"),
                ("one", "lr", "ann@a"),
            ]
        ):
            update = control_pb2.VariableUpdate(variable_id=variable, text=f"0.{number + 2}")
            stub.SetVariables(
                control_pb2.SetVariablesRequest(job=f"jobs/{job}", updates=[update]),
                metadata=(("livetune-actor", actor),),
            )
        stub.FireTriggers(
            control_pb2.FireTriggersRequest(job="jobs/two", trigger_ids=["save"]),
            metadata=(("livetune-actor", "ann@a"),),
        )
    return Shell(daemon)


def revisions(shell: Shell, *words: str) -> list[int]:
    answer = shell.inside("history", *words, "-o", "name")
    assert 0 == answer.code, answer
    return [int(line) for line in answer.out.splitlines()]


def test_filters(shell: Shell) -> None:
    times = [datetime.fromisoformat(change["time"]) for change in shell.data("history")]
    here = [time.astimezone().replace(tzinfo=None).isoformat() for time in times]
    for words, found in [
        ((), [5, 6, 7, 8, 9, 10]),
        (("one",), [5, 7, 9]),
        (("--variable", "lr"), [5, 6, 9]),
        (("two", "--variable", "lr"), [6]),
        (("--trigger", "save"), [10]),
        (("--actor", "ann@a"), [5, 8, 9, 10]),
        (("one", "--actor", "bob@b"), [7]),
        (("--after", "6"), [7, 8, 9, 10]),
        (("--before", "7"), [5, 6]),
        (("--after", "5", "--before", "9", "--actor", "ann@a"), [8]),
        (("--actor", "ann@a", "-n", "2"), [9, 10]),
        (("--since", here[2]), [7, 8, 9, 10]),
        (("--until", here[2]), [5, 6]),
        (("--since", times[1].isoformat(), "--until", times[4].isoformat()), [6, 7, 8]),
        (("--since", "1h"), [5, 6, 7, 8, 9, 10]),
        (("--until", "1h"), []),
        (("--since", (datetime.now(timezone.utc) + timedelta(days=1)).isoformat()), []),
    ]:  # fmt: skip
        assert found == revisions(shell, *words), words


def test_of_all_jobs_it_names_the_job(shell: Shell) -> None:
    head, *rows = shell("history").out.splitlines()
    assert ["REVISION", "TIME", "JOB", "ACTOR", "CHANGE", "APPLIED", "REASON"] == head.split()
    assert ["one", "two", "one", "two", "one", "two"] == [row.split()[3] for row in rows]
    assert "JOB" not in shell("history", "one").out
    port = shell.data("describe", "two")["port"]
    own = shell("--port", str(port), "history").out
    assert "JOB" not in own
    assert 3 == len(own.splitlines()) - 1


def test_what_is_not_shown_is_said(shell: Shell) -> None:
    for words, said in [
        (("-n", "2"), "older ones: the same with --before 9\n"),
        (("one", "--variable", "lrr"), "no changes: the job has no variable or trigger 'lrr'; did you mean 'lr'?\n"),
        (("--actor", "ann"), "no changes: an actor is USER@HOST, and 'ann' is not\n"),
        (("--after", "10"), "no changes\n"),
    ]:
        answer = shell.inside("history", *words)
        assert (0, said) == (answer.code, answer.err), answer
        assert "" == shell.inside("history", *words, "-o", "json").err


def test_filters_that_contradict_themselves(shell: Shell) -> None:
    for words, said in [
        (("--since", "1h", "--until", "2h"), "no time lies between"),
        (("--after", "7", "--before", "8"), "no revision lies between"),
        (("--since", "soon"), "'soon' is not a time: write 2026-"),
        (("--since", "2026-02-30"), "is no time that can be"),
        (("--before", "x"), "'x' is not a revision"),
        (("--actor", "\udcff"), "not valid UTF-8"),
        (("-n", "0"), "'-n' / '--limit'"),
    ]:
        answer = shell.inside("history", *words)
        assert (2, "") == (answer.code, answer.out), (words, answer)
        assert said in answer.err


def test_pages_are_read_until_enough_is_found_however_short_they_are(daemon: Daemon) -> None:
    """More changes than one page holds, with the few that match at the far end."""
    with daemon.channel() as channel:
        process = Process(channel, "vgg")
        process.join()
        process.declare(float_spec("lr", 0.1), float_spec("wd", 0.0))
        process.close()
    shell = Shell(daemon)
    with daemon.control() as stub:

        def changes() -> Iterator[control_pb2.StreamChangesRequest]:
            for part in range(5):
                request = control_pb2.StreamChangesRequest()
                for number in range(500):
                    rare = part == 0 and number < 3
                    update = control_pb2.VariableUpdate(variable_id="wd" if rare else "lr", text=f"0.{number + 1}")
                    change = control_pb2.SetVariablesRequest(job="jobs/vgg", updates=[update])
                    request.changes.add(tag=number, set=change)
                yield request

        answers = [answer for response in stub.StreamChanges(changes(), timeout=60) for answer in response.answers]
    assert ["change"] * 2_500 == [answer.WhichOneof("result") for answer in answers]
    assert [3, 4, 5] == revisions(shell, "--variable", "wd")
    assert list(range(3, 2_503)) == revisions(shell, "-n", "100000")
    assert list(range(1_003, 2_503)) == revisions(shell, "-n", "1500")
    lines = shell("history", "-n", "2400", "-o", "jsonl").out.splitlines()
    assert list(range(103, 2_503)) == [json.loads(line)["revision"] for line in lines]
    table = shell("history", "-n", "2400").out.splitlines()
    assert (2_401, 1) == (len(table), sum(line.startswith("REVISION") for line in table))
    assert {table[0].index("JOB")} == {line.index("vgg") for line in table[1:]}


def test_documents_that_come_in_parts_are_whole(shell: Shell) -> None:
    for words in (("history",), ("history", "--after", "10"), ("jobs",), ("jobs", "-a")):
        text = shell(*words, "-o", "json").out
        data = json.loads(text)
        assert json.dumps(data, indent=2) + "\n" == text
        assert data == yaml.safe_load(shell(*words, "-o", "yaml").out)


def test_what_retention_dropped_is_said_where_it_matters(daemon: Daemon, shell: Shell) -> None:
    assert 0 == daemon.stop()
    compact(Path(daemon.state), through=7)
    daemon.start()
    said = "changes up to revision 7 were dropped (retention)\n"
    for words, found, err in [
        ((), [8, 9, 10], said),
        (("one",), [9], said),
        (("--variable", "wd"), [8], said),
        (("-n", "2"), [9, 10], ""),
        (("--after", "7"), [8, 9, 10], ""),
    ]:
        answer = shell.inside("history", *words, "-o", "jsonl")
        assert found == [json.loads(line)["revision"] for line in answer.out.splitlines()]
        assert err == answer.err, words
    undo = shell("undo", "one", "7")
    assert 3 == undo.code
    assert "or it was compacted away" in undo.err
