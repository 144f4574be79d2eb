"""The code that `ltctl export` writes: what it computes, and that nothing strangers wrote becomes code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from livetune.records import Entry
from ltctl.schedule import Schedule, lr_scheduler_code

NASTY = "x\n    (0, 9.0),\n]\nraise SystemExit('run')\r\x0b\x0c\x1c\x85\u2028\"\"\"'{job}\\\0é\ud800"


def run(code: str) -> dict[str, Any]:
    assert code.isascii()
    names: dict[str, Any] = {"__name__": "schedule"}
    exec(compile(code, "schedule.py", "exec"), names)  # noqa: S102 - that is what it is for
    return names


def entries(*changes: tuple[int, float], reason: str = "why", actor: str = "ann@a") -> list[Entry]:
    return [
        Entry("", 5 + n, step, {"lr": value}, reason=reason, actor=actor) for n, (step, value) in enumerate(changes)
    ]


def test_the_values_are_exact_at_every_step() -> None:
    names = run(lr_scheduler_code(Schedule("vgg", "lr", 0, 0.1, entries((3, 0.1 + 0.2), (4, 5e-324), (7, 1.0)))))
    assert [0.1, 0.1, 0.1, 0.1 + 0.2, 5e-324, 5e-324, 5e-324, 1.0, 1.0] == [names["lr_at"](step) for step in range(9)]
    assert ("vgg", "lr", 0) == (names["JOB"], names["VARIABLE"], names["RANK"])


def test_without_a_change_it_is_the_initial_value() -> None:
    names = run(lr_scheduler_code(Schedule("vgg", "lr", 0, 3, [])))
    assert [3, 3] == [names["lr_at"](step) for step in (0, 10**9)]


def test_the_scheduler_sets_what_bind_would_have_set() -> None:
    names = run(lr_scheduler_code(Schedule("vgg", "lr", 0, 0.1, entries((2, 0.03), (4, 0.7)))))
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.0, 0.1, 0.05)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = names["EditedSchedule"](optimizer)
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [
        [0.0, 0.1, 0.05], [0.0, 0.1, 0.05], [0.0, 0.03, 0.015], [0.0, 0.03, 0.015], [0.0, 0.7, 0.35],
    ] == seen  # fmt: skip
    state = scheduler.state_dict()
    again = names["EditedSchedule"](optimizer)
    again.load_state_dict(state)
    assert 5 == again.last_epoch


@pytest.mark.parametrize("where", ["reason", "actor"])
def test_what_strangers_wrote_stays_a_comment(where: str) -> None:
    code = lr_scheduler_code(Schedule("vgg", "lr", 0, 0.1, entries((3, 0.5), **{where: NASTY})))
    assert [(3, 0.5)] == run(code)["CHANGES"]
    (comment,) = [line for line in code.splitlines() if "raise SystemExit" in line]
    assert re.match(r"    # revision 5, ", comment)


def test_names_stay_text() -> None:
    names = run(lr_scheduler_code(Schedule(NASTY, NASTY, 0, 0.1, [])))
    assert (NASTY, NASTY) == (names["JOB"], names["VARIABLE"])


def test_each_change_says_who_and_why() -> None:
    code = lr_scheduler_code(Schedule("vgg", "lr", 0, 0.1, entries((3, 0.5), reason="plateau\nagain")))
    assert "    # revision 5, ann@a: plateau\\nagain\n    (3, 0.5),\n" in code
    assert "    # revision 5, -\n" in lr_scheduler_code(
        Schedule("v", "lr", 0, 0.1, entries((3, 0.5), reason="", actor=""))
    )
