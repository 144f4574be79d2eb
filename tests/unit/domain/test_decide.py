"""Decisions on one job: changes, registrations, declarations, acknowledgements, the end."""

from __future__ import annotations

import pytest

from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.lapse import lapsed
from livetuned.domain.records import ApplyStatus, Assignment, Changed, Firing, Outcome
from livetuned.domain.specs import TriggerSpec
from support.domain import PROCESS, JobLog, spec


def job_log() -> JobLog:
    log = JobLog()
    log.register()
    log.declare(spec("lr", 0.1, 0.0, 1.0), spec("n", 3), triggers=("save",))
    return log


def applied(target: str, value: float) -> Outcome:
    return Outcome(target, False, ApplyStatus.APPLIED, value)


def reason_of(call: object, *args: object, **kwargs: object) -> Reason:
    with pytest.raises(DomainError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value.reason


def test_a_change_carries_old_and_new_and_leaves_the_state_it_came_from_alone() -> None:
    log = job_log()
    before = log.job
    after = log.set(lr="0.5", n="4")
    assert before is not None
    assert [(0.1, 3), (0.5, 4)] == [
        (job.variables["lr"].desired, job.variables["n"].desired) for job in (before, after)
    ]
    assert after.variables["lr"].revision == after.variables["n"].revision == after.revision


def test_one_bad_assignment_refuses_the_whole_change() -> None:
    job = job_log().job
    assert job is not None
    good = decide.Update("lr", text="0.5")
    for bad, reason in [
        (decide.Update("lr", text="0.6"), Reason.INVALID_REQUEST),
        (decide.Update("n", text="x"), Reason.WRONG_TYPE),
        (decide.Update("nn", text="1"), Reason.VARIABLE_NOT_FOUND),
        (decide.Update("n"), Reason.INVALID_REQUEST),
        (decide.Update("a b", text="1"), Reason.INVALID_NAME),
    ]:
        assert reason is reason_of(decide.set_variables, job, [good, bad])


def test_compare_and_set_looks_at_the_variables_named_only() -> None:
    log = job_log()
    seen = log.revision
    log.set(lr="0.5")
    job = log.job
    assert job is not None
    assert decide.set_variables(job, [decide.Update("n", value=9)], if_revision=seen)
    assert decide.set_variables(job, [decide.Update("lr", value=0.9)], if_revision=log.revision)
    assert Reason.REVISION_MISMATCH is reason_of(
        decide.set_variables, job, [decide.Update("lr", value=0.9)], if_revision=seen
    )


def test_limits_of_one_change() -> None:
    job = job_log().job
    assert job is not None
    many = [decide.Update("lr", value=0.5)] * (limits.ASSIGNMENTS_PER_CHANGE + 1)
    assert Reason.LIMIT_EXCEEDED is reason_of(decide.set_variables, job, many)
    one = [decide.Update("lr", value=0.5)]
    assert Reason.LIMIT_EXCEEDED is reason_of(decide.set_variables, job, one, reason="x" * (limits.TEXT_BYTES + 1))
    assert Reason.LIMIT_EXCEEDED is reason_of(decide.set_variables, job, one, request_id="x" * 201)


def test_the_newest_request_ids_are_remembered_and_not_many_more() -> None:
    log = job_log()
    count = limits.REQUEST_IDS_PER_JOB + 300
    for number in range(count):
        assert log.job is not None
        log.record(decide.set_variables(log.job, [decide.Update("n", value=number)], request_id=str(number)))
    assert log.job is not None
    requests = log.job.requests
    assert all(requests.get(str(number)) for number in range(count - limits.REQUEST_IDS_PER_JOB, count))
    assert 0 == requests.get("0")
    assert limits.REQUEST_IDS_PER_JOB <= len(requests) < limits.REQUEST_IDS_PER_JOB + 300
    assert requests == log.job.requests.__class__(dict(requests.items()))


def test_every_firing_is_consumed_once_and_none_is_merged() -> None:
    log = job_log()
    for _ in range(3):
        assert log.job is not None
        log.record(decide.fire_triggers(log.job, ["save"]))
    assert log.job is not None
    pending = log.job.triggers["save"].pending
    assert 3 == len(pending) == log.job.triggers["save"].fired
    consumed = [Outcome("save", True, ApplyStatus.APPLIED, None)]
    log.record(decide.report_apply(log.job, 0, "a", pending[1], 7, consumed))
    assert log.job is not None
    assert (pending[0], pending[2]) == log.job.triggers["save"].pending
    assert decide.report_apply(log.job, 0, "a", pending[1], 7, consumed) is None


def test_firings_that_nobody_consumes_are_bounded() -> None:
    log = job_log()
    for _ in range(limits.PENDING_FIRINGS):
        assert log.job is not None
        log.record(decide.fire_triggers(log.job, ["save"]))
    assert log.job is not None
    assert Reason.LIMIT_EXCEEDED is reason_of(decide.fire_triggers, log.job, ["save"])


def test_a_repeated_acknowledgement_records_nothing() -> None:
    log = job_log()
    change = log.set(lr="0.5").revision
    assert log.job is not None
    log.record(decide.report_apply(log.job, 0, "a", change, 42, [applied("lr", 0.5)]))
    assert log.job is not None
    assert 42 == log.job.variables["lr"].applied[0].step
    assert decide.report_apply(log.job, 0, "a", change, 43, [applied("lr", 0.5)]) is None


def test_acknowledgements_of_what_does_not_exist_are_refused() -> None:
    job = job_log().job
    assert job is not None
    for revision, target, reason in [
        (0, "lr", Reason.INVALID_REQUEST),
        (99, "lr", Reason.INVALID_REQUEST),
        (1, "nope", Reason.VARIABLE_NOT_FOUND),
    ]:
        assert reason is reason_of(decide.report_apply, job, 0, "a", revision, 1, [applied(target, 0.5)])
    assert Reason.NOT_REGISTERED is reason_of(decide.report_apply, job, 0, "b", 1, 1, [applied("lr", 0.5)])
    assert Reason.INVALID_REQUEST is reason_of(decide.report_apply, job, 0, "a", 1, 1, [])


def test_a_value_the_job_refused_stays_out_of_applied_but_a_superseded_one_is_acknowledged() -> None:
    log = job_log()
    first, second = log.set(lr="0.5").revision, log.set(lr="0.6").revision
    assert log.job is not None
    superseded = Outcome("lr", False, ApplyStatus.SUPERSEDED, 0.6)
    log.record(decide.report_apply(log.job, 0, "a", first, 9, [superseded]))
    assert log.job is not None
    assert {} == log.job.variables["lr"].applied
    refused = Outcome("lr", False, ApplyStatus.REFUSED, 0.1, "too high")
    log.record(decide.report_apply(log.job, 0, "a", second, 9, [refused]))
    assert log.job is not None
    assert 0.1 == log.job.variables["lr"].applied[0].value


def test_a_new_process_takes_up_a_lost_run_with_what_was_asked_and_a_program_that_was_edited() -> None:
    log = job_log()
    log.set(lr="0.5", n="7")
    log.register("b")
    job = log.declare(spec("lr", 0.2, 0.0, 2.0), spec("n", 1, maximum=5), spec("new", True), instance_id="b")
    assert (1, 21000) == (job.run, job.port)
    assert (0.5, True, 2.0) == (
        job.variables["lr"].desired,
        job.variables["lr"].from_change,
        job.variables["lr"].spec.maximum,
    )
    # 7 is not allowed any more: the program's own value holds.
    assert (1, False) == (job.variables["n"].desired, job.variables["n"].from_change)
    assert job.variables["new"].desired is True


def test_a_variable_whose_type_was_edited_starts_anew() -> None:
    log = JobLog()
    log.register()
    log.declare(spec("x", True))
    log.register("b")
    desired = log.declare(spec("x", 1), instance_id="b").variables["x"].desired
    assert (int, 1) == (type(desired), desired)


def test_a_finished_job_begins_a_new_run_and_keeps_nothing_of_the_old_one() -> None:
    log = job_log()
    log.set(lr="0.5")
    assert log.job is not None
    log.record(decide.end(log.job, 0, "a", failed=False, message="", step=9))
    assert log.job is not None
    assert Reason.JOB_ENDED is reason_of(decide.set_variables, log.job, [decide.Update("lr", value=0.6)])
    assert Reason.JOB_ENDED is reason_of(decide.fire_triggers, log.job, ["save"])
    assert 0 == log.job.port
    job = log.register("b", port=21001)
    assert (2, 21001, {}) == (job.run, job.port, job.variables)


def test_only_rank_0_ends_a_job() -> None:
    log = JobLog()
    log.register(world_size=2)
    log.register("b", rank=1, world_size=2)
    assert log.job is not None
    assert decide.end(log.job, 1, "b", failed=False, message="", step=1) is None
    assert decide.end(log.job, 0, "a", failed=True, message="boom", step=1) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "A B"}, Reason.INVALID_NAME),
        ({"rank": 2}, Reason.INVALID_REQUEST),
        ({"rank": -1}, Reason.INVALID_REQUEST),
        ({"instance_id": ""}, Reason.INVALID_REQUEST),
        ({"instance_id": "x" * 201}, Reason.LIMIT_EXCEEDED),
        ({"world_size": 0}, Reason.LIMIT_EXCEEDED),
        ({"active_jobs": limits.JOBS}, Reason.LIMIT_EXCEEDED),
    ],
)
def test_registrations_that_are_refused(changes: dict[str, object], reason: Reason) -> None:
    call: dict[str, object] = {
        "name": "vgg", "rank": 0, "world_size": 2, "instance_id": "a", "process": PROCESS, "port": 1, "active_jobs": 0,
    }  # fmt: skip
    call.update(changes)
    assert reason is reason_of(decide.register, None, call.pop("name"), **call)


