"""Owns the command that writes what took effect as code: export."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ltctl.arguments import revision, word
from ltctl.client import Client
from ltctl.exits import EXIT_HELP, CommandError, Exit
from ltctl.history import MEMORY_BYTES, Found
from ltctl.text import did_you_mean, note, out, safe

if TYPE_CHECKING:
    from livetune.records import Entry
    from livetune.v1 import types_pb2


@click.command(short_help="Write what took effect as code.", epilog=EXIT_HELP)
@click.argument("job", type=word, default="")
@click.option(
    "--as", "form", type=click.Choice(["lr_scheduler"]), required=True, help="A learning rate scheduler of torch."
)
@click.option("--variable", type=word, default="lr", show_default=True, metavar="NAME", help="The variable; a number.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="As this rank applied it.")
@click.option("--after", type=revision, default=0, metavar="REVISION", help="Only changes newer than this revision.")
@click.pass_obj
def export(client: Client, job: str, form: str, variable: str, rank: int, after: int) -> None:  # noqa: ARG001 - one form
    """Write the values of a variable, at the steps at which they took effect, as Python code that needs only torch.

    Of one run: if the job has had several, --after leaves out the earlier ones; ltctl history shows where they end.

    \b
    ltctl export vgg --as lr_scheduler > schedule.py
    ltctl export vgg --as lr_scheduler --variable lr.head
    """  # noqa: D301
    from livetune.wire import value_from_proto
    from ltctl import render
    from ltctl.reading import ask_job
    from ltctl.schedule import Schedule, lr_scheduler_code

    if not job and not client.scoped:
        raise click.UsageError("which job? Write: ltctl export JOB --as lr_scheduler, or give its port with --port")
    found = ask_job(client, job).job
    initial = value_from_proto(_variable(found, variable).spec.initial)
    if isinstance(initial, bool) or not isinstance(initial, (int, float)):
        raise CommandError(
            Exit.USAGE, f"a learning rate is a number: variable '{variable}' is of type {type(initial).__name__}"
        )
    entries = _entries(client, found, variable, rank, after)
    if entries:
        # Of an earlier run, or before what is not kept any more, it may have begun with something else.
        initial = entries[0].olds.get(variable, initial)
    else:
        note(f"no change of '{safe(variable)}' has taken effect in rank {rank}")
    out(lr_scheduler_code(Schedule(render.leaf(found.name), variable, rank, initial, entries)), end="")


def _variable(job: types_pb2.Job, name: str) -> types_pb2.Variable:
    """Return a job's variable.

    Raises:
        CommandError: It has none of that name.
    """
    known = {item.spec.variable_id: item for item in job.variables}
    if name not in known:
        from ltctl import render

        hint = did_you_mean(name, known, f"; it has {', '.join(sorted(known)) or 'none'}")
        raise CommandError(Exit.NOT_FOUND, safe(f"job '{render.leaf(job.name)}' has no variable '{name}'{hint}"))
    return known[name]


def _entries(client: Client, job: types_pb2.Job, variable: str, rank: int, after: int) -> list[Entry]:
    """Ask for all changes of a variable, and return what took effect in a rank.

    Raises:
        CommandError: They are not those of one run, or no daemon answers.
    """
    import tempfile

    from livetune.errors import ReplayError
    from livetune.records import entries_of_history
    from livetune.v1 import control_pb2
    from ltctl import render

    request = control_pb2.ListChangesRequest(job=job.name, target_id=variable, after_revision=after)
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        found = Found(spool)
        found.read(client, request, sys.maxsize)
        if after < found.compacted:
            note(f"changes up to revision {found.compacted} were dropped (retention): the code begins after them")
        lines = ((f"revision {change.revision}", render.change_data(change)) for change in found.changes())
        try:
            return entries_of_history(lines, rank, only=variable)
        except ReplayError as error:
            raise CommandError(Exit.ERROR, safe(str(error))) from error
