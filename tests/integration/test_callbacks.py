"""A program that has its own word on new values: whoever typed the change learns of it, with an exit code of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from livetune.v1 import types_pb2
from support.daemon import Daemon, eventually
from support.programs import Program, program
from support.shell import Shell, state_of


@pytest.fixture
def shell(daemon: Daemon) -> Shell:
    return Shell(daemon)


@pytest.fixture
def vgg(daemon: Daemon, tmp_path: Path) -> Iterator[Program]:
    with program("vetoing.py", "vgg", log=tmp_path / "vgg.log", LIVETUNE_ENDPOINT=daemon.target) as job:
        eventually(lambda: types_pb2.JOB_STATE_RUNNING == state_of(daemon, "vgg"), 30)
        yield job


def values(shell: Shell) -> dict[str, tuple[object, object]]:
    """Of each variable, what is desired and what is in use."""
    return {
        item["name"]: (item["desired"], item["applied"][0]["value"] if item["applied"] else None)
        for item in shell.data("get", "vgg")["variables"]
    }


def test_a_veto_reaches_whoever_typed_it_with_its_own_exit_code(shell: Shell, vgg: Program) -> None:
    answer = shell("set", "vgg", "lr=0.5", "wd=0.25")
    assert 9 == answer.code
    assert "lr: lr may only fall here, 0.5 is above 0.1" in answer.err
    assert "wd: refused together with 'lr'" in answer.err
    # The history says so, whoever looks at it later.
    history = shell("history", "vgg").out
    assert "lr may only fall here" in history
    assert 0 == shell("set", "vgg", "lr=0.05").code
    assert 0.05 == values(shell)["lr"][1]


def test_a_callback_that_fails_refuses_too(shell: Shell, vgg: Program) -> None:
    answer = shell("set", "vgg", "wd=13")
    assert 9 == answer.code
    assert "wd: a callback failed with KeyError: 'no such thing'" in answer.err


def test_a_rewritten_value_is_shown_as_applied(shell: Shell, vgg: Program) -> None:
    answer = shell("set", "vgg", "batch=13")
    assert 0 == answer.code
    assert re.fullmatch(r"batch 8 → 13   applied as 12 at step \d+\n", answer.out)
    assert re.search(r"batch 8 → 13 .* step \d+ as 12", shell("history", "vgg").out)
    assert (13, 12) == values(shell)["batch"]
    told = vgg.facts(lambda fact: "new" in fact)
    assert (8, 12) == (told["old"], told["new"])


def test_what_reacts_and_fails_does_not_stop_training(shell: Shell, vgg: Program) -> None:
    assert 0 == shell("set", "vgg", "batch=6").code
    assert 0 == shell("set", "vgg", "batch=4").code
    assert 6 == vgg.facts(lambda fact: fact["new"] == 6)["new"]
    assert 4 == vgg.facts(lambda fact: fact["new"] == 4)["new"]
    assert "too late to matter" in vgg.log.read_text()
    assert 0 == shell("trigger", "vgg", "stop").code
    assert 0 == vgg.wait()
