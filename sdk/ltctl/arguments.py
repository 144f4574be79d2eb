"""Owns reading the command line's words: JOB, NAME=VALUE, and telling one from the other. Loads no gRPC."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click

from ltctl.text import did_you_mean

_INT64_MAX = 2**63 - 1
_DIGITS_MAX = 19
_SECONDS_MAX = 30 * 86_400.0


def seconds(text: str | float) -> float:
    """Read a time to wait: neither NaN nor an endless number may reach a timer.

    Raises:
        click.BadParameter: It is not a number from 0 to 30 days.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= _SECONDS_MAX:
        raise click.BadParameter(f"{text!r} is not a number of seconds from 0 to {_SECONDS_MAX:g} (30 days)")
    return number


def revision(text: str | int) -> int:
    """Read a revision, or 0 for before the first.

    Raises:
        click.BadParameter: It is none.
    """
    text = str(text)
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and int(text) <= _INT64_MAX:
        return int(text)
    raise click.BadParameter(f"'{text}' is not a revision: a whole number, as ltctl history shows it")


def count(text: str | int) -> int:
    """Read how many are wanted: one at least.

    Raises:
        click.BadParameter: It is no such number.
    """
    try:
        if (number := int(text)) > 0:
            return number
    except ValueError:
        pass
    raise click.BadParameter(f"'{text}' is not a number from 1 on")


def steps(text: str | int) -> int:
    """Read a step, or a number of steps: one at least.

    Raises:
        click.BadParameter: It is none.
    """
    text = str(text)
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and 0 < int(text) <= _INT64_MAX:
        return int(text)
    raise click.BadParameter(f"'{text}' is not a step: a whole number from 1 on, of 63 bits")


def word(text: str) -> str:
    """Return a word of the command line if it can be sent: the wire carries valid UTF-8 only.

    Raises:
        click.BadParameter: It is not.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise click.BadParameter(f"'{shown}' is not valid UTF-8") from None
    return text


class NearestVerb(click.Group):
    """A group that lists its commands in the order of a day's work, and names the nearest when one is mistyped."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands as they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or end with a usage error that names the nearest."""
        verb = args[0] if args else ""
        if verb and not verb.startswith("-") and self.get_command(ctx, verb) is None:
            known = self.list_commands(ctx)
            hint = did_you_mean(verb, known, f"; there are {', '.join(known)}")
            raise click.UsageError(f"no command '{verb}'{hint}", ctx)
        return super().resolve_command(ctx, args)


def split_job(words: Sequence[str], *, scoped: bool, example: str) -> tuple[str, list[str]]:
    """Take the job from the front of the words.

    Args:
        words: The command's arguments.
        scoped: Whether a job's own port is spoken to: then no job is expected.
        example: Shown when the job is missing.

    Returns:
        The job's name, ``""`` if it is the port's own, and the other words.

    Raises:
        click.UsageError: The job is missing.
    """
    if scoped:
        return "", list(words)
    if not words:
        raise click.UsageError(f"which job? Write: {example}, or give its port with --port")
    return words[0], list(words[1:])


def parse_assignments(words: Sequence[str], example: str) -> dict[str, str]:
    """Read NAME=VALUE words; a value may hold '=', be empty, or begin with '-'.

    Raises:
        click.UsageError: There is none, one has no '=' or no name, or a name is given twice.
    """
    if not words:
        raise click.UsageError(f"set what? Write: {example}")
    texts: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"'{word}' is not of the form NAME=VALUE, as in: {example}")
        if name in texts:
            raise click.UsageError(f"'{name}' is given twice")
        texts[name] = text
    return texts


def split_undo(words: Sequence[str], *, scoped: bool, example: str) -> tuple[str, int | None]:
    """Read [JOB] [REVISION].

    Args:
        words: The command's arguments.
        scoped: Whether a job's own port is spoken to: then a number alone is a revision.
        example: Shown when the words are not understood.

    Returns:
        The job's name, ``""`` if it is the port's own, and the revision, None if none is given.

    Raises:
        click.UsageError: The job is missing, there is a word too many, or the revision is none.
    """
    own = scoped and (not words or words[0].isdecimal())
    job, rest = split_job(words, scoped=own, example=example)
    if len(rest) > 1:
        raise click.UsageError(f"one change at a time; write: {example}")
    if not rest:
        return job, None
    number = revision(rest[0])
    if not number:
        raise click.UsageError("no change has revision 0")
    return job, number


def job_resource(job: str) -> str:
    """Return the resource name of a job, ``""`` for the port's own."""
    from livetune.wire import job_name  # loads protobuf, which reading the words must not

    return job_name(job) if job else ""
