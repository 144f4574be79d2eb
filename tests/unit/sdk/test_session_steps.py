"""The dialogue about changes that wait for their step, about checkpoints, and about what steps really used."""

from __future__ import annotations

import pytest

from livetune import messages as m
from support.scripted import LR, SAVE, WD, Script, applied, change, connected


def waits(revision: int, step: int, *firings: str, restores: int = 0, **values: float) -> m.ScheduledReceived:
    return m.ScheduledReceived(
        m.ScheduledChange(revision, step, tuple(values.items()), firings, "why", "ann"), restores
    )


def reopened(script: Script, *scheduled: int, store: str = "store", run: int = 1) -> list[m.Message]:
    script.feed(m.Disconnected(), m.Registered(store, run, 21_000, 10), m.Opened(store, 50, scheduled=scheduled))
    return [message for message in script.take_sent() if not isinstance(message, (m.Open, m.Declare))]


def due(revision: int, step: int, **values: float) -> m.Report:
    outcomes = tuple(m.Outcome(name, m.Status.APPLIED, value) for name, value in values.items())
    return m.Report(revision, step, outcomes, scheduled=True)


def test_it_takes_effect_at_its_step_and_the_daemon_is_told_that_it_has_come() -> None:
    script = connected(LR, WD).feed(waits(12, 9, lr=0.5, wd=1.0))
    assert [m.Pending(9)] == script.others
    script.feed(m.SafePoint(8))
    assert ([], []) == (script.assigned, script.take_sent())
    script.feed(m.SafePoint(9))
    assert [("lr", 0.5, 12, 9), ("wd", 1.0, 12, 9)] == script.assigned
    assert [due(12, 9, lr=0.5, wd=1.0)] == script.take_sent()
    # The change that the daemon makes of it is the same one: it is not taken again.
    script.feed(m.ReportRecorded(14, scheduled=12), m.ChangeReceived(14, (("lr", 0.5), ("wd", 1.0)), scheduled=12))
    script.feed(m.SafePoint(10))
    assert 2 == len(script.assigned)
    assert 0 == script.session.unreported


def test_what_came_before_it_in_the_order_of_the_daemon_is_superseded() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), m.SafePoint(9), change(13, lr=0.3), m.SafePoint(10))
    assert [("lr", 0.5, 12, 9)] == script.assigned  # the daemon has not said yet which of them comes first
    script.take_sent()
    script.feed(m.ReportRecorded(14, scheduled=12), change(15, wd=1.0), m.SafePoint(11))
    first, _ = script.take_sent()
    assert m.Report(13, 11, (m.Outcome("lr", m.Status.SUPERSEDED, 0.5),)) == first
    script.feed(change(16, lr=0.2), m.SafePoint(12))
    assert ("lr", 0.2, 16, 12) == script.assigned[-1]


def test_a_change_of_the_same_safe_point_comes_before_it() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), change(13, lr=0.3), m.SafePoint(9))
    assert [("lr", 0.5, 12, 9)] == script.assigned
    assert [m.Report(13, 9, (m.Outcome("lr", m.Status.SUPERSEDED, 0.5),)), due(12, 9, lr=0.5)] == script.take_sent()


def test_what_took_effect_after_it_while_the_daemon_was_away_gives_way_again() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), m.SafePoint(9), change(13, lr=0.3), m.Disconnected())
    script.feed(m.SafePoint(10))
    assert [("lr", 0.5, 12, 9), ("lr", 0.3, 13, 10)] == script.assigned
    script.take_sent()
    assert [due(12, 9, lr=0.5), applied(13, 10, lr=0.3)] == reopened(script)
    script.feed(m.ReportRecorded(14, scheduled=12), m.ReportRecorded(13), m.SafePoint(11))
    assert ("lr", 0.5, 14, 11) == script.assigned[-1]  # in the daemon's order it is the newer one


def test_a_step_that_is_jumped_over_has_come() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), m.SafePoint(8), m.SafePoint(20))
    assert [("lr", 0.5, 12, 20)] == script.assigned


def test_a_cancelled_one_never_comes() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), m.ScheduledCancelled(12), m.SafePoint(9))
    assert [] == script.assigned


def test_one_that_was_cancelled_while_the_daemon_was_away_never_comes() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), waits(13, 9, lr=0.6))
    assert [] == reopened(script, 13)
    script.feed(m.SafePoint(9))
    assert [("lr", 0.6, 13, 9)] == script.assigned


