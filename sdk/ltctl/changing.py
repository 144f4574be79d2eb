"""Owns the commands that change: set and trigger, and waiting until the job uses what was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ltctl.arguments import REVISION_MAX, job_resource, parse_assignments, split_job, word
from ltctl.client import CALL_SECONDS, Client, metadata, new_request_id
from ltctl.exits import EXIT_HELP, CommandError, Exit
from ltctl.options import output_option, print_data, reason_option, timeout_option, wait_option
from ltctl.reading import get_job, without_own_name
from ltctl.text import arrow, note, safe

if TYPE_CHECKING:
    from livetune.v1 import types_pb2
    from ltctl.following import Applying

# Messages and their rendering are imported inside the commands, since they load protobuf: help must be quick.

SET_EXAMPLE = "ltctl set JOB lr=0.01"


@click.command(
    name="set",
    short_help="Change variables, and wait until the job uses them.",
    epilog=EXIT_HELP,
)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME=VALUE...")
@reason_option
@click.option(
    "--if-revision",
    type=click.IntRange(0, REVISION_MAX),
    metavar="N",
    help="Only if none of these variables was changed after revision N (see `ltctl get`).",
)
@wait_option
@timeout_option
@output_option
@click.pass_obj
def set_values(
    client: Client, words: tuple[str, ...], reason: str, if_revision: int | None, wait: str, timeout: float, form: str
) -> None:
    """Change variables of a job, all of them or none, and wait until the job uses them.

    \b
    ltctl set vgg lr=0.01
    ltctl set vgg lr=0.01 lc.strength=0.2 --reason plateau
    ltctl --port 21007 set lr=0.01
    """  # noqa: D301 - click's \b keeps the lines as they are
    from livetune.v1 import control_pb2
    from ltctl import render

    # Said here already when the job was forgotten: the daemon would look for a job of that name.
    if words and "=" in words[0] and not client.scoped:
        raise click.UsageError(f"which job? Write: {SET_EXAMPLE}, or give its port with --port")
    own_port = client.scoped and (not words or "=" in words[0])
    job, rest = split_job(words, scoped=own_port, example=SET_EXAMPLE)
    texts = parse_assignments(rest, SET_EXAMPLE)
    request = control_pb2.SetVariablesRequest(
        job=job_resource(job),
        updates=[control_pb2.VariableUpdate(variable_id=name, text=text) for name, text in texts.items()],
        reason=reason,
        if_revision=if_revision,
        request_id=new_request_id(),
    )
    answer = client.persistently(lambda stub: stub.SetVariables(request, metadata=metadata(), timeout=CALL_SECONDS))
    change = answer.change

    def words_of(name: str) -> str:
        item = next(item for item in change.assignments if item.variable_id == name)
        return f"{safe(name)} {render.shown(item.old_value)} {arrow()} {render.shown(item.new_value)}"

    _finish(client, change, answer.store_id, list(answer.connected_ranks), list(texts), words_of, wait, timeout, form)


@click.command(name="trigger", short_help="Fire triggers, and wait until they are consumed.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME...")
@reason_option
@wait_option
@timeout_option
@output_option
@click.pass_obj
def trigger(client: Client, words: tuple[str, ...], reason: str, wait: str, timeout: float, form: str) -> None:
    """Fire triggers of a job, and wait until the job has consumed them."""
    from livetune.v1 import control_pb2

    example = "ltctl trigger JOB save"
    job, names = split_job(words, scoped=client.scoped, example=example)
    if client.scoped and len(names) > 1:  # the first may be the job's name: the daemon knows
        names = [*without_own_name(get_job(client, job), names)]
    if not names:
        raise click.UsageError(f"fire what? Write: {example}")
    request = control_pb2.FireTriggersRequest(
        job=job_resource(job), trigger_ids=names, reason=reason, request_id=new_request_id()
    )
    answer = client.persistently(lambda stub: stub.FireTriggers(request, metadata=metadata(), timeout=CALL_SECONDS))
    change = answer.change

    def words_of(name: str) -> str:
        return f"{safe(name)} fired"

    _finish(client, change, answer.store_id, list(answer.connected_ranks), names, words_of, wait, timeout, form)


def _finish(
    client: Client,
    change: types_pb2.Change,
    store_id: str,
    ranks: list[int],
    names: list[str],
    words_of: Callable[[str], str],
    wait: str,
    timeout: float,
    form: str,
) -> None:
    """Wait for the apply if that was asked, print what became of the change, and end with the right exit code."""
    from ltctl import render
    from ltctl.following import Applying, wait_applied

    applying = Applying(names, ranks)
    if wait == "applied":
        if not ranks:
            job = render.leaf(change.job)
            note(f"job {job} is not connected: accepted as revision {change.revision}, it applies when the job is back")
        try:
            applying = wait_applied(client, change, store_id, ranks, names, timeout)
        except KeyboardInterrupt:
            note(f"ltctl: interrupted: accepted as revision {change.revision}, its apply was not waited for")
            raise
    data = {
        **render.change_data(change),
        "applied": {
            name: [
                {
                    "rank": rank,
                    "status": render.status(outcome),
                    "step": applying.steps[name][rank],
                    "effective": render.value(outcome.effective),
                    "reason": outcome.reason,
                }
                for rank, outcome in sorted(by_rank.items())
            ]
            for name, by_rank in applying.outcomes.items()
        },
    }
    print_data(
        form, data, names, lambda: [_outcome_line(words_of(name), name, applying, change.revision) for name in names]
    )
    if wait == "applied":
        _check_applied(applying, change.revision, timeout)


def _outcome_line(words: str, name: str, applying: Applying, revision: int) -> str:
    from ltctl import render

    by_rank = applying.outcomes.get(name, {})
    if not by_rank:
        return f"{words}   accepted as revision {revision}"
    steps = sorted(set(applying.steps[name].values()))
    at = f"at step {steps[0]}" if len(steps) == 1 else f"at steps {steps[0]} to {steps[-1]}"
    words_by_rank = dict.fromkeys(render.status_words(item) for item in by_rank.values())
    of = f" on {len(by_rank)} of {len(applying.ranks)} ranks" if len(applying.ranks) > 1 else ""
    return f"{words}   {', '.join(words_by_rank)} {at}{of}"


def _check_applied(applying: Applying, revision: int, timeout: float) -> None:
    from ltctl import render

    refused = [
        f"{name}: {outcome.reason or 'no reason given'}"
        for name, by_rank in applying.outcomes.items()
        for outcome in by_rank.values()
        if render.status(outcome) == "refused"
    ]
    if refused:
        raise CommandError(Exit.REFUSED, safe("the job refused it: " + "; ".join(dict.fromkeys(refused))))
    superseded = [
        name
        for name, by_rank in applying.outcomes.items()
        if any(render.status(outcome) == "superseded" for outcome in by_rank.values())
    ]
    if superseded:
        names = ", ".join(superseded)
        raise CommandError(Exit.CONFLICT, safe(f"never in effect: {names} was changed again before the job took it"))
    if not applying.done:
        raise CommandError(Exit.NOT_APPLIED, f"accepted as revision {revision}, not applied within {timeout:g} s")
