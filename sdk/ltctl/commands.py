"""Owns the commands: what each asks of the daemon and how its answer is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ltctl.arguments import REVISION_MAX, job_resource, parse_assignments, seconds, split_job, word
from ltctl.client import CALL_SECONDS, Client, metadata, new_request_id
from ltctl.exits import EXIT_HELP, CommandError, Exit
from ltctl.text import arrow, note, out, safe, table, to_json, to_yaml

if TYPE_CHECKING:
    from livetune.v1 import types_pb2
    from ltctl.following import Applying

# Messages and their rendering are imported inside the commands, since they load protobuf: help must be quick.

_FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")
_SET_EXAMPLE = "ltctl set JOB lr=0.01"

_output = click.option(
    "-o", "--output", "form", type=click.Choice(_FORMATS), default="table", show_default=True, help="Output format."
)
_reason = click.option("--reason", type=word, default="", metavar="TEXT", help="Why; kept in the history.")
_wait = click.option(
    "--wait",
    type=click.Choice(["applied", "accepted"]),
    default="applied",
    show_default=True,
    help="Return when the job uses it, or as soon as it is on the daemon's disk.",
)
_timeout = click.option(
    "--timeout", type=seconds, default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait for the apply.",
)  # fmt: skip


def _print(form: str, data: Any, names: Iterable[str], lines: Callable[[], Iterable[str]]) -> None:
    """Print data in the format asked for.

    Args:
        form: The format.
        data: Plain data; a list is printed as one line an item in jsonl.
        names: What `name` prints.
        lines: Makes what `table` and `wide` print.
    """
    if form == "json":
        out(to_json(data))
    elif form == "yaml":
        out(to_yaml(data))
    elif form == "jsonl":
        for item in data if isinstance(data, list) else [data]:
            out(to_json(item, pretty=False))
    else:
        for line in map(safe, names) if form == "name" else lines():
            out(line)


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also jobs that have ended.")
@_output
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

    _print(form, [render.job_data(job) for job in answer.jobs], (render.leaf(job.name) for job in answer.jobs), lines)


def _get_job(client: Client, job: str) -> types_pb2.Job:
    from livetune.v1 import control_pb2

    request = control_pb2.GetJobRequest(name=job_resource(job))
    return client.call(lambda stub: stub.GetJob(request, metadata=metadata(), timeout=CALL_SECONDS)).job


def _without_own_name(job: types_pb2.Job, names: Sequence[str]) -> Sequence[str]:
    """Drop the job's name from the front, needless on its own port, unless something in the job is called so too."""
    from ltctl import render

    known = {item.spec.variable_id for item in job.variables} | {item.spec.trigger_id for item in job.triggers}
    return names[1:] if names and names[0] == render.leaf(job.name) and names[0] not in known else names


def _chosen(job: types_pb2.Job, names: Sequence[str]) -> tuple[list[types_pb2.Variable], list[types_pb2.Trigger]]:
    import difflib

    from ltctl import render

    known = {item.spec.variable_id for item in job.variables} | {item.spec.trigger_id for item in job.triggers}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(sorted(known)) or 'none'}"
            message = f"job '{render.leaf(job.name)}' has no variable or trigger '{name}'{hint}"
            raise CommandError(Exit.NOT_FOUND, safe(message))
    return (
        [item for item in job.variables if not names or item.spec.variable_id in names],
        [item for item in job.triggers if not names or item.spec.trigger_id in names],
    )


def _applied_cell(variable: types_pb2.Variable) -> tuple[str, str]:
    """Return the applied value and its step, over all ranks."""
    from ltctl import render

    values = dict.fromkeys(render.shown(item.value) for item in variable.applied)
    steps = sorted({item.step for item in variable.applied})
    if not values:
        return render.shown(variable.spec.initial), "start"
    return " ".join(values), str(steps[0]) if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"


@click.command()
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [NAME]...")
@_output
@click.pass_obj
def get(client: Client, words: tuple[str, ...], form: str) -> None:
    """Show the values of a job's variables: desired, and really applied since which step."""
    from ltctl import render

    name, names = split_job(words, scoped=client.scoped, example="ltctl get JOB")
    job = _get_job(client, name)
    if client.scoped:
        names = [*_without_own_name(job, names)]
    variables, triggers = _chosen(job, names)

    def lines() -> Iterable[str]:
        head = ["NAME", "DESIRED", "APPLIED", "SINCE STEP", "REVISION"]
        rows = []
        for item in variables:
            applied, step = _applied_cell(item)
            rows.append([item.spec.variable_id, render.shown(item.desired), applied, step, str(item.revision)])
            if form == "wide":
                rows[-1] += [_rule(item.spec), item.spec.unit, item.spec.doc]
        for trigger in triggers:
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
        "variables": [render.variable_data(item) for item in variables],
        "triggers": [render.trigger_data(item) for item in triggers],
    }
    found = [item.spec.variable_id for item in variables] + [item.spec.trigger_id for item in triggers]
    _print(form, data, found, lines)


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


