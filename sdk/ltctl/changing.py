"""Owns the commands that change: set, trigger, undo, cancel, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ltctl.arguments import job_resource, parse_assignments, revision, split_job, split_undo, word
from ltctl.client import CALL_SECONDS, Client, metadata, new_request_id
from ltctl.exits import EXIT_HELP, CommandError, Exit
from ltctl.options import How, When, change_options, output_option, print_data, reason_option, when_options
from ltctl.reading import ask_job, without_own_name
from ltctl.text import note, safe

if TYPE_CHECKING:
    from livetune.v1 import types_pb2

# Messages and their rendering are imported inside the commands, since they load protobuf: help must be quick.

SET_EXAMPLE = "ltctl set JOB lr=0.01"
UNDO_EXAMPLE = "ltctl undo JOB 4711"
CANCEL_EXAMPLE = "ltctl cancel JOB 4711"


@click.command(name="set", short_help="Change variables, and wait until the job uses them.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME=VALUE...")
@click.option(
    "--if-revision",
    type=revision,
    metavar="N",
    help="Only if none of these variables was changed after revision N (see `ltctl get`).",
)
@click.option(
    "--if-job-revision",
    type=revision,
    metavar="N",
    help="Only if nothing of the job was changed after revision N (see `ltctl describe`).",
)
@when_options
@change_options
@click.pass_obj
def set_values(
    client: Client,
    /,
    words: tuple[str, ...],
    if_revision: int | None,
    if_job_revision: int | None,
    when: When,
    how: How,
) -> None:
    """Change variables of a job, all of them or none, and wait until the job uses them.

    \b
    ltctl set vgg lr=0.01
    ltctl set vgg lr=0.001 --at-step 20000
    ltctl set vgg lr=0.01 lc.strength=0.2 --reason plateau
    ltctl --port 21007 set lr=0.01
    """  # noqa: D301 - click's \b keeps the lines as they are
    from livetune.v1 import control_pb2
    from ltctl.finishing import Made, finish

    # Said here already when the job was forgotten: the daemon would look for a job of that name.
    if words and "=" in words[0] and not client.scoped:
        raise click.UsageError(f"which job? Write: {SET_EXAMPLE}, or give its port with --port")
    own_port = client.scoped and (not words or "=" in words[0])
    job, rest = split_job(words, scoped=own_port, example=SET_EXAMPLE)
    texts = parse_assignments(rest, SET_EXAMPLE)
    request = control_pb2.SetVariablesRequest(
        job=job_resource(job),
        updates=[control_pb2.VariableUpdate(variable_id=name, text=text) for name, text in texts.items()],
        reason=how.reason,
        if_revision=if_revision,
        if_job_revision=if_job_revision,
        request_id=new_request_id(),
        validate_only=how.dry_run,
        **when.fields(),
    )
    answer = client.persistently(lambda stub: stub.SetVariables(request, metadata=metadata(), timeout=CALL_SECONDS))
    words_of = _assignment_words(answer.change, dry_run=how.dry_run)
    made = Made(
        answer.change, answer.store_id, list(answer.connected_ranks), {name: words_of[name] for name in texts}, {}
    )
    finish(client, made, how)


def _assignment_words(change: types_pb2.Change, *, dry_run: bool) -> dict[str, str]:
    from ltctl import render

    verb = "set " if dry_run else ""
    return {item.variable_id: verb + render.assignment_words(item) for item in change.assignments}


@click.command(name="trigger", short_help="Fire triggers, and wait until they are consumed.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME...")
@click.option("--merge", is_flag=True, help="Add no firing where one waits to be consumed already; wait for that one.")
@when_options
@change_options
@click.pass_obj
def trigger(client: Client, /, words: tuple[str, ...], merge: bool, when: When, how: How) -> None:
    """Fire triggers of a job, all of them or none, and wait until the job has consumed them.

    Each firing is consumed by itself, once: two are two, unless --merge says that one is enough.

    \b
    ltctl trigger vgg save
    ltctl trigger vgg save --in 500
    ltctl --port 21007 trigger save --merge
    """  # noqa: D301
    from livetune.v1 import control_pb2
    from ltctl.finishing import Made, finish

    example = "ltctl trigger JOB save"
    if merge and when.waits:
        raise click.UsageError("--merge is for firings that wait now: it excludes --at-step and --in")
    job, names = split_job(words, scoped=client.scoped, example=example)
    before = 0
    if merge or (client.scoped and len(names) > 1):
        known = ask_job(client, job)
        before = known.revision
        if client.scoped:  # the first word may be the job's name: the daemon knows
            names = [*without_own_name(known.job, names)]
    if not names:
        raise click.UsageError(f"fire what? Write: {example}")
    request = control_pb2.FireTriggersRequest(
        job=job_resource(job),
        trigger_ids=names,
        reason=how.reason,
        request_id=new_request_id(),
        validate_only=how.dry_run,
        merge=merge,
        **when.fields(),
    )
    answer = client.persistently(lambda stub: stub.FireTriggers(request, metadata=metadata(), timeout=CALL_SECONDS))
    fired = {item.trigger_id for item in answer.change.firings}
    if merge and 0 < answer.change.revision <= before:
        fired = set()  # the answer is an earlier change: all that was asked for waits already
    merged = _waiting(client, job, [name for name in names if name not in fired])
    words_of = {
        name: f"{safe(name)} waits already (revision {merged[name]})"
        if name in merged
        else f"fire {safe(name)}"
        if how.dry_run or when.waits
        else f"{safe(name)} fired"
        for name in names
    }
    finish(client, Made(answer.change, answer.store_id, list(answer.connected_ranks), words_of, merged), how)


def _waiting(client: Client, job: str, names: list[str]) -> dict[str, int]:
    """Return the revision of the last firing of each of the triggers."""
    if not names:
        return {}
    triggers = ask_job(client, job).job.triggers
    return {item.spec.trigger_id: item.revision for item in triggers if item.spec.trigger_id in names}


@click.command(short_help="Undo a change, and wait until the job uses what was before it.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [REVISION]")
@click.option("--force", is_flag=True, help="Also where a variable was set anew since: that is overwritten then.")
@change_options
@click.pass_obj
def undo(client: Client, /, words: tuple[str, ...], force: bool, how: How) -> None:
    """Undo a change of a job's variables: a new change that restores what it replaced. Without REVISION the newest.

    Undoing an undo brings the change back: name the REVISION to go further back. What triggers did can't be undone.

    \b
    ltctl undo vgg
    ltctl undo vgg 4711 --reason "worse than before"
    ltctl --port 21007 undo
    """  # noqa: D301
    from livetune.v1 import control_pb2
    from ltctl.finishing import Made, finish

    job, number = split_undo(words, scoped=client.scoped, example=UNDO_EXAMPLE)
    try:
        request = control_pb2.UndoChangeRequest(
            job=job_resource(job),
            revision=number or _newest(client, job),
            reason=how.reason,
            force=force,
            request_id=new_request_id(),
            validate_only=how.dry_run,
        )
        answer = client.persistently(lambda stub: stub.UndoChange(request, metadata=metadata(), timeout=CALL_SECONDS))
    except CommandError as error:
        if error.reason == "UNDO_CONFLICT":
            error.message += "; --force does it all the same"
        elif error.reason == "INVALID_REQUEST" and number is None:
            error.message += "; name another one: ltctl undo JOB REVISION (see ltctl history)"
        elif error.reason == "JOB_NOT_FOUND" and number is None and job.isdecimal():
            error.message += f"; a revision stands behind its job: ltctl undo JOB {job}"
        raise
    words_of = _assignment_words(answer.change, dry_run=how.dry_run)
    finish(client, Made(answer.change, answer.store_id, list(answer.connected_ranks), words_of, {}), how)


def _newest(client: Client, job: str) -> int:
    """Return the revision of a job's newest change, and say which it is."""
    from livetune.v1 import control_pb2
    from ltctl import render

    request = control_pb2.ListChangesRequest(job=job_resource(job), page_size=1)
    answer = client.call(lambda stub: stub.ListChanges(request, metadata=metadata(), timeout=CALL_SECONDS))
    if not answer.changes:
        raise CommandError(Exit.NOT_FOUND, f"no change of job '{safe(job)}' to undo" if job else "no change to undo")
    change = answer.changes[0]
    who = render.who_words(change.actor, render.reason_words(change))
    note(
        f"the newest change is {change.revision}: {render.change_words(change)}  {render.local_time(change.time)} {who}"
    )
    return change.revision


