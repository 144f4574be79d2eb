"""Owns what the commands share: their options, and printing in the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

import click

from ltctl.arguments import seconds, steps, word
from ltctl.text import out, safe, to_json, to_yaml

T = TypeVar("T")

FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")
_PART = 1_000
"""How many lines of a table are aligned together, a count: so much is held back."""

output_option = click.option(
    "-o", "--output", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Output format."
)
reason_option = click.option("--reason", type=word, default="", metavar="TEXT", help="Why; kept in the history.")


@dataclass(frozen=True)
class How:
    """How a change is asked for, waited for and shown: what `change_options` read."""

    reason: str
    dry_run: bool
    wait: str
    timeout: float
    """Seconds."""
    form: str


@dataclass(frozen=True)
class When:
    """At which step a change is to take effect: what `when_options` read. Neither means at once."""

    at_step: int | None
    in_steps: int | None

    @property
    def waits(self) -> bool:
        """Whether there is such a step."""
        return self.at_step is not None or self.in_steps is not None

    def fields(self) -> dict[str, int]:
        """Return it as a request has it."""
        if self.at_step is not None:
            return {"at_step": self.at_step}
        return {} if self.in_steps is None else {"in_steps": self.in_steps}


_CHANGE_OPTIONS = (
    reason_option,
    click.option("--dry-run", is_flag=True, help="Have everything checked and shown, and change nothing."),
    click.option(
        "--wait",
        type=click.Choice(["applied", "accepted"]),
        default=None,
        show_default="applied; accepted for one that waits for its step",
        help="Return when the job uses it, or as soon as it is on the daemon's disk.",
    ),
    click.option(
        "--timeout", type=seconds, default=30.0, show_default=True, metavar="SECONDS",
        help="How long to wait for the apply.",
    ),
    output_option,
)  # fmt: skip


def change_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all that change; they arrive as `how`, a `How`."""

    @wraps(command)
    def with_how(
        *words: Any, reason: str, dry_run: bool, wait: str | None, timeout: float, form: str, **options: Any
    ) -> None:
        when = options.get("when")
        waits = isinstance(when, When) and when.waits
        if waits and wait == "applied":
            raise click.UsageError("a change that waits for its step is not waited for: see `ltctl watch`")
        how = How(reason, dry_run, wait or ("accepted" if waits else "applied"), timeout, form)
        command(*words, how=how, **options)

    decorated: Callable[..., None] = with_how
    for option in reversed(_CHANGE_OPTIONS):
        decorated = option(decorated)
    return decorated


_WHEN_OPTIONS = (
    click.option(
        "--at-step", type=steps, metavar="N", help="Let it take effect at this step, and not before (ltctl cancel)."
    ),
    click.option(
        "--in", "in_steps", type=steps, metavar="N",
        help="Let it take effect N steps after the one that the job last told, about a second ago.",
    ),
)  # fmt: skip


def when_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say at which step; they arrive as `when`. To be put above `change_options`."""

    @wraps(command)
    def with_when(*words: Any, at_step: int | None, in_steps: int | None, **options: Any) -> None:
        if at_step is not None and in_steps is not None:
            raise click.UsageError("--at-step and --in exclude each other")
        command(*words, when=When(at_step, in_steps), **options)

    decorated: Callable[..., None] = with_when
    for option in reversed(_WHEN_OPTIONS):
        decorated = option(decorated)
    return decorated


def print_data(form: str, data: Any, names: Iterable[str], lines: Callable[[], Iterable[str]]) -> None:
    """Print one thing in the format asked for.

    Args:
        form: The format.
        data: Plain data.
        names: What `name` prints.
        lines: Makes what `table` and `wide` print.
    """
    if form in ("json", "jsonl"):
        out(to_json(data, pretty=form == "json"))
    elif form == "yaml":
        out(to_yaml(data))
    else:
        for line in map(safe, names) if form == "name" else lines():
            out(line)


def print_items(
    form: str,
    items: Iterable[T],
    data: Callable[[T], Any],
    name: Callable[[T], str],
    lines: Callable[[Sequence[T]], Iterable[str]],
) -> None:
    """Print many things as they come, however many: one document in json and yaml, one line each in jsonl and name.

    Args:
        form: The format.
        items: What to print.
        data: Makes plain data of one.
        name: What `name` prints of one.
        lines: Makes what `table` and `wide` print of some that follow each other.
    """
    if form == "json":
        _print_array(to_json(data(item)) for item in items)
    elif form == "yaml":
        _print_sequence(to_yaml([data(item)]) for item in items)
    elif form in ("jsonl", "name"):
        for item in items:
            out(safe(name(item)) if form == "name" else to_json(data(item), pretty=False))
    else:
        rest = iter(items)
        while part := list(islice(rest, _PART)):
            for line in lines(part):
                out(line)


def _print_sequence(texts: Iterable[str]) -> None:
    empty = True
    for text in texts:
        out(text)
        empty = False
    if empty:
        out("[]")


def _print_array(texts: Iterable[str]) -> None:
    before = "["
    for text in texts:
        indented = text.replace("\n", "\n  ")
        out(f"{before}\n  {indented}", end="")
        before = ","
    out("[]" if before == "[" else "\n]")
