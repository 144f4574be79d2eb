"""A job's state in a checkpoint: plain data, read back, refused where it is not one."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

import livetune
from livetune import CheckpointError
from livetune.checkpoint import Checkpoint
from livetune.messages import ScheduledChange
from livetune.specs import VariableSpec

CHECKPOINT = Checkpoint(
    "vgg",
    "store",
    2,
    900,
    {"lr": (0.01, 7), "name": ("x", 0), "on": (True, 0), "n": (3, 5)},
    (ScheduledChange(8, 1000, (("lr", 0.5),), ("save",), "later", "ann"),),
)


def test_it_is_plain_data_and_read_back_as_it_was() -> None:
    assert CHECKPOINT == Checkpoint.from_dict(CHECKPOINT.to_dict())
    assert CHECKPOINT == Checkpoint.from_dict(json.loads(json.dumps(CHECKPOINT.to_dict())))


def broken() -> list[Any]:
    whole = CHECKPOINT.to_dict()
    cases: list[Any] = [None, 5, [], "x", {}, {"version": 1}, {**whole, "version": 2}, {**whole, "step": -1}]
    cases += [{**whole, "step": True}, {**whole, "step": "9"}, {**whole, "variables": []}, {**whole, "scheduled": [{}]}]
    for value in (None, [], {}):
        case = copy.deepcopy(whole)
        case["variables"]["lr"]["value"] = value
        cases.append(case)
    return cases


@pytest.mark.parametrize("state", broken(), ids=lambda state: repr(state)[:60])
def test_what_is_none_is_refused_and_nothing_changes(state: Any) -> None:
    with livetune.init("checkpointed", endpoint="unix:/nowhere") as job:
        lr = job.variable("lr", 0.1)
        job.step()
        with pytest.raises(CheckpointError):
            job.load_state_dict(state)
        assert (1, 0.1) == (job.current_step, lr.value)


def test_a_value_that_is_not_allowed_any_more_is_refused_whole() -> None:
    with livetune.init("checkpointed", endpoint="unix:/nowhere") as job:
        lr, n = job.variable("lr", 0.1, min=0.05), job.variable("n", 1)
        with pytest.raises(CheckpointError, match=r"'lr'.*0\.01"):
            job.load_state_dict(CHECKPOINT.to_dict())
        assert (0, 0.1, 1) == (job.current_step, lr.value, n.value)
    CHECKPOINT.check([VariableSpec.declare("lr", 0.1), VariableSpec.declare("other", 0.1)])


def test_values_step_and_what_waits_are_where_they_were_without_a_daemon() -> None:
    with livetune.init("checkpointed", endpoint="unix:/nowhere") as job:
        lr, save = job.variable("lr", 0.1), job.trigger("save")
        job.load_state_dict(CHECKPOINT.to_dict())
        assert (900, 0.01) == (job.current_step, lr.value)
        late = job.variable("n", 1)
        assert 3 == late.value
        assert 8 == job.state_dict()["scheduled"][0]["revision"]
        for _ in range(99):
            job.step()
        assert (0.01, False) == (lr.value, save())
        job.step()
        assert (0.5, True) == (lr.value, save())
        assert [] == job.state_dict()["scheduled"]
        again = Checkpoint.from_dict(job.state_dict())
        assert (1000, 0.5) == (again.step, again.variables["lr"][0])


def test_what_waits_for_a_step_costs_the_steps_before_it_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with livetune.init("checkpointed", endpoint="unix:/nowhere") as job:
        lr = job.variable("lr", 0.1)
        job.load_state_dict(CHECKPOINT.to_dict())
        job.step()
        asked: list[int] = []
        take = job._take_changes
        monkeypatch.setattr(job, "_take_changes", lambda: (asked.append(job.current_step), take()))
        for _ in range(97):
            job.step()
        assert ([], False, 998) == (asked, job._pending, job.current_step)
        job.step()
        assert job._pending
        job.step()
        assert ([1000], 0.5) == (asked, lr.value)


def test_a_job_that_has_ended_cannot_go_on() -> None:
    job = livetune.init("checkpointed", endpoint="unix:/nowhere")
    job.finish()
    with pytest.raises(livetune.JobFinishedError, match="can't go on from a checkpoint"):
        job.load_state_dict(CHECKPOINT.to_dict())


def test_a_late_declaration_that_does_not_allow_the_value_keeps_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with livetune.init("checkpointed", endpoint="unix:/nowhere") as job:
        job.load_state_dict(CHECKPOINT.to_dict())
        assert 0.1 == job.variable("lr", 0.1, min=0.05).value
    assert "the checkpoint's value is not allowed any more" in caplog.text
