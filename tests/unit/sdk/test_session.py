"""The dialogue of one process with the daemon, scripted: repeats, breaks, a replaced store, values of nobody."""

from __future__ import annotations

from livetune import messages as m
from livetune.specs import VariableSpec
from livetune.wire import request_from_message
from support.scripted import LR, SAVE, WD, Script, applied, change, connected


def test_what_was_declared_before_the_connection_is_declared_when_the_stream_opens() -> None:
    script = Script().feed(m.VariableDeclared(LR), m.TriggerDeclared(SAVE), m.Registered("store", 1, 21_000, 10))
    assert [m.Open(10)] == script.take_sent()
    script.feed(m.Opened("store", 10))
    assert [m.Declare(((LR, 0.1),), (SAVE,))] == script.take_sent()
    script.feed(m.VariableDeclared(WD))
    assert [m.Declare(((WD, 0.0),), ())] == script.take_sent()


def test_a_change_is_applied_whole_at_the_safe_point_and_reported_with_its_step() -> None:
    script = connected(LR, WD).feed(change(12, lr=0.5, wd=0.1))
    assert [m.Pending()] == script.others
    assert [] == script.assigned
    script.feed(m.SafePoint(42))
    assert [("lr", 0.5, 12, 42), ("wd", 0.1, 12, 42)] == script.assigned
    assert [applied(12, 42, lr=0.5, wd=0.1)] == script.take_sent()
    record = script.others[-1]
    assert m.Record(m.AppliedChange(12, 42, {"lr": (0.1, 0.5), "wd": (0.0, 0.1)}, "why", "ann")) == record


def test_of_several_changes_at_one_safe_point_the_last_counts_and_the_others_are_superseded() -> None:
    script = connected(LR, WD).feed(change(12, lr=0.5, wd=0.1), change(13, lr=0.6), m.SafePoint(42))
    assert [("wd", 0.1, 12, 42), ("lr", 0.6, 13, 42)] == script.assigned
    first, second = script.take_sent()
    assert isinstance(first, m.Report)
    assert [m.Status.SUPERSEDED, m.Status.APPLIED] == [outcome.status for outcome in first.outcomes]
    assert applied(13, 42, lr=0.6) == second


def test_a_change_that_the_program_cannot_take_is_refused_and_does_not_supersede() -> None:
    script = connected(LR).feed(change(12, lr=0.5), change(13, lr=7.0), change(14, lr="x"), change(15, other=1.0))
    script.feed(change(16, lr=None), m.SafePoint(42))
    assert [("lr", 0.5, 12, 42)] == script.assigned
    statuses = [(r.revision, r.outcomes[0].status) for r in script.take_sent() if isinstance(r, m.Report)]
    refused = m.Status.REFUSED
    assert [(12, m.Status.APPLIED), (13, refused), (14, refused), (15, refused), (16, refused)] == statuses


def test_a_repeated_change_is_applied_once() -> None:
    script = connected(LR).feed(
        change(12, lr=0.5), change(12, lr=0.5), m.SafePoint(1), change(12, lr=0.5), m.SafePoint(2)
    )
    assert [("lr", 0.5, 12, 1)] == script.assigned


def test_reports_are_repeated_after_a_break_until_they_are_recorded() -> None:
    script = connected(LR).feed(change(12, lr=0.5), m.SafePoint(1), change(13, lr=0.6), m.SafePoint(2))
    script.feed(m.ReportRecorded(12), m.Disconnected())
    script.take_sent()
    script.feed(m.Registered("store", 1, 21_000, 10), m.Opened("store", 20))
    assert [m.Open(13), m.Declare(((LR, 0.6),), ()), applied(13, 2, lr=0.6)] == script.take_sent()
    script.feed(m.ReportRecorded(13))
    assert 0 == script.session.unreported


