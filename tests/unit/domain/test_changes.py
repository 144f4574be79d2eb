"""Changes beyond the plain set: undo, conditions, merged firings, request ids, restart policies, adoption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from livetuned.domain import decide
from livetuned.domain.errors import DomainError, Reason
from livetuned.domain.history import ChangeFilter
from livetuned.domain.job import Job
from livetuned.domain.records import Applied, ApplyStatus, Changed, Outcome, Record
from livetuned.domain.specs import RestartPolicy, VariableSpec
from support.domain import PROCESS, JobLog, spec


def reason_of(work: Callable[..., object], *arguments: object, **keywords: object) -> Reason:
    with pytest.raises(DomainError) as caught:
        work(*arguments, **keywords)
    return caught.value.reason


def job_log(*specs: VariableSpec) -> JobLog:
    log = JobLog()
    log.register()
    log.declare(*(specs or (spec("lr", 0.5, 0.0, 1.0), spec("wd", 0.0))), triggers=("save", "stop"))
    return log


def job_of(log: JobLog) -> Job:
    assert log.job is not None
    return log.job


def change(log: JobLog, **texts: str) -> Record:
    payload = decide.set_variables(job_of(log), [decide.Update(name, text=text) for name, text in texts.items()])
    log.record(payload)
    return Record(log.revision, 0, log.name, payload)


def test_undo_restores_what_the_change_replaced_and_can_be_undone_itself() -> None:
    log = job_log()
    changed = change(log, lr="0.1", wd="2")
    log.record(decide.undo(job_of(log), changed))
    undoing = Record(log.revision, 0, log.name, decide.undo(job_of(log), changed, force=True))
    assert {"lr": 0.5, "wd": 0.0} == {name: state.desired for name, state in job_of(log).variables.items()}
    payload = undoing.payload
    assert isinstance(payload, Changed)
    assert (f"undo of {changed.revision}", changed.revision) == (payload.reason, payload.undoes)
    log.record(decide.undo(job_of(log), Record(log.revision, 0, log.name, log_payload(log, changed))))
    assert 0.1 == job_of(log).variables["lr"].desired


def log_payload(log: JobLog, undone: Record) -> Changed:
    """The undo just made, as it was recorded."""
    assert isinstance(undone.payload, Changed)
    items = tuple(replace(item, old=item.new, new=item.old) for item in undone.payload.assignments)
    return Changed("", "", "", items, (), undone.revision)


def test_undo_is_refused_where_it_would_overwrite_unless_forced() -> None:
    log = job_log()
    first = change(log, lr="0.1", wd="1")
    change(log, wd="2")
    assert Reason.UNDO_CONFLICT is reason_of(decide.undo, job_of(log), first)
    log.record(decide.undo(job_of(log), first, force=True))
    assert {"lr": 0.5, "wd": 0.0} == {name: state.desired for name, state in job_of(log).variables.items()}


def test_what_cannot_be_undone_is_named() -> None:
    log = job_log()
    fired = decide.fire_triggers(job_of(log), ["save"])
    assert fired is not None
    assert Reason.INVALID_REQUEST is reason_of(decide.undo, job_of(log), Record(9, 0, log.name, fired))
    other = Record(9, 0, log.name, Changed("", "", "", (), ()))
    assert Reason.CHANGE_NOT_FOUND is reason_of(decide.find_change, job_of(log), 8, [other])
    # The program tightened its range since: the old value is not allowed any more.
    changed = change(log, lr="0.1")
    log.register(instance_id="b")
    log.declare(spec("lr", 0.1, 0.0, 0.3), instance_id="b")
    assert Reason.ABOVE_MAXIMUM is reason_of(decide.undo, job_of(log), changed)


def test_conditions_on_the_job_and_on_single_variables() -> None:
    log = job_log()
    before = change(log, lr="0.1").revision
    one = [decide.Update("wd", value=1.0)]
    assert isinstance(decide.set_variables(job_of(log), one, if_job_revision=before), Changed)
    assert Reason.REVISION_MISMATCH is reason_of(decide.set_variables, job_of(log), one, if_job_revision=before - 1)
    # Acknowledgements and declarations are no changes: they do not get in the way.
    outcome = Outcome("lr", False, ApplyStatus.APPLIED, 0.1)
    log.record(Applied(before, 0, 1, (outcome,)))
    log.declare(spec("later", 1.0))
    assert isinstance(decide.set_variables(job_of(log), one, if_job_revision=before), Changed)
    guarded = [decide.Update("wd", value=1.0), decide.Update("lr", value=0.2, if_revision=before - 1)]
    assert Reason.REVISION_MISMATCH is reason_of(decide.set_variables, job_of(log), guarded)
    guarded[1] = decide.Update("lr", value=0.2, if_revision=before)
    assert isinstance(decide.set_variables(job_of(log), guarded), Changed)


def test_firings_are_merged_only_when_asked() -> None:
    log = job_log()
    log.record(decide.fire_triggers(job_of(log), ["save"]))
    merged = decide.fire_triggers(job_of(log), ["save", "stop"], merge=True)
    assert merged is not None
    assert ["stop"] == [firing.trigger for firing in merged.firings]
    log.record(merged)
    assert None is decide.fire_triggers(job_of(log), ["save", "stop"], merge=True)
    log.record(decide.fire_triggers(job_of(log), ["save"]))
    assert 2 == len(job_of(log).triggers["save"].pending)


def test_a_request_id_stands_for_one_change() -> None:
    log = job_log()
    made = change(log, lr="0.1").payload
    assert isinstance(made, Changed)
    decide.check_same_set(made, [decide.Update("lr", text="1e-1")])
    decide.check_same_set(made, [decide.Update("lr", value=0.1)])
    for updates in (
        [decide.Update("lr", value=0.2)],
        [decide.Update("wd", value=0.1)],
        [decide.Update("lr", value=0.1), decide.Update("wd", value=0.1)],
    ):
        assert Reason.REQUEST_ID_REUSED is reason_of(decide.check_same_set, made, updates)
    assert Reason.REQUEST_ID_REUSED is reason_of(decide.check_same_firing, made, ["save"])
    assert Reason.REQUEST_ID_REUSED is reason_of(decide.check_same_undo, made, 7)
    fired = decide.fire_triggers(job_of(log), ["save", "stop"])
    assert fired is not None
    decide.check_same_firing(fired, ["stop", "save"])


@pytest.mark.parametrize(
    ("policy", "taken", "begins_with"),
    [
        (RestartPolicy.KEEP, True, 0.1),
        (RestartPolicy.KEEP, False, 0.1),
        (RestartPolicy.RESET, True, 0.5),
        (RestartPolicy.RESET, False, 0.1),
    ],
)
def test_what_a_variable_begins_with_when_its_run_is_taken_up(
    policy: RestartPolicy, taken: bool, begins_with: float
) -> None:
    declared = replace(spec("lr", 0.5, 0.0, 1.0), on_restart=policy)
    log = job_log(declared)
    revision = change(log, lr="0.1").revision
    if taken:
        log.record(Applied(revision, 0, 1, (Outcome("lr", False, ApplyStatus.APPLIED, 0.1),)))
    log.register(instance_id="b")
    log.declare(declared, instance_id="b")
    assert begins_with == job_of(log).variables["lr"].desired


def test_a_store_that_was_restored_does_not_move_a_running_job() -> None:
    log = job_log()
    change(log, lr="0.1")
    uses = [decide.Declaration(spec("lr", 0.5, 0.0, 1.0), 0.7)]
    declared, errors = decide.declare(job_of(log), 0, "a", uses, [], adopt=True)
    assert {} == errors
    log.record(declared)
    assert (0.7, False) == (job_of(log).variables["lr"].desired, job_of(log).variables["lr"].from_change)
    assert (None, {}) == decide.declare(job_of(log), 0, "a", uses, [], adopt=True)
    # Without another store in between the daemon's value stands.
    assert (None, {}) == decide.declare(job_of(log), 0, "a", [decide.Declaration(spec("lr", 0.5, 0.0, 1.0), 0.9)], [])


def test_jobs_are_given_up_and_forgotten() -> None:
    log = job_log()
    assert Reason.JOB_LIVE is reason_of(decide.remove, job_of(log), "ann", "")
    log.record(decide.give_up(job_of(log), "lost", 7))
    job = job_of(log)
    assert job.ended is not None
    assert (True, "lost", 7, 0) == (job.ended.failed, job.ended.message, job.ended.step, job.port)
    assert None is decide.give_up(job, "again", 8)
    log.revision += 1
    from livetuned.domain.job import evolve

    assert None is evolve(job, Record(log.revision, 0, log.name, decide.remove(job, "ann", "done")))


def test_a_new_token_of_the_same_process_changes_nothing_else() -> None:
    log = job_log()
    revision = change(log, lr="0.1").revision
    log.record(Applied(revision, 0, 1, (Outcome("lr", False, ApplyStatus.APPLIED, 0.1),)))
    again = decide.register(
        job_of(log), "vgg", rank=0, world_size=1, instance_id="a", process=PROCESS, port=1, active_jobs=1, token_hash="h"
    )  # fmt: skip
    assert again is not None
    job = log.record(again)
    assert ("h", revision) == (job.ranks[0].token_hash, job.ranks[0].applied_revision)
    assert 0.1 == job.variables["lr"].applied[0].value


def test_history_is_filtered_by_every_field() -> None:
    log = job_log()
    payload = decide.set_variables(job_of(log), [decide.Update("lr", value=0.1)], actor="ann@host")
    record = Record(7, 1_000, "vgg", payload)
    wanted = [ChangeFilter(), ChangeFilter(target="lr"), ChangeFilter(actor="ann@host"), ChangeFilter(after=6)]
    wanted += [ChangeFilter(since_us=1_000), ChangeFilter(until_us=1_001)]
    unwanted = [ChangeFilter(target="wd"), ChangeFilter(actor="bob@host"), ChangeFilter(after=7)]
    unwanted += [ChangeFilter(since_us=1_001), ChangeFilter(until_us=1_000)]
    assert [True] * len(wanted) == [item.wants(record) for item in wanted]
    assert [False] * len(unwanted) == [item.wants(record) for item in unwanted]
    assert [False, True, True] == [item.selective for item in (wanted[3], wanted[1], wanted[4])]