def test_another_rank_was_first_and_here_it_takes_effect_at_the_same_step() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5), m.ChangeReceived(14, (("lr", 0.5),), scheduled=12))
    script.feed(m.SafePoint(8))
    assert [] == script.assigned
    script.feed(m.SafePoint(9))
    assert [("lr", 0.5, 14, 9)] == script.assigned
    assert [applied(14, 9, lr=0.5)] == script.take_sent()


def test_one_that_the_daemon_does_not_know_any_more_is_let_go() -> None:
    script = connected(LR, SAVE).feed(waits(12, 9, "save", lr=0.5), m.SafePoint(9))
    script.feed(m.FiringConsumed("save", 9), m.ReportRecorded(0, scheduled=12), change(13, lr=0.3), m.SafePoint(10))
    assert ("lr", 0.3, 13, 10) == script.assigned[-1]
    assert [applied(13, 10, lr=0.3)] == script.take_sent()[-1:]


def test_a_firing_is_reported_by_the_revision_that_the_daemon_gives_it() -> None:
    script = connected(SAVE).feed(waits(12, 9, "save"), m.SafePoint(9))
    assert ["save"] == script.shown
    assert [m.Report(12, 9, (), scheduled=True)] == script.take_sent()
    script.feed(m.FiringConsumed("save", 10))
    assert [] == script.take_sent()
    script.feed(m.ReportRecorded(14, scheduled=12))
    assert [m.Report(14, 10, (m.Outcome("save", m.Status.APPLIED),), "save")] == script.take_sent()
    script.feed(m.ChangeReceived(14, (), ("save",), scheduled=12), m.ReportRecorded(14, "save"), m.SafePoint(11))
    assert ["save"] == script.shown
    assert 0 == script.session.unreported


def test_a_report_is_repeated_after_a_break_and_counts_once() -> None:
    script = connected(LR, SAVE).feed(waits(12, 9, "save", lr=0.5), m.SafePoint(9), m.FiringConsumed("save", 9))
    script.take_sent()
    assert [due(12, 9, lr=0.5)] == reopened(script)
    script.feed(m.ReportRecorded(14, scheduled=12))
    assert [m.Report(14, 9, (m.Outcome("save", m.Status.APPLIED),), "save")] == script.take_sent()


def test_a_store_that_was_replaced_forgets_what_waits_and_says_so() -> None:
    script = connected(LR).feed(waits(12, 9, lr=0.5))
    reopened(script, store="other")
    assert any(isinstance(action, m.Warn) and "are forgotten" in action.text for action in script.others)
    script.feed(m.SafePoint(9))
    assert [] == script.assigned


# -- checkpoints --


def restored(store: str = "store", run: int = 1, revision: int = 11, lr: float = 0.7, *waiting: int) -> m.Restored:
    changes = tuple(m.ScheduledChange(rev, 9, (("lr", 0.5),), (), "why", "ann") for rev in waiting)
    return m.Restored(store, run, (("lr", lr, revision),), changes, 5)


def test_a_checkpoint_gives_its_values_at_once_and_the_daemon_is_told_where_they_stood() -> None:
    script = connected(LR).feed(restored())
    assert [("lr", 0.7, 11, 5)] == script.assigned
    assert [m.Declare(((LR, 0.7),), (), (("lr", m.Position("store", 11)),))] == script.take_sent()
    # What the daemon answers to the declaration before it says nothing of this value.
    script.feed(m.Declared((m.VariableAnswer("lr", 0.1, 12, False),)), m.SafePoint(6))
    assert 1 == len(script.assigned)
    script.feed(m.Declared((m.VariableAnswer("lr", 0.7, 13, False),)), m.SafePoint(7))
    assert 1 == len(script.assigned)


def test_what_was_changed_after_the_checkpoint_wins_and_that_is_told() -> None:
    script = connected(LR).feed(restored(), m.Declared((m.VariableAnswer("lr", 0.1, 10, False),)))
    script.feed(m.Declared((m.VariableAnswer("lr", 0.3, 15, True),)), m.SafePoint(6))
    assert ("lr", 0.3, 15, 6) == script.assigned[-1]
    told = [action.text for action in script.others if isinstance(action, m.Warn)]
    assert ["variable 'lr' is 0.3, set at revision 15: that wins over the checkpoint's 0.7"] == told


@pytest.mark.parametrize(
    ("store", "revision", "stays"), [("store", 11, True), ("store", 12, False), ("other", 99, True)]
)
def test_going_back_in_a_run_keeps_what_was_changed_since(store: str, revision: int, stays: bool) -> None:
    script = connected(LR).feed(change(12, lr=0.3), m.SafePoint(6), restored(store, 1, revision))
    assert (0.3 if stays else 0.7) == script.assigned[-1][1]


