"""What a program declares: specifications of variables and triggers, and the constraint that every value must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import Enum

from livetuned.domain import limits
from livetuned.domain.errors import DomainError, Reason, limit_exceeded
from livetuned.domain.names import check_identifier, nearest
from livetuned.domain.values import Value, ValueType, coerce, shown, utf8_length


class Scale(Enum):
    """How a control should space the values. No effect on validation beyond the positive minimum of LOG."""

    UNSPECIFIED = ""
    LINEAR = "linear"
    LOG = "log"


class RestartPolicy(Enum):
    """What a variable begins with when a new process takes up a run that was lost."""

    KEEP = "keep"
    """The value that was asked for last."""
    RESET = "reset"
    """The value its program declares; but a change that no rank had taken still applies."""


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """A variable as its program declared it."""

    name: str
    """Identifiers joined by dots."""
    type: ValueType
    """Fixed while a run lasts."""
    initial: Value
    """What the program starts with; keeps the constraint."""
    minimum: Value | None = None
    """Smallest value allowed (inclusive); only for FLOAT and INT."""
    maximum: Value | None = None
    """Largest value allowed (inclusive); only for FLOAT and INT."""
    choices: tuple[str, ...] = ()
    """Values allowed; only for STRING; empty means any."""
    scale: Scale = Scale.UNSPECIFIED
    """How a control should space the values."""
    unit: str = ""
    """The value's unit as a person reads it."""
    doc: str = ""
    """One sentence for whoever is about to change it."""
    on_restart: RestartPolicy = RestartPolicy.KEEP
    """What it begins with when a lost run is taken up."""

    def check(self, value: Value) -> Value:
        """Brings a value to the variable's type and returns it if it keeps the constraint.

        Raises:
            DomainError: WRONG_TYPE, NOT_FINITE, BELOW_MINIMUM, ABOVE_MAXIMUM, NOT_A_CHOICE or LIMIT_EXCEEDED, naming
                the variable, the rule and the value.
        """
        value = coerce(self.name, self.type, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refusal(Reason.NOT_FINITE, "finite", value)
        if isinstance(value, str):
            if self.choices and value not in self.choices:
                rule = "one of " + ", ".join(map(repr, self.choices[:20])) + (", ..." if len(self.choices) > 20 else "")
                raise self._refusal(Reason.NOT_A_CHOICE, rule, value, nearest=nearest(value, self.choices))
        elif self.minimum is not None and value < self.minimum:  # type: ignore[operator] # checked(): both are numbers
            raise self._refusal(Reason.BELOW_MINIMUM, f">= {shown(self.minimum)}", value)
        elif self.maximum is not None and value > self.maximum:  # type: ignore[operator]
            raise self._refusal(Reason.ABOVE_MAXIMUM, f"<= {shown(self.maximum)}", value)
        return value

    def _refusal(self, reason: Reason, rule: str, value: Value, **metadata: str) -> DomainError:
        return DomainError(
            reason,
            f"variable '{self.name}': {shown(value)} is refused, it must be {rule}",
            variable=self.name,
            rule=rule,
            value=shown(value),
            **{key: text for key, text in metadata.items() if text},
        )

    def checked(self) -> VariableSpec:
        """Returns the specification with its numbers in the variable's type, if it is one that can be kept.

        Raises:
            DomainError: INVALID_NAME, INVALID_REQUEST (a bound or choices that do not belong to the type, minimum above
                maximum, LOG without positive numbers), LIMIT_EXCEEDED, or what `check` raises for the initial value.
        """
        check_identifier("variable", self.name)
        for label, text in (("doc", self.doc), ("unit", self.unit)):
            check_text(f"{label} of variable '{self.name}'", text)
        numeric = self.type in (ValueType.FLOAT, ValueType.INT)
        if not numeric and (
            self.minimum is not None or self.maximum is not None or self.scale is not Scale.UNSPECIFIED
        ):
            raise self._invalid(f"a {self.type.value} has no minimum, maximum or scale")
        if self.type is not ValueType.STRING and self.choices:
            raise self._invalid(f"a {self.type.value} has no choices")
        if len(self.choices) > limits.CHOICES:
            raise limit_exceeded("choices", limits.CHOICES, f"variable '{self.name}' has {len(self.choices):,} choices")
        for choice in self.choices:
            coerce(self.name, ValueType.STRING, choice)
        minimum = None if self.minimum is None else self._bound("minimum", self.minimum)
        maximum = None if self.maximum is None else self._bound("maximum", self.maximum)
        if minimum is not None and maximum is not None and minimum > maximum:  # type: ignore[operator]
            raise self._invalid(f"minimum {shown(minimum)} is above maximum {shown(maximum)}")
        bounded = replace(self, minimum=minimum, maximum=maximum)
        initial = bounded.check(self.initial)
        if self.scale is Scale.LOG:
            lowest = initial if minimum is None else minimum
            if not isinstance(lowest, str) and lowest <= 0:
                raise self._invalid(f"scale log needs positive numbers, not {shown(lowest)}")
        return replace(bounded, initial=initial)

    def _bound(self, label: str, bound: Value) -> Value:
        value = coerce(self.name, self.type, bound)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._invalid(f"{label} {shown(value)} is not finite; leave it out for none")
        return value

    def _invalid(self, problem: str) -> DomainError:
        return DomainError(
            Reason.INVALID_REQUEST,
            f"declaration of variable '{self.name}': {problem}",
            variable=self.name,
            rule=problem,
        )

    def differences(self, other: VariableSpec) -> tuple[str, ...]:
        """Names the binding fields that differ: a program may reword a doc, not move a limit under a live run."""
        binding = ("type", "minimum", "maximum", "choices", "initial")
        return tuple(
            field.name
            for field in fields(self)
            if field.name in binding and getattr(self, field.name) != getattr(other, field.name)
        )


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """A trigger as its program declared it."""

    name: str
    """Identifiers joined by dots; shares one set of names with the variables."""
    doc: str = ""
    """One sentence for whoever is about to fire it."""

    def checked(self) -> TriggerSpec:
        """Returns the specification if it can be kept.

        Raises:
            DomainError: INVALID_NAME or LIMIT_EXCEEDED.
        """
        check_identifier("trigger", self.name)
        check_text(f"doc of trigger '{self.name}'", self.doc)
        return self


def check_text(what: str, text: str) -> str:
    """Returns a free text if it is not too long.

    Raises:
        DomainError: LIMIT_EXCEEDED.
    """
    if utf8_length(text) > limits.TEXT_BYTES:
        raise limit_exceeded("text_bytes", limits.TEXT_BYTES, what)
    return text
