"""Owns how text looks in a terminal: escaping what strangers wrote, aligned tables, YAML that every parser reads."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import TextIO

import click

from ltctl.exits import CommandError, Exit, ReaderLeftError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_RAW_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BEYOND_16_BITS = re.compile(r"([\U00010000-\U0010ffff])")
_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*")
_SOFT_HYPHEN = "\xad"
_HANGUL_JOINING = re.compile(r"[\u1160-\u11ff]")
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf", "infinity"}


def safe(text: str) -> str:
    """Escape control and bidirectional characters: a job's name or reason must not steer the reader's terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(name: str, known: Collection[str], otherwise: str = "") -> str:
    """Return the end of a message about a name that is not known: the nearest one that is, or else other words."""
    import difflib  # for messages only: a command that works does without

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else otherwise


def arrow() -> str:
    """Return the arrow between old and new that the terminal can show."""
    return "→" if can_show("→") else "->"


def _encoding() -> str:
    # Without a standard output (closed by whoever started us) there is nothing to say and nothing to heed.
    return (sys.stdout and sys.stdout.encoding) or "ascii"


def can_show(text: str) -> bool:
    """Tell whether the terminal can show a text."""
    try:
        text.encode(_encoding())
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _as_shown(text: str) -> str:
    return text.encode(_encoding(), "backslashreplace").decode(_encoding())


def out(line: str = "", *, end: str = "\n") -> None:
    """Print one line of data, whatever the terminal can show.

    Args:
        line: What to print.
        end: What follows it.

    Raises:
        ReaderLeftError: Nobody reads any more, as after `| head`.
        CommandError: It can't be written, for example because the disk is full.
    """
    try:
        click.echo(_as_shown(line) + end, nl=False)  # echo flushes
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise ReaderLeftError from None
        raise CommandError(Exit.ERROR, f"the output can't be written: {error.strerror}") from error


def note(line: str) -> None:
    """Print one line for the person, on stderr; if nobody reads that, nobody need be told."""
    try:
        click.echo(line, err=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere: Python writes it at the end, and complains if it can't."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, those that combine none."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if character == _SOFT_HYPHEN:
        return 1
    # Combining marks, joiners, and the vowels and finals of Hangul that join the consonant before them.
    if unicodedata.category(character) in ("Mn", "Me", "Cf") or _HANGUL_JOINING.fullmatch(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Table:
    """Aligned columns, the last one not padded. It may come in parts: a column then never gets narrower.

    Args:
        head: The columns' titles, printed above the first part.
    """

    def __init__(self, head: Sequence[str]) -> None:
        self._head: Sequence[str] | None = head
        self._widths = [0] * len(head)

    def lines(self, rows: Iterable[Sequence[str]]) -> list[str]:
        """Return the lines of a part."""
        head, self._head = self._head, None
        cells = [[_as_shown(safe(text)) for text in row] for row in (*([head] if head else []), *rows)]
        for row in cells:
            self._widths = [max(wide, width(cell)) for wide, cell in zip(self._widths, row, strict=True)]
        return ["   ".join(map(_padded, row, self._widths)).rstrip() for row in cells]


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns; the last one is not padded."""
    return Table(head).lines(rows)


def to_json(data: object, *, pretty: bool = True) -> str:
    """Write JSON, indented or in one line."""
    indent = 2 if pretty else None
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    if not can_show(text):
        return json.dumps(data, indent=indent)
    # JSON escapes only what is below a space; the rest that steers a terminal is escaped here, and still valid JSON.
    return _RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_yaml(data: object, indent: str = "") -> str:
    """Write dictionaries, lists and scalars in YAML's block style."""
    if isinstance(data, dict) and data:
        return "\n".join(_yaml_entry(f"{indent}{_yaml_scalar(key)}:", value, indent) for key, value in data.items())
    if isinstance(data, list) and data:
        return "\n".join(_yaml_item(value, indent) for value in data)
    return indent + _yaml_scalar(data)


def _yaml_entry(head: str, value: object, indent: str) -> str:
    if isinstance(value, (dict, list)) and value:
        return f"{head}\n{to_yaml(value, indent + '  ')}"
    return f"{head} {_yaml_scalar(value)}"


def _yaml_item(value: object, indent: str) -> str:
    if isinstance(value, (dict, list)) and value:
        block = to_yaml(value, indent + "  ")
        return f"{indent}- {block[len(indent) + 2 :]}"
    return f"{indent}- {_yaml_scalar(value)}"


def _yaml_scalar(value: object) -> str:
    if isinstance(value, str) and _PLAIN_YAML.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 readers take 1e-05 for a text: a number needs its point.
        return text if "." in text or "e" not in text else text.replace("e", ".0e", 1)
    if isinstance(value, str):
        # JSON's escapes are YAML's too, but for the pairs of surrogates, which YAML readers don't join.
        parts = _BEYOND_16_BITS.split(value)
        parts[::2] = [json.dumps(part)[1:-1] for part in parts[::2]]
        parts[1::2] = [f"\\U{ord(part):08x}" for part in parts[1::2]]
        return f'"{"".join(parts)}"'
    # JSON's other scalars are YAML's, and so are its empty containers.
    return json.dumps(value)
