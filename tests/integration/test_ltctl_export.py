"""`ltctl export`: the code it writes against what a real job applied; what it refuses, and how it ends then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import livetune
from livetune import records
from support.daemon import Daemon
from support.shell import Shell, training


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon("--job-ports", "25010-25019").start()


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "schedule"}
    exec(compile(code, "schedule.py", "exec"), names)  # noqa: S102 - that is what it is for
    return names


def tune(daemon: Daemon, shell: Shell, path: Path, *values: float) -> livetune.Job:
    """A job in this process that takes values of lr, 7 steps apart, and has ended."""
    with livetune.init("vgg", endpoint=daemon.target, record=path) as job:
        job.variable("lr", 0.1, min=0.0, max=1.0).pre_set(lambda value: value / 2)
        job.variable("mode", "a")
        assert job.wait_connected(20)
        job.step()
        for value in values:
            assert 0 == shell.inside("set", "vgg", f"lr={value}", "--wait", "accepted", "--reason", f"to {value}").code
            seen = len(job.changes)
            while len(job.changes) == seen:
                job.step()
            for _ in range(7):
                job.step()
    return job


def test_the_code_gives_what_was_in_use_at_every_step(daemon: Daemon, tmp_path: Path) -> None:
    shell, path = Shell(daemon), tmp_path / "run.jsonl"
    job = tune(daemon, shell, path, 0.5, 0.3, 1e-07)
    answer = shell("export", "vgg", "--as", "lr_scheduler")
    assert (0, "") == (answer.code, answer.err)
    names = run(answer.out)
    applied = {entry.step: entry.values["lr"] for entry in records.read(str(path), 0).entries}
    assert [0.25, 0.15, 5e-08] == list(applied.values())
    value: Any = 0.1
    for step in range(job.current_step + 1):
        value = applied.get(step, value)
        assert value == names["lr_at"](step)
    assert ": to 0.3\n" in answer.out
    # A job's own port needs no name, and a rank that is not there has applied nothing.
    other = shell("export", "vgg", "--as", "lr_scheduler", "--rank", "3")
    assert 1 == other.code
    assert "no change was applied by rank 3, only by rank 0" in other.err


def test_of_several_runs_one_is_chosen(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    tune(daemon, shell, tmp_path / "run.jsonl", 0.5, 0.3)
    tune(daemon, shell, tmp_path / "run.jsonl", 0.7)
    answer = shell.inside("export", "vgg", "--as", "lr_scheduler")
    assert 1 == answer.code
    assert "'old' of 'lr' must be 0.3" in answer.err
    assert "another run began" in answer.err
    *_, last, newest = shell.data("history", "vgg")
    answer = shell.inside("export", "vgg", "--as", "lr_scheduler", "--after", str(last["revision"]))
    assert (0, [0.35]) == (answer.code, [value for _, value in run(answer.out)["CHANGES"]])
    assert 0.1 == run(answer.out)["INITIAL"]
    # The same cut lets the history be replayed.
    path = tmp_path / "history.jsonl"
    path.write_text(shell("history", "vgg", "--after", str(last["revision"]), "-o", "jsonl").out)
    with livetune.init("vgg", replay=path) as job:
        lr = job.variable("lr", 0.1)
        job.step(newest["applies"][0]["step"] - 1)
        assert 0.1 == lr.value
        job.step()
        assert 0.35 == lr.value
    path.write_text(shell("history", "vgg", "-o", "jsonl").out)
    with pytest.raises(livetune.ReplayError, match="ltctl history JOB --after REVISION"):
        livetune.init("vgg", replay=path)


def test_what_is_refused(daemon: Daemon) -> None:
    shell = Shell(daemon)
    with training(daemon, "vgg"):
        for words, code, said in [
            (("vgg", "--as", "lr_scheduler", "--variable", "lrr"), 3, "job 'vgg' has no variable 'lrr'; did you mean 'lr'?"),
            (("vgg", "--as", "lr_scheduler", "--variable", "save"), 3, "job 'vgg' has no variable 'save'"),
            (("vg", "--as", "lr_scheduler"), 3, "did you mean 'vgg'?"),
            (("--as", "lr_scheduler"), 2, "which job? Write: ltctl export JOB --as lr_scheduler"),
            (("vgg",), 2, "--as"),
            (("vgg", "--as", "yaml"), 2, "lr_scheduler"),
        ]:  # fmt: skip
            answer = shell.inside("export", *words)
            assert (code, "") == (answer.code, answer.out), answer
            assert said in answer.err, answer
        port = str(shell.data("describe", "vgg")["port"])
        answer = shell.inside("--port", port, "export", "--as", "lr_scheduler")
        assert (0, "no change of 'lr' has taken effect in rank 0\n") == (answer.code, answer.err)
        assert 0.1 == run(answer.out)["lr_at"](5)


def test_a_text_is_no_learning_rate(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(daemon)
    tune(daemon, shell, tmp_path / "run.jsonl")
    answer = shell.inside("export", "vgg", "--as", "lr_scheduler", "--variable", "mode")
    assert (2, "") == (answer.code, answer.out)
    assert "a learning rate is a number: variable 'mode' is of type str" in answer.err
