"""Owns what the commands share: their options, and printing in the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from ltctl.arguments import seconds, word
from ltctl.text import out, safe, to_json, to_yaml

FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")
output_option = click.option(
    "-o", "--output", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Output format."
)
reason_option = click.option("--reason", type=word, default="", metavar="TEXT", help="Why; kept in the history.")
wait_option = click.option(
    "--wait",
    type=click.Choice(["applied", "accepted"]),
    default="applied",
    show_default=True,
    help="Return when the job uses it, or as soon as it is on the daemon's disk.",
)
timeout_option = click.option(
    "--timeout", type=seconds, default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait for the apply.",
)  # fmt: skip


def print_data(form: str, data: Any, names: Iterable[str], lines: Callable[[], Iterable[str]]) -> None:
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