@click.command(short_help="Cancel a change that waits for its step.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [REVISION]")
@reason_option
@output_option
@click.pass_obj
def cancel(client: Client, words: tuple[str, ...], reason: str, form: str) -> None:
    """Cancel a change that waits for its step (`set --at-step`, `--in`). REVISION may be left out where only one does.

    A job that is at that very step may take it all the same: then it is in the history.

    \b
    ltctl cancel vgg
    ltctl cancel vgg 4711 --reason "converged before"
    """  # noqa: D301
    from livetune.v1 import control_pb2
    from ltctl import render

    job, number = split_undo(words, scoped=client.scoped, example=CANCEL_EXAMPLE)
    request = control_pb2.CancelChangeRequest(
        job=job_resource(job), revision=number or _only_waiting(client, job), reason=reason
    )
    # Asked once and not again: the repetition of what was done would be refused.
    answer = client.call(lambda stub: stub.CancelChange(request, metadata=metadata(), timeout=CALL_SECONDS))
    change = answer.change
    data = {**render.change_data(change), "cancelled": True}
    words_of = f"{render.change_words(change)}   cancelled: it waited for step {change.at_step}"
    print_data(form, data, [str(change.revision)], lambda: [words_of])


def _only_waiting(client: Client, job: str) -> int:
    """Return the revision of the one change that waits for its step."""
    from ltctl import render

    waiting = ask_job(client, job).job.scheduled
    if len(waiting) == 1:
        return waiting[0].revision
    whose = f"of job '{safe(job)}' " if job else ""
    if not waiting:
        raise CommandError(Exit.NOT_FOUND, f"no change {whose}waits for a step")
    listed = "; ".join(f"{item.revision}: {render.waiting_words(item)}" for item in waiting)
    raise click.UsageError(f"which change? {len(waiting)} {whose}wait: {listed}. Write: {CANCEL_EXAMPLE}")