def test_a_change_taken_while_cut_off_is_reported_later() -> None:
    script = connected(LR).feed(change(12, lr=0.5), m.Disconnected(), m.SafePoint(5))
    assert [("lr", 0.5, 12, 5)] == script.assigned
    assert [] == script.take_sent()
    script.feed(m.Registered("store", 1, 21_000, 10), m.Opened("store", 12))
    assert applied(12, 5, lr=0.5) == script.take_sent()[-1]


def test_firings_are_shown_once_each_and_consumed_in_order() -> None:
    script = connected(SAVE).feed(change(12, "save"), change(13, "save"))
    assert [] == script.shown
    script.feed(m.SafePoint(7))
    assert ["save", "save"] == script.shown
    script.feed(m.FiringConsumed("save", 7), m.FiringConsumed("save", 8))
    consumed = (m.Outcome("save", m.Status.APPLIED),)
    assert [m.Report(12, 7, consumed, "save"), m.Report(13, 8, consumed, "save")] == script.take_sent()


def test_a_firing_that_is_repeated_after_it_was_recorded_is_not_shown_again() -> None:
    script = connected(SAVE).feed(change(12, "save"), m.SafePoint(7), m.FiringConsumed("save", 7))
    script.feed(m.ReportRecorded(12, "save"), change(12, "save"), m.SafePoint(8))
    assert ["save"] == script.shown


def test_a_firing_that_comes_by_two_ways_is_shown_once() -> None:
    script = connected(SAVE).feed(
        m.Declared((), (m.TriggerAnswer("save", (5, 12)),)), change(12, "save"), m.SafePoint(1)
    )
    assert ["save", "save"] == script.shown
    script.feed(m.Disconnected(), m.Registered("store", 1, 21_000, 10), m.Opened("store", 12))
    script.feed(m.Declared((), (m.TriggerAnswer("save", (5, 12)),)), m.SafePoint(2))
    assert ["save", "save"] == script.shown


def test_a_value_asked_for_while_the_process_was_away_is_applied_and_acknowledged() -> None:
    answers = (m.VariableAnswer("lr", 0.5, 7, True), m.VariableAnswer("wd", 0.1, 7, True))
    script = connected(LR, WD).feed(m.Declared(answers), m.SafePoint(1))
    assert [("lr", 0.5, 7, 1), ("wd", 0.1, 7, 1)] == script.assigned
    assert [applied(7, 1, lr=0.5, wd=0.1)] == script.take_sent()
    assert [("lr", 0.5, 7, 1), ("wd", 0.1, 7, 1)] == script.feed(m.Declared(answers), m.SafePoint(2)).assigned


def test_a_value_that_came_with_the_declaration_and_as_a_change_is_applied_once() -> None:
    script = connected(LR).feed(
        m.Declared((m.VariableAnswer("lr", 0.5, 12, True),)), m.SafePoint(1), change(12, lr=0.5)
    )
    script.feed(m.SafePoint(2))
    assert [("lr", 0.5, 12, 1)] == script.assigned


def test_an_older_value_never_overwrites_a_newer_one() -> None:
    script = connected(LR).feed(m.Declared((m.VariableAnswer("lr", 0.5, 15, True),)), m.SafePoint(1))
    script.feed(change(12, lr=0.3), m.SafePoint(2))
    assert [("lr", 0.5, 15, 1)] == script.assigned


def test_a_value_that_no_change_set_is_taken_over_without_acknowledgement() -> None:
    script = connected(LR).feed(m.Declared((m.VariableAnswer("lr", 0.3, 4, False),)), m.SafePoint(1))
    assert [("lr", 0.3, 0, 1)] == script.assigned
    assert [] == script.take_sent()


def test_a_refused_declaration_warns_once_and_works_locally() -> None:
    answer = m.Declared(
        (m.VariableAnswer("lr", None, 0, False, "declared otherwise"),), (m.TriggerAnswer("save", (), "no"),)
    )
    script = connected(LR, SAVE).feed(answer, answer, m.SafePoint(1))
    assert 2 == len([action for action in script.others if isinstance(action, m.Warn)])
    assert [] == script.assigned


