"""Owns what variables and triggers may be declared as, and which values that allows. Pure: no I/O, no protobuf."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from livetune.errors import DeclarationError, InvalidNameError

__all__ = [
    "Kind",
    "RestartPolicy",
    "Scalar",
    "Scale",
    "TriggerSpec",
    "VariableSpec",
    "check_job_name",
    "check_name",
    "declare_trigger",
    "differences",
    "shown",
    "utf8",
]

Scalar = float | int | bool | str
"""A value of a variable."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_NAME_BYTES = 200
_OVERHEAD_BYTES = 100
MAX_TEXT_BYTES = 64 * 1024
MAX_DECLARATION_BYTES = 200_000
"""Largest declaration, by weight. The daemon accepts messages of 256 KiB."""

_JOB_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)


class Kind(enum.Enum):
    """Type of a variable; it is fixed by the initial value."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"
    STR = "str"


class Scale(enum.Enum):
    """How a control that shows the variable should space its values."""

    LINEAR = "linear"
    LOG = "log"


class RestartPolicy(enum.Enum):
    """What a variable begins with when its program is started again after its run was lost."""

    KEEP = "keep"
    RESET = "reset"


@dataclass(frozen=True)
class TriggerSpec:
    """What a program declares about a trigger."""

    name: str
    doc: str = ""

    @property
    def weight(self) -> int:
        """Upper estimate of its size on the wire, in bytes."""
        return _OVERHEAD_BYTES + len(self.name) + (_size(self.doc) or 0)


@dataclass(frozen=True)
class VariableSpec:
    """What a program declares about a variable. Build it with `VariableSpec.declare`, which checks it."""

    name: str
    kind: Kind
    initial: Scalar
    minimum: float | int | None = None
    maximum: float | int | None = None
    choices: tuple[str, ...] | None = None
    scale: Scale | None = None
    unit: str = ""
    doc: str = ""
    on_restart: RestartPolicy = RestartPolicy.KEEP

    @classmethod
    def declare(
        cls,
        name: str,
        initial: Scalar,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        choices: Sequence[str] | None = None,
        scale: str | None = None,
        unit: str = "",
        doc: str = "",
        on_restart: str = "keep",
    ) -> VariableSpec:
        """Check a declaration and bring its values into the variable's type.

        Raises:
            InvalidNameError: if the name breaks the rule for names.
            DeclarationError: if anything else is wrong; the message names the variable, the rule and the value.
        """
        check_name("variable", name)
        kind = _kind_of(name, initial)
        spec = cls(
            name=name,
            kind=kind,
            initial=_bring_into(kind, initial),
            minimum=_bound(name, kind, "min", minimum),
            maximum=_bound(name, kind, "max", maximum),
            choices=_choices(name, kind, choices),
            scale=_scale(name, kind, scale),
            unit=_text(name, "unit", unit),
            doc=_text(name, "doc", doc),
            on_restart=_restart_policy(name, on_restart),
        )
        spec._check_itself()
        return spec

    @property
    def weight(self) -> int:
        """Upper estimate of its size on the wire together with a value in use, in bytes."""
        choices = [_size(choice) or 0 for choice in self.choices or ()]
        value = 0
        if self.kind is Kind.STR:
            value = max(choices) if choices else MAX_TEXT_BYTES
        texts = len(self.name) + (_size(self.unit) or 0) + (_size(self.doc) or 0)
        return _OVERHEAD_BYTES + texts + 2 * value + sum(choices) + 4 * len(choices)

    def bring(self, value: Any) -> Any:
        """Return a value in exactly the variable's type where nothing is lost by it, any other as it is."""
        wanted = _TYPES[self.kind]
        if isinstance(value, bool) and self.kind is not Kind.BOOL:
            return value
        widened = self.kind is Kind.FLOAT and isinstance(value, int)
        return wanted(value) if widened or isinstance(value, wanted) else value

    def refusal(self, value: object) -> str | None:
        """Say why `value` is not allowed for this variable, or None if it is.

        The value must be of exactly the variable's type: a float variable takes no int here, because what crosses the
        wire is typed.
        """
        if type(value) is not _TYPES[self.kind]:
            given = f"{shown(value)} is of type {type(value).__name__}"
            return f"variable {self.name!r} is of type {self.kind.value}: {given}"
        if isinstance(value, str):
            return self._text_refusal(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"variable {self.name!r} must be finite, got {value!r}"
        if self.kind is Kind.INT and not _is_int64(value):
            return f"variable {self.name!r} must fit in 64 bits, got {value!r}"
        return self._range_refusal(value) if isinstance(value, (int, float)) else None

    def _text_refusal(self, value: str) -> str | None:
        if _size(value) is None:
            return f"variable {self.name!r} must be text that UTF-8 can carry, got {shown(value)}"
        if (_size(value) or 0) > MAX_TEXT_BYTES:
            return f"variable {self.name!r} takes at most {MAX_TEXT_BYTES} bytes, got {_size(value)}"
        if self.choices is not None and value not in self.choices:
            return f"variable {self.name!r} must be one of {', '.join(map(repr, self.choices))}, got {shown(value)}"
        return None

    def _range_refusal(self, value: float) -> str | None:
        if self.minimum is not None and value < self.minimum:
            return f"variable {self.name!r} must be at least {self.minimum!r}, got {value!r}"
        if self.maximum is not None and value > self.maximum:
            return f"variable {self.name!r} must be at most {self.maximum!r}, got {value!r}"
        return None

    def _check_itself(self) -> None:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise DeclarationError(f"variable {self.name!r}: min {self.minimum!r} is above max {self.maximum!r}")
        refusal = self.refusal(self.initial)
        if refusal is not None:
            raise DeclarationError(f"initial value: {refusal}")
        if self.weight > MAX_DECLARATION_BYTES:
            raise DeclarationError(
                f"variable {self.name!r}: doc, unit and choices may take {MAX_DECLARATION_BYTES} bytes with the value, "
                f"got {self.weight}"
            )
        if self.scale is Scale.LOG:
            for what, value in (("min", self.minimum), ("initial value", self.initial)):
                if isinstance(value, (int, float)) and value <= 0:
                    raise DeclarationError(
                        f"variable {self.name!r}: scale 'log' needs a positive {what}, got {value!r}"
                    )


_TYPES: dict[Kind, type] = {Kind.FLOAT: float, Kind.INT: int, Kind.BOOL: bool, Kind.STR: str}
_WORDS = {"initial": "initial value", "minimum": "min", "maximum": "max", "kind": "type"}


def differences(old: VariableSpec | TriggerSpec, new: VariableSpec | TriggerSpec) -> str:
    """Name what differs between two declarations, as in ``min 0.1 (was 0.0)``; empty if nothing does."""
    if type(old) is not type(new):
        return f"a {_noun(new)} (was a {_noun(old)})"
    found = []
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            shown = [value.value if isinstance(value, enum.Enum) else repr(value) for value in (after, before)]
            found.append(f"{_WORDS.get(field.name, field.name)} {shown[0]} (was {shown[1]})")
    return ", ".join(found)


def check_job_name(name: str) -> str:
    """Return `name` if it can name a job.

    Raises:
        InvalidNameError: if it is not a DNS label.
    """
    # Untyped programs pass anything.
    if not isinstance(name, str) or _JOB_NAME.fullmatch(name) is None:  # type: ignore[redundant-expr]
        raise InvalidNameError(
            f"job name {shown(name)}: use 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a "
            "letter or digit"
        )
    return name


def check_name(noun: str, name: str) -> str:
    """Return `name` if it can name a variable or trigger.

    Args:
        noun: what it is to name, for the message.
        name: the name.

    Raises:
        InvalidNameError: if it is not identifiers joined by dots, of at most 200 bytes.
    """
    if (
        not isinstance(name, str)  # type: ignore[redundant-expr] # untyped programs pass anything
        or _NAME.fullmatch(name) is None
        or len(name) > MAX_NAME_BYTES
    ):
        raise InvalidNameError(
            f"{noun} name {shown(name)}: use identifiers of ASCII letters, digits and _ joined by dots, as in 'lr' or "
            f"'lc.strength', of 1 to {MAX_NAME_BYTES} bytes"
        )
    return name


def _kind_of(name: str, initial: object) -> Kind:
    if isinstance(initial, bool):
        return Kind.BOOL
    if isinstance(initial, int):
        return Kind.INT
    if isinstance(initial, float):
        return Kind.FLOAT
    if isinstance(initial, str):
        return Kind.STR
    raise DeclarationError(
        f"variable {name!r}: the initial value must be a float, int, bool or str, got {shown(initial)} of type "
        f"{type(initial).__name__}"
    )


def _bring_into(kind: Kind, value: Scalar) -> Scalar:
    # Subclasses (numpy.float64, IntEnum) would carry their own behaviour, and their pickles their own packages, along.
    return _TYPES[kind](value) if type(value) is not _TYPES[kind] else value


def _bound(name: str, kind: Kind, what: str, bound: float | None) -> float | int | None:
    if bound is None:
        return None
    if kind not in (Kind.FLOAT, Kind.INT):
        raise DeclarationError(f"variable {name!r}: {what} is for float and int, not for {kind.value}; got {bound!r}")
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise DeclarationError(f"variable {name!r}: {what} must be a number, got {shown(bound)}")
    if not isinstance(bound, int) and not math.isfinite(bound):
        raise DeclarationError(f"variable {name!r}: {what} must be finite, got {bound!r}; leave it out for no bound")
    if kind is Kind.FLOAT:
        return float(bound)
    if not isinstance(bound, int):
        raise DeclarationError(f"variable {name!r} is of type int: {what} must be an int as well, got {bound!r}")
    if not _is_int64(bound):
        raise DeclarationError(f"variable {name!r}: {what} must fit in 64 bits, got {bound!r}")
    return int(bound)


def _choices(name: str, kind: Kind, choices: Sequence[str] | None) -> tuple[str, ...] | None:
    if choices is None:
        return None
    if kind is not Kind.STR:
        raise DeclarationError(f"variable {name!r}: choices are for str, not for {kind.value}; got {choices!r}")
    if isinstance(choices, str) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise DeclarationError(f"variable {name!r}: choices must be a sequence of one or more strings, got {choices!r}")
    if len(set(choices)) != len(choices):
        raise DeclarationError(f"variable {name!r}: choices must differ from each other, got {choices!r}")
    return tuple(str(choice) for choice in choices)


def _restart_policy(name: str, policy: str) -> RestartPolicy:
    try:
        return RestartPolicy(policy)
    except ValueError:
        raise DeclarationError(
            f"variable {name!r}: on_restart must be 'keep' or 'reset', got {shown(policy)}"
        ) from None


def _scale(name: str, kind: Kind, scale: str | None) -> Scale | None:
    if scale is None:
        return None
    if kind not in (Kind.FLOAT, Kind.INT):
        raise DeclarationError(f"variable {name!r}: scale is for float and int, not for {kind.value}; got {scale!r}")
    try:
        return Scale(scale)
    except ValueError:
        raise DeclarationError(f"variable {name!r}: scale must be 'linear' or 'log', got {shown(scale)}") from None


def _text(name: str, what: str, text: str) -> str:
    if not isinstance(text, str) or _size(text) is None:  # type: ignore[redundant-expr] # untyped programs
        raise DeclarationError(f"{name!r}: {what} must be text, got {shown(text)}")
    return text


def declare_trigger(name: str, doc: str = "") -> TriggerSpec:
    """Check the declaration of a trigger.

    Raises:
        InvalidNameError: if the name breaks the rule for names.
        DeclarationError: if `doc` is no text.
    """
    return TriggerSpec(check_name("trigger", name), _text(name, "doc", doc))


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and INT64_MIN <= value <= INT64_MAX


def _size(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # lone surrogates
        return None


def shown(value: object) -> str:
    """Return a value as a message shows it, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def utf8(text: str, longest: int) -> str:
    """Return a text as the wire carries it: shortened, with a mark in place of what UTF-8 has no bytes for."""
    return text[:longest].encode("utf-8", "replace").decode()


def _noun(spec: VariableSpec | TriggerSpec) -> str:
    return "variable" if isinstance(spec, VariableSpec) else "trigger"