@click.command(short_help="Give up a lost job, or forget an ended one.", epilog=EXIT_HELP)
@click.argument("job", type=word, default="")
@reason_option
@output_option
@click.pass_obj
def remove(client: Client, job: str, reason: str, form: str) -> None:
    """Give up a job that is lost, or forget one that has ended.

    A lost job is ended: its port is free, and it stays readable. An ended one is forgotten: its name is free, and only
    `ltctl history` of all jobs still shows what was changed. A connected one is refused: stop its program first.
    """
    from livetune.v1 import control_pb2
    from ltctl import render

    if not job and not client.scoped:
        raise click.UsageError("which job? Write: ltctl remove JOB, or give its port with --port")
    name = job or render.leaf(ask_job(client, job).job.name)
    request = control_pb2.RemoveJobRequest(name=job_resource(name), reason=reason)
    # Asked once and not again: the repetition of an end would forget.
    answer = client.call(lambda stub: stub.RemoveJob(request, metadata=metadata(), timeout=CALL_SECONDS))
    forgotten = not answer.state
    data = {"job": name, "result": "forgotten" if forgotten else "ended"}
    words = "is forgotten" if forgotten else "is given up: its port is free, and it stays readable (ltctl jobs -a)"
    print_data(form, data, [name], lambda: [f"job {safe(name)} {words}"])