def test_a_replaced_store_learns_the_values_in_use_and_old_revisions_mean_nothing() -> None:
    script = connected(LR).feed(change(12, lr=0.5), m.SafePoint(1), change(13, lr=0.7), m.Disconnected())
    script.take_sent()
    script.feed(m.Registered("other", 1, 21_000, 1), m.Opened("other", 1), m.SafePoint(2))
    assert [m.Open(1), m.Declare(((LR, 0.5),), ())] == script.take_sent()
    script.feed(m.Declared((m.VariableAnswer("lr", 0.5, 2, False),)), change(3, lr=0.9), m.SafePoint(3))
    assert [("lr", 0.5, 12, 1), ("lr", 0.9, 3, 3)] == script.assigned


def test_a_position_that_the_daemon_does_not_know_begins_anew() -> None:
    script = connected(LR).feed(change(12, lr=0.5), m.SafePoint(1), m.Disconnected(position_refused=True))
    script.take_sent()
    script.feed(m.Registered("store", 1, 21_000, 3))
    assert [m.Open(3)] == script.take_sent()


def test_progress_is_told_when_the_step_moved() -> None:
    script = connected(LR).feed(m.Tick(5), m.Tick(5), m.Tick(6))
    assert [m.Progress(5), m.Progress(6)] == script.take_sent()
    assert [] == script.feed(m.Disconnected(), m.Tick(7)).take_sent()


def test_the_end_is_said_now_or_when_the_stream_opens() -> None:
    script = connected(LR).feed(m.Finish(True, "boom", 9))
    assert [m.End(True, "boom", 9)] == script.take_sent()
    script.feed(m.Disconnected(), m.Registered("store", 1, 21_000, 10), m.Opened("store", 10))
    assert m.End(True, "boom", 9) == script.take_sent()[-1]
    assert [m.Ended()] == script.feed(m.EndRecorded()).others


def test_a_change_that_comes_in_several_answers_is_applied_whole() -> None:
    script = connected().feed(m.VariableDeclared(LR), m.VariableDeclared(WD))
    script.feed(m.Declared((m.VariableAnswer("lr", 0.5, 7, True),)), m.SafePoint(1))
    assert [] == script.assigned
    script.feed(m.Declared((m.VariableAnswer("wd", 0.1, 7, True),)), m.SafePoint(2))
    assert [("lr", 0.5, 7, 2), ("wd", 0.1, 7, 2)] == script.assigned
    assert applied(7, 2, lr=0.5, wd=0.1) == script.take_sent()[-1]


def test_what_waits_for_an_answer_is_asked_for_anew_when_the_stream_breaks() -> None:
    script = connected().feed(m.VariableDeclared(LR), m.VariableDeclared(WD))
    script.feed(m.Declared((m.VariableAnswer("lr", 0.5, 7, True),)), m.Disconnected(), m.SafePoint(1))
    assert [("lr", 0.5, 7, 1)] == script.assigned


def test_parts_of_a_change_that_are_declared_later_keep_reports_of_their_own() -> None:
    script = connected(LR).feed(m.Declared((m.VariableAnswer("lr", 0.5, 7, True),)), m.SafePoint(1))
    script.feed(m.VariableDeclared(WD), m.Declared((m.VariableAnswer("wd", 0.1, 7, True),)), m.SafePoint(2))
    script.feed(m.Disconnected(), m.Registered("store", 1, 21_000, 10))
    script.take_sent()
    script.feed(m.Opened("store", 10))
    assert [applied(7, 1, lr=0.5), applied(7, 2, wd=0.1)] == script.take_sent()[1:]
    script.feed(m.ReportRecorded(7))
    assert 1 == script.session.unreported


