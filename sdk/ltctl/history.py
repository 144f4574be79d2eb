"""Owns the command that looks back: history."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING

import click

from ltctl.arguments import count, job_resource, revision, word
from ltctl.client import CALL_SECONDS, Client, metadata
from ltctl.exits import EXIT_HELP
from ltctl.options import output_option, print_items
from ltctl.text import Table, did_you_mean, note, safe
from ltctl.times import TIME_HELP, moment

if TYPE_CHECKING:
    from livetune.v1 import control_pb2, types_pb2

_PAGE = 1_000
"""The most that a daemon gives in one page, a count."""
_PEOPLE = 100
"""How many a person is shown who does not say how many, a count."""
MEMORY_BYTES = 32 * 2**20
"""How much of the history waits in memory to be shown; the rest waits on disk."""


@click.command(short_help="List who changed what, when, why.", epilog=EXIT_HELP)
@click.argument("job", type=word, default="")
@click.option("--variable", "--trigger", "target", type=word, default="", metavar="NAME", help="Only what names this.")
@click.option(
    "--actor",
    type=word,
    default="",
    metavar="ACTOR",
    help="Only of this actor: USER@HOST, as the history shows it.",
)
@click.option("--since", type=moment, metavar="TIME", help=f"Only from then on: {TIME_HELP}.")
@click.option("--until", type=moment, metavar="TIME", help="Only before then.")
@click.option("--after", type=revision, default=0, metavar="REVISION", help="Only what is newer than this revision.")
@click.option("--before", type=revision, metavar="REVISION", help="Only what is older than this one.")
@click.option(
    "-n", "--limit", type=count, default=None, show_default="100; all in json, yaml, jsonl and name", metavar="N",
    help="The newest N of those.",
)  # fmt: skip
@output_option
@click.pass_obj
def history(
    client: Client,
    job: str,
    target: str,
    actor: str,
    since: datetime | None,
    until: datetime | None,
    after: int,
    before: int | None,
    limit: int | None,
    form: str,
) -> None:
    """List changes, newest last: who changed what, when, why, and at which step it took effect. Of all jobs, or of one.

    \b
    ltctl history vgg
    ltctl history vgg --variable lr --since 2h
    ltctl history --since 2026-11-24T09:00 --until 2026-11-24T12:00 -n 100000 -o jsonl
    """  # noqa: D301
    import tempfile  # loads what `ltctl --help` need not

    from livetune.v1 import control_pb2
    from ltctl import render

    if since is not None and until is not None and since >= until:
        raise click.UsageError("no time lies between --since and --until")
    if before is not None and after >= before - 1:
        raise click.UsageError("no revision lies between --after and --before")
    request = control_pb2.ListChangesRequest(
        job=job_resource(job), target_id=target, actor=actor, after_revision=after, before_revision=before or 0
    )
    if since is not None:
        request.since_time.FromDatetime(since)
    if until is not None:
        request.until_time.FromDatetime(until)
    with_job = not job and not client.scoped
    head = ["REVISION", "TIME", *(["JOB"] if with_job else []), "ACTOR", "CHANGE", "APPLIED", "REASON"]
    aligned = Table(head)

    def row(change: types_pb2.Change) -> list[str]:
        cells = [str(change.revision), render.local_time(change.time)]
        cells += [render.leaf(change.job)] if with_job else []
        cells += [change.actor or "-", render.change_words(change), render.applied_words(change)]
        return [*cells, render.reason_words(change)]

    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        found = Found(spool)
        found.read(client, request, limit or (_PEOPLE if form in ("table", "wide") else sys.maxsize))
        print_items(
            form,
            found.changes(),
            render.change_data,
            lambda change: str(change.revision),
            lambda changes: aligned.lines(map(row, changes)),
        )
    _say_what_is_missing(client, request, found, people=form in ("table", "wide"))


@dataclass
class Found:
    """What was found of the history: read from the newest back, shown from the oldest on."""

    spool: IO[bytes]
    """Where it waits."""
    pages: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size of each page, newest first."""
    compacted: int = 0
    """Changes up to this revision are not kept any more."""
    older: int = 0
    """There is more before this revision; 0 if there is not."""

    def read(self, client: Client, request: control_pb2.ListChangesRequest, limit: int) -> None:
        """Read at most so many changes, page by page: one with a filter may be short, or empty, and not be the last."""
        while limit > 0:
            request.page_size = min(limit, _PAGE)
            answer = client.persistently(
                lambda stub: stub.ListChanges(request, metadata=metadata(), timeout=CALL_SECONDS)
            )
            limit -= len(answer.changes)
            self.compacted = max(self.compacted, answer.compacted_revision)
            self.older = request.before_revision = answer.previous_before_revision
            if answer.changes:
                self.pages.append((self.spool.tell(), self.spool.write(answer.SerializeToString())))
            if not self.older:
                return

    def changes(self) -> Iterator[types_pb2.Change]:
        """Yield the changes, oldest first."""
        from livetune.v1 import control_pb2

        for offset, size in reversed(self.pages):
            self.spool.seek(offset)
            yield from control_pb2.ListChangesResponse.FromString(self.spool.read(size)).changes


def _say_what_is_missing(
    client: Client, request: control_pb2.ListChangesRequest, found: Found, *, people: bool
) -> None:
    """Tell on stderr what the list does not show: nothing found and why, what was dropped, what is older."""
    if not found.pages and people:
        note("no changes" + _near_miss(client, request))
    if found.older and people:
        note(f"older ones: the same with --before {found.older}")
    if not found.older and request.after_revision < found.compacted:
        note(f"changes up to revision {found.compacted} were dropped (retention)")


def _near_miss(client: Client, request: control_pb2.ListChangesRequest) -> str:
    """Return what may be wrong with filters that found nothing."""
    from ltctl.reading import ask_job, names_of

    if request.actor and "@" not in request.actor:
        return f": an actor is USER@HOST, and '{safe(request.actor)}' is not"
    if request.target_id and (request.job or client.scoped):
        known: Sequence[str] = names_of(ask_job(client, request.job.rpartition("/")[2]).job)
        if request.target_id not in known:
            hint = did_you_mean(request.target_id, known)
            return safe(f": the job has no variable or trigger '{request.target_id}'{hint}")
    return ""
