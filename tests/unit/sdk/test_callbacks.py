"""A program's own word on new values: rewriting, vetoes, reactions; all of a change or none of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

import livetune
from livetune import messages as m
from livetune.session import Session
from livetune.specs import Scalar, VariableSpec

LR, WD = VariableSpec.declare("lr", 0.1, minimum=0.0, maximum=1.0), VariableSpec.declare("wd", 0.0)
APPLIED, REFUSED, SUPERSEDED = m.Status.APPLIED, m.Status.REFUSED, m.Status.SUPERSEDED


def only_falling(name: str, value: Scalar, old: Scalar) -> Scalar | m.Refusal:
    assert isinstance(value, float)
    assert isinstance(old, float)
    return m.Refusal(f"{value} is above {old}") if name == "lr" and value > old else value


def opened(judge: Any = only_falling) -> Session:
    session = Session(judge)
    for spec in (LR, WD):
        session.handle(m.VariableDeclared(spec))
    session.handle(m.Registered("store", 1, 21_000, 10))
    session.handle(m.Opened("store", 10))
    session.handle(m.Declared((m.VariableAnswer("lr", 0.1, 3, False), m.VariableAnswer("wd", 0.0, 3, False))))
    return session


def take(session: Session, *changes: dict[str, float], step: int = 7) -> tuple[dict[str, Scalar], list[Any]]:
    """Lets a safe point take changes; returns what was assigned, and of each report its statuses and values in use."""
    for number, values in enumerate(changes):
        session.handle(m.ChangeReceived(12 + number, tuple(values.items())))
    actions = session.handle(m.SafePoint(step))
    session.validate()
    assigned = {action.name: action.value for action in actions if isinstance(action, m.Assign)}
    sent = [action.message for action in actions if isinstance(action, m.Send)]
    reports = [
        [(item.status, item.effective) for item in message.outcomes]
        for message in sent
        if isinstance(message, m.Report)
    ]
    return assigned, reports


def test_a_veto_refuses_the_whole_change() -> None:
    session = opened()
    assigned, reports = take(session, {"wd": 0.5, "lr": 0.2})
    assert {} == assigned
    assert [[(REFUSED, 0.0), (REFUSED, 0.1)]] == reports


def test_the_reason_names_what_was_refused() -> None:
    session = opened()
    session.handle(m.ChangeReceived(12, (("wd", 0.5), ("lr", 0.2))))
    (report,) = (a.message for a in session.handle(m.SafePoint(1)) if isinstance(a, m.Send))
    assert isinstance(report, m.Report)
    assert ["refused together with 'lr'", "0.2 is above 0.1"] == [outcome.reason for outcome in report.outcomes]


def test_each_change_is_judged_after_the_ones_before_it() -> None:
    """0.08 is above the 0.05 that the change before it brings, at the same safe point."""
    assigned, reports = take(opened(), {"lr": 0.05}, {"lr": 0.08}, {"lr": 0.02})
    assert {"lr": 0.02} == assigned
    assert [[(SUPERSEDED, 0.02)], [(REFUSED, 0.02)], [(APPLIED, 0.02)]] == reports


def test_a_refused_change_does_not_supersede() -> None:
    assigned, reports = take(opened(), {"lr": 0.05, "wd": 0.3}, {"lr": 0.9, "wd": 0.4})
    assert {"lr": 0.05, "wd": 0.3} == assigned
    assert [[(APPLIED, 0.05), (APPLIED, 0.3)], [(REFUSED, 0.05), (REFUSED, 0.3)]] == reports


def test_a_variable_that_this_process_does_not_have_is_no_reason_to_refuse_the_others() -> None:
    assigned, reports = take(opened(), {"lr": 0.05, "of rank 0": 1.0})
    assert {"lr": 0.05} == assigned
    assert [[(APPLIED, 0.05), (REFUSED, None)]] == reports


def test_a_rewritten_value_is_the_one_in_use() -> None:
    assigned, reports = take(opened(lambda name, value, old: value / 2), {"lr": 0.5})
    assert {"lr": 0.25} == assigned
    assert [[(APPLIED, 0.25)]] == reports


def test_a_refused_change_is_not_asked_again_after_a_break() -> None:
    session = opened()
    take(session, {"lr": 0.2})
    session.handle(m.ReportRecorded(12))
    session.handle(m.Disconnected())
    session.handle(m.Registered("store", 1, 21_000, 10))
    session.handle(m.Opened("store", 12))
    session.handle(m.Declared((m.VariableAnswer("lr", 0.2, 12, True), m.VariableAnswer("wd", 0.0, 3, False))))
    assert ({}, []) == take(session)


def test_an_interrupt_in_a_callback_loses_nothing() -> None:
    interrupted = True

    def judge(_name: str, value: Scalar, _old: Scalar) -> Scalar:
        if interrupted:
            raise KeyboardInterrupt
        return value

    session = opened(judge)
    with pytest.raises(KeyboardInterrupt):
        take(session, {"lr": 0.05}, {"wd": 0.5})
    interrupted = False
    assert ({"lr": 0.05, "wd": 0.5}, [[(APPLIED, 0.05)], [(APPLIED, 0.5)]]) == take(session)


# -- what a program writes --


@pytest.fixture
def job() -> Iterator[livetune.Job]:
    with livetune.init("callbacks", endpoint="unix:/nowhere/d.sock") as job:
        yield job


def change(job: livetune.Job, revision: int, **values: Scalar) -> None:
    """Brings a change as the driver would, and lets it take effect."""
    if not job._session.connected:
        job._deliver(m.Registered("store", 1, 21_000, 0))
        job._deliver(m.Opened("store", 0))
        answers = tuple(m.VariableAnswer(name, item.value, 1, False) for name, item in job.variables.items())
        job._deliver(m.Declared(answers))
    job._deliver(m.ChangeReceived(revision, tuple(values.items())))
    job.step()


def test_callbacks_are_called_in_order_and_each_kind_in_turn(job: livetune.Job) -> None:
    lr = job.variable("lr", 0.1)
    calls: list[object] = []
    lr.post_set(lambda new, old: calls.append(("post", new, old, lr.value)))
    lr.on_set(lambda new, old: calls.append(("on", new, old, lr.value)))
    lr.pre_set(lambda value: calls.append(("pre", value)) or value * 2)  # type: ignore[func-returns-value]
    lr.pre_set(lambda value: value + 1)
    change(job, 2, lr=0.5)
    assert [("pre", 0.5), ("on", 2.0, 0.1, 0.1), ("post", 2.0, 0.1, 2.0)] == calls
    assert 2.0 == lr.value


def test_a_callback_that_fails_refuses_and_says_how(job: livetune.Job, caplog: pytest.LogCaptureFixture) -> None:
    lr = job.variable("lr", 0.1)

    def broken(_new: float, _old: float) -> None:
        raise KeyError("plan")

    lr.on_set(broken)
    with caplog.at_level(logging.ERROR):
        change(job, 2, lr=0.5)
    assert 0.1 == lr.value
    assert "a callback of variable 'lr' failed" in caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    ("given", "wanted"), [(1, 1.0), (True, None), ("0.5", None), (float("nan"), None), (7.0, None)]
)
def test_what_a_callback_gives_must_be_allowed(job: livetune.Job, given: Any, wanted: float | None) -> None:
    lr = job.variable("lr", 0.1, max=2.0)
    lr.pre_set(lambda _value: given)
    change(job, 2, lr=0.5)
    assert (0.1 if wanted is None else wanted) == lr.value
    assert float is type(lr.value)


def test_what_reacts_and_fails_undoes_nothing(job: livetune.Job, caplog: pytest.LogCaptureFixture) -> None:
    lr, wd = job.variable("lr", 0.1), job.variable("wd", 0.0)
    seen: list[float] = []

    def broken(_new: float, _old: float) -> None:
        raise RuntimeError("boom")

    lr.post_set(broken)
    lr.post_set(lambda new, _old: seen.append(new))
    wd.post_set(lambda _new, _old: seen.append(lr.value))
    with caplog.at_level(logging.ERROR):
        change(job, 2, lr=0.5, wd=1.0)
    assert [0.5, 0.5] == seen
    assert "boom" in caplog.text


def test_a_callback_can_be_taken_out(job: livetune.Job) -> None:
    lr = job.variable("lr", 0.1)

    def veto(_new: float, _old: float) -> None:
        raise livetune.Veto("no")

    first, second = lr.on_set(veto), lr.on_set(veto)
    first()
    first()
    change(job, 2, lr=0.5)
    assert 0.1 == lr.value
    second()
    change(job, 3, lr=0.5)
    assert 0.5 == lr.value


@pytest.mark.parametrize("kind", ["pre_set", "on_set", "post_set"])
def test_what_cannot_be_called_is_no_callback(job: livetune.Job, kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind} takes a function, got 5"):
        getattr(job.variable("lr", 0.1), kind)(5)


@pytest.mark.parametrize("kind", ["on_set", "post_set"])
def test_a_callback_cannot_step(job: livetune.Job, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    lr = job.variable("lr", 0.1)
    getattr(lr, kind)(lambda _new, _old: job.step())
    job.step(41)
    with caplog.at_level(logging.ERROR):
        change(job, 2, lr=0.5)
    assert "it is inside job.step()" in caplog.text
    assert 42 == job.current_step
    job.step()
    assert 43 == job.current_step


def test_a_value_that_was_taken_over_is_told_from_one_that_was_said(job: livetune.Job) -> None:
    lr = job.variable("lr", 0.1)
    job._deliver(m.Registered("store", 1, 21_000, 5))
    job._deliver(m.Opened("store", 5))
    job._deliver(m.Declared((m.VariableAnswer("lr", 0.3, 4, True),)))
    job.step()
    assert (0.3, True) == (lr.value, lr.inherited)
    change(job, 6, lr=0.4)
    assert (0.4, False) == (lr.value, lr.inherited)