def test_a_change_that_waits_in_a_checkpoint_and_was_made_since_waits_for_its_step_again() -> None:
    script = Script().feed(m.VariableDeclared(LR), restored("store", 1, 11, 0.7, 12))
    script.feed(m.Registered("store", 1, 21_000, 30), m.Opened("store", 30))
    script.feed(m.Declared((m.VariableAnswer("lr", 0.5, 14, True, scheduled=12),)), m.SafePoint(6))
    assert [("lr", 0.7, 11, 5)] == script.assigned
    script.feed(m.SafePoint(9))
    assert ("lr", 0.5, 14, 9) == script.assigned[-1]


def test_a_change_that_waits_in_a_checkpoint_of_another_run_is_scheduled_anew() -> None:
    script = Script().feed(m.VariableDeclared(LR), restored("store", 1, 11, 0.7, 12))
    script.feed(m.Registered("store", 2, 21_000, 30), m.Opened("store", 30))
    assert m.Reschedule(m.ScheduledChange(12, 9, (("lr", 0.5),), (), "why", "ann")) in script.take_sent()
    script.feed(m.SafePoint(9))  # the daemon is just being told of it
    assert [("lr", 0.7, 11, 5)] == script.assigned
    script.feed(waits(33, 9, restores=12, lr=0.5), m.SafePoint(10))
    assert ("lr", 0.5, 33, 10) == script.assigned[-1]
    assert [due(33, 10, lr=0.5)] == script.take_sent()


def test_one_that_the_daemon_was_just_being_told_of_takes_effect_without_it() -> None:
    script = Script().feed(m.VariableDeclared(LR), restored("store", 1, 11, 0.7, 12))
    script.feed(m.Registered("store", 2, 21_000, 30), m.Opened("store", 30), m.SafePoint(9), m.Disconnected())
    assert m.Pending() == script.others[-1]
    script.feed(m.SafePoint(10))
    assert ("lr", 0.5, 12, 10) == script.assigned[-1]


# -- what steps used --


def witnessed(*values: float) -> Script:
    script = connected(LR, WD).feed(m.Witnessed("lr", more=True))
    for number, value in enumerate(values):
        script.feed(change(12 + number, lr=value))
    return script


def used(report: m.Report, *values: float) -> m.Report:
    (outcome,) = report.outcomes
    return m.Report(report.revision, report.step, (m.Outcome("lr", outcome.status, outcome.effective, used=values),))


def test_an_acknowledgement_waits_until_it_is_known_what_the_step_used() -> None:
    script = witnessed(0.5).feed(m.SafePoint(1))
    assert [] == script.take_sent()
    script.feed(m.Used("wd", (9.0,)), m.Used("lr", (0.25, 0.025)))
    assert [used(applied(12, 1, lr=0.5), 0.25, 0.025)] == script.take_sent()
    script.feed(m.Used("lr", (0.3,)))  # nothing waits for it
    assert [] == script.take_sent()


def test_it_does_not_wait_for_ever() -> None:
    script = witnessed(0.5).feed(m.SafePoint(1), *(m.Tick(1) for _ in range(4)))
    assert [m.Progress(1)] == script.take_sent()
    script.feed(m.Tick(1))
    assert [applied(12, 1, lr=0.5)] == script.take_sent()


@pytest.mark.parametrize("ending", [m.Finish(False, "", 3), m.Disconnected()], ids=["the end", "a break"])
def test_what_waits_is_told_at_the_end_and_after_a_break(ending: m.Event) -> None:
    script = witnessed(0.5).feed(m.SafePoint(1), ending)
    if isinstance(ending, m.Disconnected):
        assert [applied(12, 1, lr=0.5)] == reopened(script)
    else:
        assert [applied(12, 1, lr=0.5), m.End(False, "", 3)] == script.take_sent()


def test_acknowledgements_stay_in_order() -> None:
    script = witnessed(0.5).feed(change(13, wd=1.0), m.SafePoint(1), change(14, wd=2.0), m.SafePoint(2))
    assert [] == script.take_sent()  # those behind it wait with it
    script.feed(m.Used("lr", (0.5,)))
    assert [12, 13, 14] == [report.revision for report in script.take_sent() if isinstance(report, m.Report)]


def test_without_a_promise_nothing_waits() -> None:
    script = witnessed(0.5).feed(m.Witnessed("lr", more=False), m.SafePoint(1))
    assert [applied(12, 1, lr=0.5)] == script.take_sent()
