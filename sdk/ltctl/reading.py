"""Owns the commands that look at what is: jobs, get, describe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from ltctl.arguments import job_resource, split_job, word
from ltctl.client import CALL_SECONDS, Client, metadata
from ltctl.exits import CommandError, Exit
from ltctl.options import output_option, print_data, print_items
from ltctl.text import Table, did_you_mean, note, safe, table

if TYPE_CHECKING:
    from livetune.v1 import control_pb2, types_pb2

# Messages and their rendering are imported inside the commands, since they load protobuf: help must be quick.


@click.command(short_help="List the jobs.")
@click.option("-a", "--all", "every", is_flag=True, help="Also jobs that have ended.")
@output_option
@click.pass_obj
def jobs(client: Client, every: bool, form: str) -> None:
    """List the jobs and what each is doing; `-o wide` also shows which ranks lag behind with their changes."""
    from livetune.v1 import control_pb2, types_pb2
    from ltctl import render

    request = control_pb2.ListJobsRequest(live_only=not every)
    answer = client.call(lambda stub: stub.ListJobs(request, metadata=metadata(), timeout=CALL_SECONDS))
    head = ["JOB", "STATE", "STEP", "PORT", "RANKS", "STARTED"] + (["ENDED"] if every else [])
    if form == "wide":
        head += ["RUN", "REVISION", "APPLIED", "USER", "HOST", "PID", "COMMAND"]
    aligned = Table(head)

    def row(job: types_pb2.Job) -> list[str]:
        cells = [render.leaf(job.name), render.state(job), str(job.step), str(job.port or "-"), render.ranks_words(job)]
        cells.append(render.local_time(job.registered_time))
        if every:
            cells.append(render.local_time(job.ended_time) if job.HasField("ended_time") else "-")
        if form == "wide":
            first = job.ranks[0].process if job.ranks else types_pb2.Process()
            cells += [str(job.run), str(job.revision), render.lag_words(job), first.user]
            cells += [render.hosts_words(job), str(first.pid), first.command]
        return cells

    print_items(
        form,
        answer.jobs,
        render.job_data,
        lambda job: render.leaf(job.name),
        lambda jobs: aligned.lines(map(row, jobs)),
    )
    if not answer.jobs and form in ("table", "wide"):
        note("no jobs" if every else "no live jobs (ended ones: ltctl jobs -a)")


def ask_job(client: Client, job: str) -> control_pb2.GetJobResponse:
    """Ask for one job with all that is in it, and the revision that the answer shows.

    Args:
        client: The connection.
        job: Its name, ``""`` for the port's own.

    Raises:
        CommandError: There is none, or no daemon answers.
    """
    from livetune.v1 import control_pb2

    request = control_pb2.GetJobRequest(name=job_resource(job))
    return client.call(lambda stub: stub.GetJob(request, metadata=metadata(), timeout=CALL_SECONDS))


def names_of(job: types_pb2.Job) -> list[str]:
    """Return the names of a job's variables and triggers."""
    return [item.spec.variable_id for item in job.variables] + [item.spec.trigger_id for item in job.triggers]


def without_own_name(job: types_pb2.Job, names: Sequence[str]) -> Sequence[str]:
    """Drop the job's name from the front, needless on its own port, unless something in the job is called so too."""
    from ltctl import render

    return names[1:] if names and names[0] == render.leaf(job.name) and names[0] not in names_of(job) else names


def _look_up(client: Client, words: Sequence[str], example: str) -> tuple[types_pb2.Job, list[str]]:
    """Ask for the job that the words name, and keep of it what they name.

    Returns:
        The job with the variables and triggers chosen, all if none is named; and their names.

    Raises:
        CommandError: There is no such job or name, or no daemon answers.
        click.UsageError: No job is named.
    """
    from ltctl import render

    name, wanted = split_job(words, scoped=client.scoped, example=example)
    job = ask_job(client, name).job
    if client.scoped:
        wanted = [*without_own_name(job, wanted)]
    known = names_of(job)
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known, f"; it has {', '.join(sorted(known)) or 'none'}")
            message = f"job '{render.leaf(job.name)}' has no variable or trigger '{name}'{hint}"
            raise CommandError(Exit.NOT_FOUND, safe(message))
    if wanted:
        variables = [item for item in job.variables if item.spec.variable_id in wanted]
        triggers = [item for item in job.triggers if item.spec.trigger_id in wanted]
        del job.variables[:], job.triggers[:]
        job.variables.extend(variables)
        job.triggers.extend(triggers)
        waiting = [item for item in job.scheduled if render.names_in(item) & set(wanted)]
        del job.scheduled[:]
        job.scheduled.extend(waiting)
    return job, names_of(job)


def _applied_cell(variable: types_pb2.Variable) -> tuple[str, str]:
    """Return the applied value and its step, over all ranks."""
    from ltctl import render

    values = dict.fromkeys(render.shown(item.value) for item in variable.applied)
    steps = sorted({item.step for item in variable.applied})
    if not values:
        return render.shown(variable.spec.initial), "start"
    first = str(steps[0] or "start")
    return " ".join(values), first if len(steps) == 1 else f"{first}-{steps[-1]}"


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
        yield from table(head, rows)
        yield from render.waiting_lines(job.scheduled)

    data = {
        "job": render.leaf(job.name),
        "state": render.state(job),
        "step": job.step,
        "revision": job.revision,
        "variables": [render.variable_data(item) for item in job.variables],
        "triggers": [render.trigger_data(item) for item in job.triggers],
        "scheduled": [render.change_data(item) for item in job.scheduled],
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
    data = render.whole_job_data(job)

    def lines() -> Iterable[str]:
        classic = f", classic port {job.classic_port}" if job.classic_port else ""
        where = f"run {job.run}, port {job.port or '-'}{classic}, revision {job.revision}"
        yield f"job {render.leaf(job.name)}: {render.state(job)} at step {job.step}, {where}"
        ended = f", ended {render.local_time(job.ended_time)}" if job.HasField("ended_time") else ""
        yield f"  started {render.local_time(job.registered_time)}{ended}"
        if job.end_message:
            yield f"  {safe(job.end_message)}"
        yield from map(safe, render.ranks_lines(job))
        yield from (f"  {line}" for line in render.waiting_lines(job.scheduled))
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
            if render.restart_policy(item.spec) == "reset":
                yield "  a new process that takes up the run begins with what its program declares"
        for trigger in job.triggers:
            yield ""
            yield f"{trigger.spec.trigger_id}   (trigger; fired {trigger.fired}, consumed {trigger.consumed})"
            if trigger.spec.doc:
                yield f"  {safe(trigger.spec.doc)}"

    print_data(form, data, names, lines)
