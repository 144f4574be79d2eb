"""Values of variables: the four types, reading them from text, and bringing a given value to a variable's type."""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeAlias

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded

Value: TypeAlias = float | int | bool | str
"""A value. Its Python type is exact: a bool is never taken for an int, an int never for a float."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class ValueType(Enum):
    """The type of a variable."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"
    STRING = "string"


_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_INT = re.compile(r"[+-]?[0-9]{1,30}")
# What float() reads, less the underscores that it allows between digits: no tool writes numbers that way.
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def utf8_length(text: str) -> int:
    """Returns how many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def type_of(value: Value) -> ValueType:
    """Returns the type of a value."""
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        return ValueType.INT
    if isinstance(value, float):
        return ValueType.FLOAT
    return ValueType.STRING


def shown(value: Value) -> str:
    """Returns a value as a message shows it: shortest form that reads back, long texts shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def parse_text(variable: str, declared: ValueType, text: str) -> Value:
    """Reads a value as a person types it.

    Booleans are ``true/false``, ``yes/no``, ``on/off``, ``1/0`` in any case; integers decimal; floats as Python and C
    read them, ``nan`` and ``inf`` included: the constraint refuses those, with a better message than a parser's.

    Raises:
        DomainError: WRONG_TYPE, or LIMIT_EXCEEDED for a text that is too long.
    """
    if utf8_length(text) > limits.STRING_VALUE_BYTES:
        raise limit_exceeded("string_value_bytes", limits.STRING_VALUE_BYTES, f"value of variable '{variable}'")
    word = text.strip()
    if declared is ValueType.STRING:
        return text
    if declared is ValueType.BOOL and word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if declared is ValueType.INT and _INT.fullmatch(word) and INT_MIN <= int(word) <= INT_MAX:
        return int(word)
    if declared is ValueType.FLOAT and _FLOAT.fullmatch(word):
        return float(word)
    raise wrong_type(variable, declared, text)


def coerce(variable: str, declared: ValueType, value: Value) -> Value:
    """Brings a value to a variable's type. Only one widening is allowed: an int that a float holds exactly.

    Raises:
        DomainError: WRONG_TYPE, or LIMIT_EXCEEDED for a string that is too long.
    """
    actual = type_of(value)
    if declared is ValueType.FLOAT and actual is ValueType.INT and abs(int(value)) <= 2**53:
        return float(value)
    if actual is not declared:
        raise wrong_type(variable, declared, value)
    if isinstance(value, str) and utf8_length(value) > limits.STRING_VALUE_BYTES:
        raise limit_exceeded("string_value_bytes", limits.STRING_VALUE_BYTES, f"value of variable '{variable}'")
    if actual is ValueType.INT and not INT_MIN <= int(value) <= INT_MAX:
        raise wrong_type(variable, declared, value)
    return value


def wrong_type(variable: str, declared: ValueType, value: Value) -> DomainError:
    """Builds the refusal of a value that is not of the variable's type."""
    kind = {
        ValueType.FLOAT: "a float (a number such as 0.01 or 1e-3)",
        ValueType.INT: "an int (a whole number of 64 bits)",
        ValueType.BOOL: "a bool (true or false)",
        ValueType.STRING: "a string",
    }[declared]
    return DomainError(
        Reason.WRONG_TYPE,
        f"variable '{variable}': {shown(value)} is not {kind}",
        variable=variable,
        rule=f"type {declared.value}",
        value=shown(value),
    )