@click.command()
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [NAME]...")
@_output
@click.pass_obj
def describe(client: Client, words: tuple[str, ...], form: str) -> None:
    """Show everything about a job: its processes, and each variable's type, rule, unit and meaning."""
    from ltctl import render

    name, names = split_job(words, scoped=client.scoped, example="ltctl describe JOB")
    job = _get_job(client, name)
    if client.scoped:
        names = [*_without_own_name(job, names)]
    variables, triggers = _chosen(job, names)
    data = render.job_data(job)
    data["variables"] = [render.variable_data(item) for item in variables]
    data["triggers"] = [render.trigger_data(item) for item in triggers]

    def lines() -> Iterable[str]:
        where = f"run {job.run}, port {job.port or '-'}"
        yield f"job {render.leaf(job.name)}: {render.state(job)} at step {job.step}, {where}"
        if job.end_message:
            yield f"  {safe(job.end_message)}"
        for rank in job.ranks:
            process = rank.process
            link = "connected" if rank.connected else "not connected"
            yield safe(
                f"  rank {rank.rank}: pid {process.pid} of {process.user} on {process.host}, {link}: {process.command}"
            )
        for item in variables:
            applied, step = _applied_cell(item)
            since = "since the start" if step == "start" else f"since step {step}"
            unit = f" {safe(item.spec.unit)}" if item.spec.unit else ""
            yield ""
            yield f"{item.spec.variable_id} = {render.shown(item.desired)}{unit}   ({_rule(item.spec)})"
            if item.spec.doc:
                yield f"  {safe(item.spec.doc)}"
            start = render.shown(item.spec.initial)
            yield f"  the job uses {applied} {since}; started with {start}; revision {item.revision}"
        for trigger in triggers:
            yield ""
            yield f"{trigger.spec.trigger_id}   (trigger; fired {trigger.fired}, consumed {trigger.consumed})"
            if trigger.spec.doc:
                yield f"  {safe(trigger.spec.doc)}"

    found = [item.spec.variable_id for item in variables] + [item.spec.trigger_id for item in triggers]
    _print(form, data, found, lines)


@click.command(
    name="set",
    epilog=EXIT_HELP,
)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME=VALUE...")
@_reason
@click.option(
    "--if-revision",
    type=click.IntRange(0, REVISION_MAX),
    metavar="N",
    help="Only if none of these variables was changed after revision N (see `ltctl get`).",
)
@_wait
@_timeout
@_output
@click.pass_obj
def set_values(
    client: Client, words: tuple[str, ...], reason: str, if_revision: int | None, wait: str, timeout: float, form: str
) -> None:
    r"""Change variables of a job, all of them or none, and wait until the job uses them.

    \b
    ltctl set vgg lr=0.01
    ltctl set vgg lr=0.01 lc.strength=0.2 --reason plateau
    ltctl --port 21007 set lr=0.01
    """
    from livetune.v1 import control_pb2
    from ltctl import render

    # Said here already when the job was forgotten: the daemon would look for a job of that name.
    if words and "=" in words[0] and not client.scoped:
        raise click.UsageError(f"which job? Write: {_SET_EXAMPLE}, or give its port with --port")
    own_port = client.scoped and (not words or "=" in words[0])
    job, rest = split_job(words, scoped=own_port, example=_SET_EXAMPLE)
    texts = parse_assignments(rest, _SET_EXAMPLE)
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


@click.command(name="trigger", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] NAME...")
@_reason
@_wait
@_timeout
@_output
@click.pass_obj
def trigger(client: Client, words: tuple[str, ...], reason: str, wait: str, timeout: float, form: str) -> None:
    """Fire triggers of a job, and wait until the job has consumed them."""
    from livetune.v1 import control_pb2

    example = "ltctl trigger JOB save"
    job, names = split_job(words, scoped=client.scoped, example=example)
    if client.scoped and len(names) > 1:  # the first may be the job's name: the daemon knows
        names = [*_without_own_name(_get_job(client, job), names)]
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
    _print(
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
    if not applying.done:
        raise CommandError(Exit.NOT_APPLIED, f"accepted as revision {revision}, not applied within {timeout:g} s")


@click.command()
@click.argument("job", type=word, default="")
@click.option(
    "--after",
    type=click.IntRange(0, REVISION_MAX),
    metavar="REVISION",
    help="Begin after this revision [default: from now on].",
)
@click.option("--count", "-n", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@_output
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


@click.command()
@click.argument("job", type=word, default="")
@click.option("-n", "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Newest N changes.")
@click.option(
    "--before", type=click.IntRange(1, REVISION_MAX), metavar="REVISION", help="Only changes older than this revision."
)
@_output
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

    _print(
        form,
        [render.change_data(change) for change in answer.changes],
        (str(change.revision) for change in answer.changes),
        lines,
    )
    if answer.previous_before_revision and form in ("table", "wide"):
        note(f"older ones: ltctl history {job} --before {answer.previous_before_revision}".replace("  ", " "))
