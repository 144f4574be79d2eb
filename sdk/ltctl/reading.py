"""Owns the commands that look: jobs, get, describe, history, watch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from ltctl.arguments import REVISION_MAX, job_resource, split_job, word
from ltctl.client import CALL_SECONDS, Client, metadata
from ltctl.exits import CommandError, Exit
from ltctl.options import output_option, print_data
from ltctl.text import note, out, safe, table, to_json, to_yaml

if TYPE_CHECKING:
    from livetune.v1 import types_pb2

# Messages and their rendering are imported inside the commands, since they load protobuf: help must be quick.


@click.command(short_help="List the jobs.")
@click.option("-a", "--all", "every", is_flag=True, help="Also jobs that have ended.")
@output_option
@click.pass_obj
def jobs(client: Client, every: bool, form: str) -> None:
    """List the jobs."""
    from livetune.v1 import control_pb2
    from ltctl import render

    request = control_pb2.ListJobsRequest(live_only=not every)
    answer = client.call(lambda stub: stub.ListJobs(request, metadata=metadata(), timeout=CALL_SECONDS))

    def lines() -> Iterable[str]:
        if not answer.jobs:
            note("no jobs" if every else "no live jobs (ended ones: ltctl jobs -a)")
            return []
        head = ["JOB", "STATE", "STEP", "PORT", "RANKS", "SINCE"]
        rows = [
            [
                render.leaf(job.name),
                render.state(job),
                str(job.step),
                str(job.port or "-"),
                f"{sum(rank.connected for rank in job.ranks)}/{len(job.ranks)}",
                render.local_time(job.registered_time),
            ]
            for job in answer.jobs
        ]
        if form == "wide":
            head += ["RUN", "REVISION", "USER", "HOST", "PID", "COMMAND"]
            for row, job in zip(rows, answer.jobs, strict=True):
                process = job.ranks[0].process
                row += [str(job.run), str(job.revision), process.user, process.host, str(process.pid), process.command]
        return table(head, rows)

    print_data(
        form, [render.job_data(job) for job in answer.jobs], (render.leaf(job.name) for job in answer.jobs), lines
    )


def get_job(client: Client, job: str) -> types_pb2.Job:
    """Ask for one job with all that is in it.

    Args:
        client: The connection.
        job: Its name, ``""`` for the port's own.

    Raises:
        CommandError: There is none, or no daemon answers.
    """
    from livetune.v1 import control_pb2

    request = control_pb2.GetJobRequest(name=job_resource(job))
    return client.call(lambda stub: stub.GetJob(request, metadata=metadata(), timeout=CALL_SECONDS)).job


def _names(job: types_pb2.Job) -> list[str]:
    return [item.spec.variable_id for item in job.variables] + [item.spec.trigger_id for item in job.triggers]


def without_own_name(job: types_pb2.Job, names: Sequence[str]) -> Sequence[str]:
    """Drop the job's name from the front, needless on its own port, unless something in the job is called so too."""
    from ltctl import render

    return names[1:] if names and names[0] == render.leaf(job.name) and names[0] not in _names(job) else names


def _look_up(client: Client, words: Sequence[str], example: str) -> tuple[types_pb2.Job, list[str]]:
    """Ask for the job that the words name, and keep of it what they name.

    Returns:
        The job with the variables and triggers chosen, all if none is named; and their names.

    Raises:
        CommandError: There is no such job or name, or no daemon answers.
        click.UsageError: No job is named.
    """
    import difflib

    from ltctl import render

    name, wanted = split_job(words, scoped=client.scoped, example=example)
    job = get_job(client, name)
    if client.scoped:
        wanted = [*without_own_name(job, wanted)]
    known = _names(job)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(sorted(known)) or 'none'}"
            message = f"job '{render.leaf(job.name)}' has no variable or trigger '{name}'{hint}"
            raise CommandError(Exit.NOT_FOUND, safe(message))
    if wanted:
        variables = [item for item in job.variables if item.spec.variable_id in wanted]
        triggers = [item for item in job.triggers if item.spec.trigger_id in wanted]
        del job.variables[:], job.triggers[:]
        job.variables.extend(variables)
        job.triggers.extend(triggers)
    return job, _names(job)


