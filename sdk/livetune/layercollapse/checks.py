"""Checks of numeric arguments, so that every refusal names the argument, the rule and the value."""

import math

from livetune.layercollapse.errors import ArgumentError


def require_unit_interval(name: str, value: float) -> float:
    """Return `value` if it lies in 0..1.

    Raises:
        ArgumentError: It does not, or it is not finite.
    """
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise ArgumentError(f"{name} must be in 0..1, got {value!r}")
    return value


def require_non_negative(name: str, value: float) -> float:
    """Return `value` if it is finite and not negative.

    Raises:
        ArgumentError: It is negative or not finite.
    """
    if not math.isfinite(value) or value < 0.0:
        raise ArgumentError(f"{name} must be finite and at least 0, got {value!r}")
    return value
