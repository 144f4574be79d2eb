"""Changes that wait for their step: what is decided, and what the state makes of it."""

from __future__ import annotations

import pytest

from livetuned.domain import decide, limits
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.records import ApplyStatus, Changed, Outcome, Scheduled
from livetuned.store import codec
from support.domain import JobLog, spec


@pytest.fixture
def log() -> JobLog:
    log = JobLog()
    log.register()
    log.declare(spec("lr", 0.1, 0.0, 1.0), spec("wd", 0.0), triggers=("save",))
    return log


def schedule(log: JobLog, step: int, *, reached: int = 0, relative: bool = False, **texts: str) -> int:
    assert log.job is not None
    change = decide.set_variables(
        log.job, [decide.Update(name, text=text) for name, text in texts.items()], reason="why"
    )
    log.record(decide.schedule(log.job, change, decide.When(step, relative), reached))
    return log.revision


def refusal(call: object, *arguments: object, **named: object) -> DomainError:
    with pytest.raises(DomainError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    return caught.value


def test_what_waits_is_not_desired_until_its_step_has_come(log: JobLog) -> None:
    revision = schedule(log, 9, lr="0.5")
    assert log.job is not None
    assert 0.1 == log.job.variables["lr"].desired
    assert [revision] == [waiting for waiting, _ in log.job.waiting()]
    log.set(lr="0.3")  # made meanwhile
    made = decide.due(log.job, 0, "a", revision)
    assert made is not None
    assert (0.3, 0.5, revision, "why") == (
        made.assignments[0].old,
        made.assignments[0].new,
        made.scheduled,
        made.reason,
    )
    log.record(made)
    assert (0.5, log.revision) == (log.job.variables["lr"].desired, log.job.variables["lr"].revision)
    assert [] == list(log.job.waiting())
    assert decide.due(log.job, 0, "a", revision) is None  # a repeat
    assert log.revision == log.job.scheduled[revision].made
    applied = decide.report_apply(
        log.job, 0, "a", log.revision, 9, [Outcome("lr", False, ApplyStatus.APPLIED, 0.5, used=(0.25,))]
    )
    assert applied is not None
    assert applied == codec.decode("applied", codec.encode(applied))


def test_steps_are_counted_from_where_the_job_is(log: JobLog) -> None:
    revision = schedule(log, 5, reached=20, relative=True, lr="0.5")
    assert log.job is not None
    assert 25 == log.job.scheduled[revision].scheduled.step


@pytest.mark.parametrize(
    ("when", "reached", "reason", "text"),
    [
        (decide.When(20), 20, Reason.STEP_PASSED, "step 20 has passed: job 'vgg' is at step 20"),
        (decide.When(0, True), 20, Reason.INVALID_REQUEST, "can't take effect in 0 steps"),
        (decide.When(-1), 0, Reason.STEP_PASSED, "step -1 has passed"),
        (decide.When(2**63 - 1, True), 1, Reason.INVALID_REQUEST, "is none"),
    ],
)
def test_a_step_that_can_not_be_is_refused(
    log: JobLog, when: decide.When, reached: int, reason: Reason, text: str
) -> None:
    change = Changed("", "", "", (), ())
    error = refusal(decide.schedule, log.job, change, when, reached)
    assert reason is error.reason
    assert text in error.message


def test_so_many_may_wait_and_no_more(log: JobLog) -> None:
    for step in range(limits.SCHEDULED):
        schedule(log, step + 1, lr="0.5")
    error = refusal(schedule, log, 5, lr="0.5")
    assert (Reason.LIMIT_EXCEEDED, "scheduled") == (error.reason, error.metadata["limit"])
    assert log.job is not None
    # As many that do not wait any more are remembered, and no more.
    for revision in list(log.job.scheduled):
        log.record(decide.cancel(log.job, revision))
    for step in range(10):
        schedule(log, step + 1, lr="0.5")
        log.record(decide.cancel(log.job, log.revision))
    assert limits.SCHEDULED == len(log.job.scheduled)


def test_a_cancelled_change_does_not_wait_but_is_made_if_it_took_effect_all_the_same(log: JobLog) -> None:
    revision = schedule(log, 9, lr="0.5")
    assert log.job is not None
    log.record(decide.cancel(log.job, revision, actor="ann", reason="no"))
    assert [] == list(log.job.waiting())
    assert "it was cancelled" in refusal(decide.cancel, log.job, revision).message
    assert "was cancelled; there is nothing to undo" in refusal(decide.made_of, log.job, revision).message
    log.record(decide.due(log.job, 0, "a", revision))
    assert 0.5 == log.job.variables["lr"].desired
    assert log.revision == decide.made_of(log.job, revision)
    assert f"it was made, at revision {log.revision}" in refusal(decide.cancel, log.job, revision).message


def test_a_value_that_a_new_program_does_not_allow_is_left_out(log: JobLog) -> None:
    revision = schedule(log, 9, lr="0.5", wd="3")
    log.register("b")
    log.declare(spec("lr", 0.1, 0.0, 0.2), spec("wd", 0.0), instance_id="b")
    assert log.job is not None
    made = decide.due(log.job, 0, "b", revision)
    assert made is not None
    assert ["wd"] == [item.variable for item in made.assignments]


def test_an_unknown_one_is_never_due(log: JobLog) -> None:
    error = refusal(decide.due, log.job, 0, "a", 99)
    assert Reason.CHANGE_NOT_FOUND is error.reason
    assert Reason.NOT_REGISTERED is refusal(decide.due, log.job, 0, "stranger", 99).reason
    log.record(decide.end(log.record(None), 0, "a", failed=False, message="", step=5))
    assert Reason.JOB_ENDED is refusal(decide.due, log.job, 0, "a", 99).reason


def test_a_new_run_begins_without_what_waited_and_takes_it_from_a_checkpoint_once(log: JobLog) -> None:
    revision = schedule(log, 9, lr="0.5")
    log.record(decide.end(log.record(None), 0, "a", failed=False, message="", step=5))
    assert log.job is not None
    assert [] == list(log.job.waiting())
    log.register("b")
    log.declare(spec("lr", 0.1, 0.0, 1.0), triggers=("save",), instance_id="b")
    kept = decide.Kept(revision, 9, (("lr", 0.5),), ("save",), "ann", "why")
    scheduled = decide.reschedule(log.job, 0, "b", kept)
    assert isinstance(scheduled, Scheduled)
    log.record(scheduled)
    assert [(log.revision, 9)] == [(waiting, state.scheduled.step) for waiting, state in log.job.waiting()]
    assert decide.reschedule(log.job, 0, "b", kept) is None
    wrong = decide.Kept(77, 9, (("lr", 5.0),), (), "ann", "")
    assert Reason.ABOVE_MAXIMUM is refusal(decide.reschedule, log.job, 0, "b", wrong).reason
    unknown = decide.Kept(78, 9, (("no", 5.0),), (), "ann", "")
    assert Reason.VARIABLE_NOT_FOUND is refusal(decide.reschedule, log.job, 0, "b", unknown).reason


def test_the_same_request_id_is_for_the_same_step() -> None:
    made = Changed("", "", "id", (), ())
    decide.check_same_step(made, 9, decide.When(9))
    decide.check_same_step(made, 9, decide.When(3, True))
    decide.check_same_step(made, 0, None)
    for step, when in ((9, None), (9, decide.When(8)), (0, decide.When(9)), (0, decide.When(9, True))):
        assert Reason.REQUEST_ID_REUSED is refusal(decide.check_same_step, made, step, when).reason


@pytest.mark.parametrize(
    ("restored", "changed", "desired"),
    [
        pytest.param(None, True, 0.3, id="no checkpoint"),
        pytest.param(0, False, 0.7, id="of another store, only declared here"),
        pytest.param(0, True, 0.3, id="of another store, changed here"),
        pytest.param(2, True, 0.3, id="changed after it"),
        pytest.param(3, True, 0.7, id="not changed after it"),
    ],
)
def test_a_value_of_a_checkpoint_counts_unless_a_change_came_after_it(
    log: JobLog, restored: int | None, changed: bool, desired: float
) -> None:
    if changed:
        log.set(lr="0.3")  # revision 3
    assert log.job is not None
    declared, errors = decide.declare(
        log.job, 0, "a", [decide.Declaration(spec("lr", 0.1, 0.0, 1.0), 0.7, restored)], []
    )
    assert {} == errors
    job = log.record(declared)
    assert desired == job.variables["lr"].desired
    if declared is not None:
        # The process uses it already.
        assert (0.7, 0) == (job.variables["lr"].applied[0].value, job.variables["lr"].applied[0].revision)
        assert declared == codec.decode("declared", codec.encode(declared))


def test_what_is_stored_is_read_back(log: JobLog) -> None:
    schedule(log, 9, lr="0.5")
    assert log.job is not None
    log.record(decide.cancel(log.job, log.revision, actor="ann", reason="no"))
    revision = schedule(log, 10, lr="0.5")
    log.record(decide.due(log.job, 0, "a", revision))
    schedule(log, 11, wd="1")
    assert log.job == codec.decode_job(codec.encode_job(log.job))
    for state in log.job.scheduled.values():
        assert state.scheduled == codec.decode("scheduled", codec.encode(state.scheduled))