def _applied_cell(variable: types_pb2.Variable) -> tuple[str, str]:
    """Return the applied value and its step, over all ranks."""
    from ltctl import render

    values = dict.fromkeys(render.shown(item.value) for item in variable.applied)
    steps = sorted({item.step for item in variable.applied})
    if not values:
        return render.shown(variable.spec.initial), "start"
    return " ".join(values), str(steps[0]) if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"


@click.command(short_help="Show the values of a job's variables.")
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [NAME]...")
@output_option
@click.pass_obj
def get(client: Client, words: tuple[str, ...], form: str) -> None:
    """Show the values of a job's variables: desired, and really applied since which step."""
    from ltctl import render

    job, names = _look_up(client, words, "ltctl get JOB")

    def lines() -> Iterable[str]:
        head = ["NAME", "DESIRED", "APPLIED", "SINCE STEP", "REVISION"]
        rows = []
        for item in job.variables:
            applied, step = _applied_cell(item)
            rows.append([item.spec.variable_id, render.shown(item.desired), applied, step, str(item.revision)])
            if form == "wide":
                rows[-1] += [_rule(item.spec), item.spec.unit, item.spec.doc]
        for trigger in job.triggers:
            counts = f"fired {trigger.fired}", f"consumed {trigger.consumed}"
            rows.append([trigger.spec.trigger_id, *counts, "-", str(trigger.revision or "-")])
            if form == "wide":
                rows[-1] += ["trigger", "", trigger.spec.doc]
        if form == "wide":
            head += ["RULE", "UNIT", "DOC"]
        return table(head, rows)

    data = {
        "job": render.leaf(job.name),
        "state": render.state(job),
        "step": job.step,
        "revision": job.revision,
        "variables": [render.variable_data(item) for item in job.variables],
        "triggers": [render.trigger_data(item) for item in job.triggers],
    }
    print_data(form, data, names, lines)


def _rule(spec: types_pb2.VariableSpec) -> str:
    """Return type and constraint as a person reads them."""
    from livetune.v1 import types_pb2
    from ltctl import render

    kind = types_pb2.VariableType.Name(spec.type).removeprefix("VARIABLE_TYPE_").lower()
    if spec.choices:
        return f"{kind}, one of {', '.join(map(safe, spec.choices))}"
    low = render.shown(spec.minimum) if spec.HasField("minimum") else ""
    high = render.shown(spec.maximum) if spec.HasField("maximum") else ""
    scale = ", log scale" if spec.scale == types_pb2.SCALE_LOG else ""
    if low and high:
        return f"{kind}, {low} to {high}{scale}"
    return f"{kind}, at least {low}{scale}" if low else f"{kind}, at most {high}{scale}" if high else f"{kind}{scale}"


