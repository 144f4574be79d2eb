"""Owns what notebooks show of jobs, variables, triggers and changes: small tables of HTML.

Pure: it reads, and nothing else. Every text that comes from elsewhere is escaped and shortened, every table has a
limit. Colours are the notebook's own, so that dark ones stay dark: no background, and what is faint is so by opacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from livetune.messages import AppliedChange
from livetune.specs import Scalar, Scale, VariableSpec, shown

if TYPE_CHECKING:
    from livetune.trigger import Trigger
    from livetune.variable import Variable

__all__ = ["AppliedChanges", "changes_html", "constraint", "job_html", "trigger_html", "variable_html"]

ROWS = 50
"""Most rows of a table."""
LAST_CHANGES = 5
"""How many changes a job shows."""
TEXT = 120
"""Most characters of a text."""

_CELL = "text-align:left;padding:.15em 1em .15em 0;vertical-align:top"
_NUMBER = f"{_CELL};white-space:nowrap"
_WORDS = f"{_CELL};white-space:normal;overflow-wrap:anywhere;min-width:7em"
_TABLE = "table-layout:auto;border-collapse:collapse;border:none;margin:.4em 0"
_FAINT = "opacity:.65"


class AppliedChanges(list[AppliedChange]):
    """Changes that took effect, oldest first: a list that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return changes_html(self)


def job_html(
    name: str,
    state: str,
    variables: Sequence[Variable[Any]],
    triggers: Sequence[Trigger],
    changes: Sequence[AppliedChange],
) -> str:
    """Return a job as HTML: what it is doing, its variables, its triggers and the last changes.

    Args:
        name: Its name.
        state: What it is doing, in words.
        variables: All that are declared.
        triggers: The same.
        changes: That took effect, oldest first.
    """
    parts = [f"<div><b>{_text(name)}</b> <span style='{_FAINT}'>{_text(state)}</span></div>"]
    if variables:
        parts.append(_variables(variables))
    if triggers:
        parts.append(_triggers(triggers))
    if changes:
        parts.append(_changes(changes, LAST_CHANGES))
    return _whole(parts)


def variable_html(variable: Variable[Any]) -> str:
    """Return a variable as HTML."""
    return _whole([_variables([variable])])


def trigger_html(trigger: Trigger) -> str:
    """Return a trigger as HTML."""
    return _whole([_triggers([trigger])])


def changes_html(changes: Sequence[AppliedChange]) -> str:
    """Return changes as HTML, the newest first."""
    return _whole([_changes(changes, ROWS)])


def constraint(spec: VariableSpec) -> str:
    """Say what values a variable takes, in the words of ``ltctl describe``."""
    kind, scale = spec.kind.value, ", log scale" if spec.scale is Scale.LOG else ""
    low, high = spec.minimum, spec.maximum
    if spec.choices is not None:
        return f"{kind}, one of {', '.join(spec.choices)}"
    if low is not None and high is not None:
        return f"{kind}, {low!r} to {high!r}{scale}"
    if low is not None:
        return f"{kind}, at least {low!r}{scale}"
    return f"{kind}, at most {high!r}{scale}" if high is not None else f"{kind}{scale}"


def _variables(variables: Sequence[Variable[Any]]) -> str:
    rows = (
        (
            f"<b>{_text(variable.name)}</b>",
            f"<code>{_value(variable.value)}</code> {_text(variable.unit)}".rstrip(),
            _text(constraint(variable._spec)),  # noqa: SLF001 - they show themselves by this module
            variable.revision or "",
            variable.applied_step if variable.revision else "",
            _text(variable.doc),
        )
        for variable in variables[:ROWS]
    )
    head = ("variable", "value", "takes", "revision", "since step", "meaning")
    return _table(head, rows, len(variables) - ROWS, "more")


def _triggers(triggers: Sequence[Trigger]) -> str:
    rows = (
        (f"<b>{_text(trigger.name)}</b>", trigger._ready, _text(trigger.doc))  # noqa: SLF001 - as above
        for trigger in triggers[:ROWS]
    )
    return _table(("trigger", "to consume", "meaning"), rows, len(triggers) - ROWS, "more")


def _changes(changes: Sequence[AppliedChange], most: int) -> str:
    rows = (
        (change.step, _assignments(change), change.revision or "", _text(change.reason), _text(change.actor))
        for change in reversed(changes[-most:])
    )
    return _table(("step", "change", "revision", "reason", "who"), rows, len(changes) - most, "older")


def _assignments(change: AppliedChange) -> str:
    shown = [
        f"<b>{_text(name)}</b> <code>{_value(old)}</code> → <code>{_value(new)}</code>"
        for name, (old, new) in list(change.values.items())[:LAST_CHANGES]
    ]
    more = len(change.values) - len(shown)
    return "<br>".join([*shown, f"and {more} more"] if more > 0 else shown)


def _table(head: Iterable[str], rows: Iterable[Sequence[str | int]], more: int, of_what: str) -> str:
    """Lay out numbers, and words that are HTML already; `more` rows are only counted."""
    lines = ["".join(f"<th style='{_NUMBER};font-weight:normal;{_FAINT}'>{word}</th>" for word in head)]
    lines += ["".join(map(_cell, row)) for row in rows]
    body = "".join(f"<tr style='background:none'>{line}</tr>" for line in lines)
    rest = f"<div style='{_FAINT}'>and {more:,} {of_what}</div>" if more > 0 else ""
    return f"<table style='{_TABLE}'>{body}</table>{rest}"


def _cell(content: str | int) -> str:
    # Numbers stay whole; words break where they must, so that one long name does not push all else out of sight.
    style = _WORDS if content and isinstance(content, str) else _NUMBER
    return f"<td style='{style}'>{content}</td>"


def _whole(parts: Iterable[str]) -> str:
    return f"<div style='text-align:left;line-height:1.4'>{''.join(parts)}</div>"


def _value(value: Scalar) -> str:
    return escape(shown(value))


def _text(text: str) -> str:
    """Escape and shorten a text of a program's or a person's."""
    return escape(text if len(text) <= TEXT else f"{text[: TEXT - 1]}…")