def test_names_of_one_job_are_bounded_and_shared_by_variables_and_triggers() -> None:
    log = JobLog()
    log.register()
    log.declare(*(spec(f"v{number}", 0.0) for number in range(limits.NAMES_PER_JOB - 1)), triggers=("t",))
    assert log.job is not None
    declarations = [decide.Declaration(spec("more", 0.0), 0.0), decide.Declaration(spec("t", 0.0), 0.0)]
    declared, errors = decide.declare(log.job, 0, "a", declarations, [TriggerSpec("v0"), TriggerSpec("other")])
    assert declared is None
    assert {
        "more": Reason.LIMIT_EXCEEDED,
        "t": Reason.DECLARATION_CONFLICT,
        "v0": Reason.DECLARATION_CONFLICT,
        "other": Reason.LIMIT_EXCEEDED,
    } == {name: error.reason for name, error in errors.items()}


def test_a_job_that_does_not_exist_names_the_nearest() -> None:
    error = decide.job_not_found("vg16", ["vgg16", "bert"])
    assert "vgg16" == error.metadata["nearest"]
    assert "did you mean 'vgg16'?" in error.message


def test_what_nobody_acknowledged_waits_or_has_lapsed() -> None:
    log = job_log()
    first, second = log.set(lr="0.5").revision, log.set(lr="0.6", n="4").revision
    one = Changed("", "", "", (Assignment("lr", 0.1, 0.5),), ())
    two = Changed("", "", "", (Assignment("lr", 0.5, 0.6), Assignment("n", 3, 4)), ())
    assert log.job is not None
    assert [] == lapsed(log.job, first, one, ())
    log.record(decide.report_apply(log.job, 0, "a", second, 9, [applied("lr", 0.6)]))
    assert log.job is not None
    assert ["lr"] == lapsed(log.job, first, one, ())
    assert [] == lapsed(log.job, second, two, ("lr",))
    log.record(decide.fire_triggers(log.job, ["save"]))
    assert log.job is not None
    fired = Changed("", "", "", (), (Firing("save", 1),))
    assert [] == lapsed(log.job, log.revision, fired, ())
    log.record(decide.end(log.job, 0, "a", failed=False, message="", step=9))
    ended_at = log.revision
    assert log.job is not None
    assert ["n"] == lapsed(log.job, second, two, ("lr",))
    assert ["save"] == lapsed(log.job, ended_at - 1, fired, ())
    job = log.register("b")  # a new run knows nothing of the old one's names
    assert ["n"] == lapsed(job, second, two, ("lr",))
    assert ["save"] == lapsed(job, ended_at - 1, fired, ())