@click.command(short_help="Show everything about a job.")
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [NAME]...")
@output_option
@click.pass_obj
def describe(client: Client, words: tuple[str, ...], form: str) -> None:
    """Show everything about a job: its processes, and each variable's type, rule, unit and meaning."""
    from ltctl import render

    job, names = _look_up(client, words, "ltctl describe JOB")
    data = render.job_data(job)
    data["variables"] = [render.variable_data(item) for item in job.variables]
    data["triggers"] = [render.trigger_data(item) for item in job.triggers]

    def lines() -> Iterable[str]:
        classic = f", classic port {job.classic_port}" if job.classic_port else ""
        where = f"run {job.run}, port {job.port or '-'}{classic}"
        yield f"job {render.leaf(job.name)}: {render.state(job)} at step {job.step}, {where}"
        if job.end_message:
            yield f"  {safe(job.end_message)}"
        for rank in job.ranks:
            process = rank.process
            link = "connected" if rank.connected else "not connected"
            yield safe(
                f"  rank {rank.rank}: pid {process.pid} of {process.user} on {process.host}, {link}: {process.command}"
            )
        for item in job.variables:
            applied, step = _applied_cell(item)
            since = "since the start" if step == "start" else f"since step {step}"
            unit = f" {safe(item.spec.unit)}" if item.spec.unit else ""
            yield ""
            yield f"{item.spec.variable_id} = {render.shown(item.desired)}{unit}   ({_rule(item.spec)})"
            if item.spec.doc:
                yield f"  {safe(item.spec.doc)}"
            start = render.shown(item.spec.initial)
            yield f"  the job uses {applied} {since}; started with {start}; revision {item.revision}"
        for trigger in job.triggers:
            yield ""
            yield f"{trigger.spec.trigger_id}   (trigger; fired {trigger.fired}, consumed {trigger.consumed})"
            if trigger.spec.doc:
                yield f"  {safe(trigger.spec.doc)}"

    print_data(form, data, names, lines)


@click.command(short_help="Follow what happens.")
@click.argument("job", type=word, default="")
@click.option(
    "--after",
    type=click.IntRange(0, REVISION_MAX),
    metavar="REVISION",
    help="Begin after this revision [default: from now on].",
)
@click.option("--count", "-n", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@output_option
@click.pass_obj
def watch(client: Client, job: str, after: int | None, count: int | None, form: str) -> None:
    """Follow what happens to a job, or to all jobs, one line an event, over restarts of the daemon."""
    from ltctl import render
    from ltctl.following import Place, follow

    left = count
    for event in follow(client, Place(job_resource(job), after)):
        data = render.event_data(event)
        if form in ("json", "jsonl"):
            out(to_json(data, pretty=form == "json"))
        elif form == "yaml":
            out("---\n" + to_yaml(data))
        elif form == "name":
            out(str(event.revision))
        else:
            who = f"  {safe(render.leaf(event.job))}" if not job and not client.scoped else ""
            out(f"{event.revision}  {render.local_time(event.time)}{who}  {render.event_words(event)}")
        if left is not None:
            left -= 1
            if not left:
                return


@click.command(short_help="List who changed what, when, why.")
@click.argument("job", type=word, default="")
@click.option("-n", "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Newest N changes.")
@click.option(
    "--before", type=click.IntRange(1, REVISION_MAX), metavar="REVISION", help="Only changes older than this revision."
)
@output_option
@click.pass_obj
def history(client: Client, job: str, limit: int, before: int | None, form: str) -> None:
    """List the changes of a job, newest last: who changed what, why, and at which step it took effect."""
    from livetune.v1 import control_pb2
    from ltctl import render

    if not job and not client.scoped:
        raise click.UsageError("which job? Write: ltctl history JOB, or give its port with --port")
    request = control_pb2.ListChangesRequest(job=job_resource(job), page_size=limit, before_revision=before or 0)
    answer = client.call(lambda stub: stub.ListChanges(request, metadata=metadata(), timeout=CALL_SECONDS))

    def lines() -> Iterable[str]:
        if not answer.changes:
            note("no changes")
            return []
        head = ["REVISION", "TIME", "ACTOR", "CHANGE", "APPLIED", "REASON"]
        rows = [
            [
                str(change.revision),
                render.local_time(change.time),
                change.actor or "-",
                render.change_words(change),
                render.applied_words(change),
                change.reason,
            ]
            for change in answer.changes
        ]
        return table(head, rows)

    print_data(
        form,
        [render.change_data(change) for change in answer.changes],
        (str(change.revision) for change in answer.changes),
        lines,
    )
    if answer.previous_before_revision and form in ("table", "wide"):
        note(f"older ones: ltctl history {job} --before {answer.previous_before_revision}".replace("  ", " "))
