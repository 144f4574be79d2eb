"""What became of a change: from events, from the history, from the job's state alone."""

from __future__ import annotations

import pytest

from livetune.v1 import control_pb2, types_pb2
from ltctl.applying import ANY_RANK, UNKNOWN, Applying
from ltctl.exits import CommandError, Exit
from ltctl.finishing import Made, finish
from ltctl.options import How

APPLIED, REFUSED, SUPERSEDED = (
    types_pb2.APPLY_STATUS_APPLIED, types_pb2.APPLY_STATUS_REFUSED, types_pb2.APPLY_STATUS_SUPERSEDED
)  # fmt: skip


def apply_event(name: str, revision: int, rank: int = 0, step: int = 7) -> control_pb2.Event:
    event = control_pb2.Event()
    event.apply.change_revision, event.apply.rank, event.apply.step = revision, rank, step
    event.apply.outcomes.add(variable_id=name, status=APPLIED)
    return event


def job(
    *applied: tuple[str, int, int, int], state: types_pb2.JobState.ValueType = types_pb2.JOB_STATE_RUNNING
) -> types_pb2.Job:
    """A job whose variables are applied as (name, rank, revision, step)."""
    message = types_pb2.Job(name="jobs/vgg", state=state)
    for name, rank, revision, step in applied:
        variable = message.variables.add()
        variable.spec.variable_id = name
        item = variable.applied.add(rank=rank, revision=revision, step=step)
        item.value.float_value = 0.5
    return message


def test_every_rank_that_was_connected_is_waited_for() -> None:
    applying = Applying({"lr": 5}, [0, 1])
    applying.take_event(apply_event("lr", 4))
    applying.take_event(apply_event("wd", 5))
    assert {} == applying.outcomes
    applying.take_event(apply_event("lr", 5))
    assert not applying.done
    applying.take_event(apply_event("lr", 5, rank=1, step=8))
    assert applying.done
    assert {0: 7, 1: 8} == applying.steps["lr"]


def test_of_a_job_that_was_away_any_rank_will_do() -> None:
    applying = Applying({"lr": 5}, [])
    assert not applying.done
    applying.take_event(apply_event("lr", 5, rank=3))
    assert applying.done


@pytest.mark.parametrize("kind", ["ended", "removed"])
def test_a_job_that_ends_first(kind: str) -> None:
    event = control_pb2.Event()
    getattr(event, kind).SetInParent()
    with pytest.raises(CommandError, match="accepted as revision 5, but the job") as caught:
        Applying({"lr": 5}, [0]).take_event(event)
    assert Exit.NOT_APPLIED is caught.value.code


def test_the_history_knows_what_no_event_tells() -> None:
    change = types_pb2.Change(revision=5)
    apply = change.applies.add(change_revision=5, rank=0, step=9)
    apply.outcomes.add(variable_id="lr", status=REFUSED, reason="too hot")
    applying = Applying({"lr": 5}, [0])
    applying.conclude([change], job())
    assert [("lr", "too hot")] == [(name, outcome.reason) for name, outcome in applying.of("refused")]
    assert {0: 9} == applying.steps["lr"]


def test_the_jobs_state_knows_what_the_history_does_not_keep() -> None:
    applying = Applying({"lr": 5, "wd": 5, "mode": 5}, [0])
    applying.conclude([], job(("lr", 0, 5, 9), ("wd", 0, 6, 10), ("mode", 0, 4, 3), ("other", 0, 5, 9)))
    assert {"lr", "wd"} == set(applying.outcomes)
    assert [("lr", 0.5)] == [(name, outcome.effective.float_value) for name, outcome in applying.of("applied")]
    assert [("wd", UNKNOWN)] == [(name, outcome.reason) for name, outcome in applying.of("superseded")]
    assert {"lr": {0: 9}} == applying.steps
    assert not applying.done  # mode may still come


def test_firings_that_nothing_waits_for_are_consumed() -> None:
    state = job()
    for name, fired, consumed in [("save", 3, 3), ("stop", 3, 2)]:
        trigger = state.triggers.add(fired=fired, consumed=consumed, revision=6)
        trigger.spec.trigger_id = name
    applying = Applying({"save": 5, "stop": 6}, [0, 1])
    applying.conclude([], state)
    assert applying.complete("save")
    assert not applying.complete("stop")
    assert {} == applying.steps


def test_an_event_tells_more_than_the_state() -> None:
    applying = Applying({"lr": 5}, [0])
    applying.take_event(apply_event("lr", 5))
    applying.conclude([], job(("lr", 0, 8, 100)))
    assert [APPLIED] == [outcome.status for outcome in applying.outcomes["lr"].values()]


@pytest.mark.parametrize("state", [None, types_pb2.JOB_STATE_FINISHED, types_pb2.JOB_STATE_FAILED])
def test_what_an_ended_job_has_not_applied_it_never_will(state: types_pb2.JobState.ValueType | None) -> None:
    ended = None if state is None else job(("lr", 0, 5, 9), state=state)
    with pytest.raises(CommandError, match="before it applied it"):
        Applying({"lr": 5, "wd": 5}, [0]).conclude([], ended)
    if ended is not None:
        Applying({"lr": 5}, [0]).conclude([], ended)  # it had applied all


def test_what_lapsed_is_superseded() -> None:
    applying = Applying({"lr": 5, "wd": 6}, [0, 1])
    applying.conclude([types_pb2.Change(revision=5, lapsed_ids=["lr", "wd"])], job())
    assert [("lr", ANY_RANK)] == [(name, rank) for name, by_rank in applying.outcomes.items() for rank in by_rank]
    assert "lr" in [name for name, _ in applying.of("superseded")]


def test_a_dry_run_asks_nobody_and_shows_what_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    change = types_pb2.Change(undone_revision=4)
    made = Made(change, "store", [0], {"lr": "set lr 1 -> 2"}, {})
    finish(None, made, How("", True, "applied", 30.0, "table"))  # type: ignore[arg-type]
    assert "would set lr 1 -> 2   (undo of 4)\n" == capsys.readouterr().out