def test_what_was_superseded_or_refused_tells_the_value_in_use() -> None:
    script = connected(LR).feed(change(12, lr=0.5), change(13, lr=7.0), change(14, lr=0.6), m.SafePoint(42))
    outcomes = [report.outcomes[0] for report in script.take_sent() if isinstance(report, m.Report)]
    assert [(m.Status.SUPERSEDED, 0.6), (m.Status.REFUSED, 0.6), (m.Status.APPLIED, 0.6)] == [
        (outcome.status, outcome.effective) for outcome in outcomes
    ]
    script.feed(m.Declared((m.VariableAnswer("lr", 0.9, 20, True),)), m.SafePoint(43), change(18, lr=0.2))
    script.take_sent()
    script.feed(m.SafePoint(44))
    assert [m.Report(18, 44, (m.Outcome("lr", m.Status.SUPERSEDED, 0.9),))] == script.take_sent()


def test_a_firing_of_a_replaced_store_is_consumed_without_a_report_and_hides_none_of_the_new_store() -> None:
    script = connected(SAVE).feed(change(12, "save"), m.SafePoint(1), m.Disconnected())
    script.feed(m.Registered("other", 1, 21_000, 3), m.Opened("other", 3), change(12, "save"), m.SafePoint(2))
    assert ["save", "save"] == script.shown
    script.take_sent()
    script.feed(m.FiringConsumed("save", 2))
    assert [] == script.take_sent()
    script.feed(m.FiringConsumed("save", 3))
    assert [m.Report(12, 3, (m.Outcome("save", m.Status.APPLIED),), "save")] == script.take_sent()


def test_answers_about_what_the_program_never_declared_are_passed_over() -> None:
    stray = m.Declared((m.VariableAnswer("nobody", 1.0, 7, True),), (m.TriggerAnswer("nobody", (7,)),))
    assert [] == connected(LR).feed(stray, m.SafePoint(1)).others


def test_declarations_are_spread_over_messages_that_the_daemon_accepts() -> None:
    script = Script()
    for number in range(100):
        script.feed(m.VariableDeclared(VariableSpec.declare(f"v{number}", 0.1, doc="d" * 4_000)))
    script.feed(m.TriggerDeclared(SAVE), m.Registered("store", 1, 21_000, 10), m.Opened("store", 10))
    declares = [message for message in script.take_sent() if isinstance(message, m.Declare)]
    assert 101 == sum(len(message.variables) + len(message.triggers) for message in declares)
    assert 3 == len(declares)
    for message in declares:
        request = request_from_message(message, job="vgg", instance_id="i", rank=0, token="t")
        assert request.ByteSize() < 256 * 1024


def test_a_firing_that_was_recorded_before_its_change_came_is_not_shown_again() -> None:
    script = connected(SAVE).feed(m.Declared((), (m.TriggerAnswer("save", (12,)),)), m.SafePoint(1))
    script.feed(m.FiringConsumed("save", 1), m.ReportRecorded(12, "save"))
    script.feed(m.Disconnected(), m.Registered("store", 1, 21_000, 10), m.Opened("store", 12))
    script.feed(change(12, "save"), m.SafePoint(2))
    assert ["save"] == script.shown


def test_an_older_firing_that_comes_later_is_consumed_first() -> None:
    script = connected(SAVE).feed(change(12, "save"), m.SafePoint(1))
    script.feed(m.Declared((), (m.TriggerAnswer("save", (5, 12)),)), m.SafePoint(2))
    script.feed(m.FiringConsumed("save", 2), m.FiringConsumed("save", 3))
    assert [5, 12] == [report.revision for report in script.sent if isinstance(report, m.Report)]


def test_what_waits_for_an_answer_is_not_overtaken_by_later_changes() -> None:
    script = connected().feed(m.VariableDeclared(LR), m.VariableDeclared(WD))
    script.feed(m.Declared((m.VariableAnswer("lr", 0.5, 12, True),)), change(13, lr=0.6), m.SafePoint(1))
    assert [] == script.assigned
    script.feed(m.Declared((m.VariableAnswer("wd", 0.1, 12, True),)), m.SafePoint(2))
    assert [("wd", 0.1, 12, 2), ("lr", 0.6, 13, 2)] == script.assigned
