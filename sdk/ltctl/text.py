"""Owns how text looks in a terminal: escaping what strangers wrote, aligned tables, YAML that every parser reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence

import click

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_RAW_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BEYOND_16_BITS = re.compile(r"([\U00010000-\U0010ffff])")
_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*")
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf", "infinity"}


def safe(text: str) -> str:
    """Escape control and bidirectional characters: a job's name or reason must not steer the reader's terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def arrow() -> str:
    """Return the arrow between old and new that the terminal can show."""
    return "→" if _can_show("→") else "->"


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def out(line: str = "") -> None:
    """Print one line of data, whatever the terminal can show."""
    encoding = sys.stdout.encoding or "ascii"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding))  # echo flushes


def note(line: str) -> None:
    """Print one line for the person, on stderr."""
    click.echo(line, err=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns; the last one is not padded."""
    cells = [list(map(safe, row)) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def to_json(data: object, *, pretty: bool = True) -> str:
    """Write JSON, indented or in one line."""
    indent = 2 if pretty else None
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    if not _can_show(text):
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
