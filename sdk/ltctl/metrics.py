"""Owns the command that shows what a job's program logs: metrics."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ltctl.arguments import job_resource, split_job, word
from ltctl.client import CALL_SECONDS, Client, metadata
from ltctl.exits import EXIT_HELP, CommandError, Exit
from ltctl.options import output_option, print_items
from ltctl.reading import ask_job
from ltctl.text import can_show, did_you_mean, note, safe, table

if TYPE_CHECKING:
    from livetune.v1 import control_pb2

_BLOCKS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "!"
_COURSE_POINTS = 24
"""How many points of a series the course in a table shows, a count."""
_POINTS_MAX = 1_000
_STEP_MAX = 2**63 - 1


@click.command(short_help="Show what a job's program logs.", epilog=EXIT_HELP)
@click.argument("words", nargs=-1, type=word, metavar="[JOB] [NAME]...")
@click.option("--rank", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Only what this rank logs.")
@click.option(
    "--after", type=click.IntRange(0, _STEP_MAX), metavar="STEP", help="Only the course after this step [default: all]."
)
@click.option(
    "--points", type=click.IntRange(1, _POINTS_MAX), default=100, show_default=True, metavar="N",
    help="Most points of each course in json, jsonl and yaml, evenly chosen.",
)  # fmt: skip
@output_option
@click.pass_obj
def metrics(
    client: Client, words: tuple[str, ...], rank: int | None, after: int | None, points: int, form: str
) -> None:
    """Show what a job's program logs with `job.log`: the newest value of each series, its range, its course.

    It is sampled about once a second, and kept in the daemon's memory only: after a restart of the daemon the course
    begins anew. On a terminal, and with `-o wide`, the course is drawn, a `!` where it is NaN or infinite.
    """
    from livetune.v1 import control_pb2
    from ltctl import render

    job, wanted = split_job(words, scoped=client.scoped, example="ltctl metrics JOB")
    drawn = form == "wide" or (form == "table" and sys.stdout.isatty())
    most = points if form in ("json", "jsonl", "yaml") else _COURSE_POINTS if drawn else 1
    request = control_pb2.GetMetricsRequest(
        job=job_resource(job), names=wanted, rank=rank, after_step=after, max_points=most
    )
    answer = _ask(client, request)
    answer = _all_of(client, request, answer, wanted)
    print_items(
        form,
        answer.series,
        render.series_data,
        lambda series: series.name,
        lambda series: _lines(series, wide=form == "wide", drawn=drawn and can_show(_BLOCKS)),
    )
    if not answer.series and form in ("table", "wide"):
        note("nothing is logged (a program logs with job.log(name=value); kept since the daemon started)")
    if answer.dropped:
        note(f"{answer.dropped} values were dropped: too many series, or logged too often (livetuned's log tells more)")


def _ask(client: Client, request: control_pb2.GetMetricsRequest) -> control_pb2.GetMetricsResponse:
    return client.call(lambda stub: stub.GetMetrics(request, metadata=metadata(), timeout=CALL_SECONDS))


def _all_of(
    client: Client, request: control_pb2.GetMetricsRequest, answer: control_pb2.GetMetricsResponse, wanted: list[str]
) -> control_pb2.GetMetricsResponse:
    """Return the answer if it has every series that is wanted.

    Raises:
        CommandError: One is missing.
    """
    from livetune.v1 import control_pb2
    from ltctl import render

    missing = [name for name in wanted if name not in {series.name for series in answer.series}]
    if not missing:
        return answer
    own = render.leaf(ask_job(client, request.job.removeprefix("jobs/")).job.name)
    if client.scoped and missing == [own] and wanted[0] == own:
        # The job's name, needless on its own port.
        request.names.remove(own)
        return _ask(client, request)
    everything = control_pb2.GetMetricsRequest(job=request.job, max_points=1)
    known = sorted({series.name for series in _ask(client, everything).series})
    hint = did_you_mean(missing[0], known, f"; it logs {', '.join(known[:10]) or 'nothing'}")
    where = f" of rank {request.rank}" if request.HasField("rank") else ""
    raise CommandError(Exit.NOT_FOUND, safe(f"job '{own}' has no series '{missing[0]}'{where}{hint}"))


def _lines(series: Sequence[control_pb2.MetricSeries], *, wide: bool, drawn: bool) -> list[str]:
    from ltctl import render

    with_rank = wide or len({one.rank for one in series}) > 1
    head = ["NAME", *(["RANK"] if with_rank else []), "LAST", "STEP", "MIN", "MAX"]
    head += ["SAMPLES", "RECEIVED"] if wide else []
    rows = []
    for one in series:
        row = [one.name, *([str(one.rank)] if with_rank else []), f"{one.last_value:g}", str(one.last_step)]
        row.append(f"{one.minimum:g}" if one.HasField("minimum") else "-")
        row.append(f"{one.maximum:g}" if one.HasField("maximum") else "-")
        row += [str(one.samples), render.local_time(one.last_time)] if wide else []
        rows.append(row + ([course(one.point_values)] if drawn else []))
    return table(head + (["COURSE"] if drawn else []), rows)


def course(values: Sequence[float]) -> str:
    """Draw values as blocks of a height between their smallest and largest; a mark stands for what is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    # Halves, since the difference of two large numbers may be more than a float holds.
    span = high / 2 - low / 2

    def block(value: float) -> str:
        if not math.isfinite(value):
            return _NOT_FINITE
        return _BLOCKS[round((value / 2 - low / 2) / span * (len(_BLOCKS) - 1)) if span > 0 else 0]

    return "".join(map(block, values))
