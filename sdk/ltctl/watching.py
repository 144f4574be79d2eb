"""Owns the command that follows what happens: watch."""

from __future__ import annotations

import select
import sys
import threading
from typing import TYPE_CHECKING

import click

from ltctl.arguments import count, job_resource, revision, word
from ltctl.client import Client
from ltctl.exits import EXIT_HELP
from ltctl.options import output_option
from ltctl.text import note, out, safe, to_json, to_yaml

if TYPE_CHECKING:
    from livetune.v1 import control_pb2

_VALUES_SHOWN = 8
"""How many values of a job one line of a snapshot shows, a count."""


@click.command(short_help="Follow what happens.", epilog=EXIT_HELP)
@click.argument("job", type=word, default="")
@click.option(
    "--after", type=revision, metavar="REVISION", help="Begin after this revision, 0 for all [default: from now on]."
)
@click.option("--snapshot", is_flag=True, help="Begin with what is: one line for each job, then what happens.")
@click.option(
    "--bookmarks",
    is_flag=True,
    help="Also show how far the watch has come: at the start, after a snapshot, now and then.",
)
@click.option("-n", "--count", "most", type=count, metavar="N", help="End after N events.")
@output_option
@click.pass_obj
def watch(
    client: Client, job: str, after: int | None, snapshot: bool, bookmarks: bool, most: int | None, form: str
) -> None:
    """Follow what happens to a job, or to all jobs, one line an event, over restarts of the daemon, until Ctrl-C.

    Where the events that come next are not kept any more, or the daemon has another store, it says so and goes on from
    what is now. In json, yaml and jsonl each item has a `kind`; what is now comes as `snapshot_begin` and one
    `snapshot_job` for each job, and these are all jobs there are.

    \b
    ltctl watch vgg
    ltctl watch --after 4711 -o jsonl
    """  # noqa: D301
    from ltctl.following import Place, follow

    if snapshot and after is not None:
        raise click.UsageError("--snapshot and --after exclude each other: a snapshot is as of now")
    shown = _Shown(form, with_job=not job and not client.scoped, bookmarks=bookmarks)
    _abandon_when_the_reader_leaves(client)
    left = most
    for response in follow(client, Place(job_resource(job), after, snapshot=snapshot)):
        shown.show(response)
        if response.WhichOneof("item") != "event":
            continue
        left = None if left is None else left - 1
        if left == 0:
            return
        if client.scoped and response.event.WhichOneof("kind") in ("ended", "removed"):
            note("the job has ended, and its port is closed with it")
            return


class _Shown:
    """Shows what a watch says, in a format."""

    def __init__(self, form: str, *, with_job: bool, bookmarks: bool) -> None:
        self._form = form
        self._with_job = with_job
        self._bookmarks = bookmarks

    def show(self, response: control_pb2.WatchResponse) -> None:
        from ltctl import events

        item = response.WhichOneof("item")
        if item is None or (item == "bookmark" and not self._bookmarks):
            return
        if item == "snapshot_begin":
            _explain(response.snapshot_begin)
        if self._form in ("json", "jsonl"):
            out(to_json(events.watch_data(response), pretty=self._form == "json"))
        elif self._form == "yaml":
            out("---\n" + to_yaml(events.watch_data(response)))
        elif self._form == "name":
            if item in ("event", "bookmark"):
                out(str(getattr(response, item).revision))
        elif item != "snapshot_begin":
            out(self._line(response))

    def _line(self, response: control_pb2.WatchResponse) -> str:
        from ltctl import events, render

        if response.HasField("bookmark"):
            return f"{response.bookmark.revision}  nothing after this revision yet"
        if response.HasField("snapshot_job"):
            job = response.snapshot_job
            return f"{job.revision}  now{self._who(job.name)}  {events.snapshot_words(job, _VALUES_SHOWN)}"
        event = response.event
        when = render.local_time(event.time)
        return f"{event.revision}  {when}{self._who(event.job)}  {events.event_words(event)}"

    def _who(self, resource: str) -> str:
        from ltctl import render

        return f"  {safe(render.leaf(resource))}" if self._with_job else ""


def _explain(begin: control_pb2.SnapshotBegin) -> None:
    from livetune.v1 import control_pb2

    if begin.cause == control_pb2.SNAPSHOT_CAUSE_COMPACTED:
        note("ltctl: the events that come next are not kept any more (retention); going on from what is now")
    elif begin.cause == control_pb2.SNAPSHOT_CAUSE_STORE_REPLACED:
        note("ltctl: the daemon has another store now; going on from what is in it")


def _abandon_when_the_reader_leaves(client: Client) -> None:
    """End the watch when nobody reads its output any more, as after `| head`, even while nothing happens."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # no file: nobody can leave

    def wait() -> None:
        poll = select.poll()
        poll.register(output, 0)  # errors are told unasked
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll()):
            client.abandon()

    threading.Thread(target=wait, daemon=True).start()
