"""Owns what makes an object with a ``value`` usable as that value: operators, conversions, comparisons, formatting."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["Arithmetic"]


def _plain(operand: Any) -> Any:
    return operand.value if isinstance(operand, Arithmetic) else operand


def _forward(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Arithmetic, other: Any) -> Any:
        return operation(self.value, _plain(other))

    return method


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Arithmetic, other: Any) -> Any:
        return operation(_plain(other), self.value)

    return method


def _unary(operation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def method(self: Arithmetic) -> Any:
        return operation(self.value)

    return method


class Arithmetic:
    """Mixin: behaves in expressions as its ``value`` does, on either side of an operator.

    Every result is a plain value. Equality compares values, so ``var == 0.1`` means what it says; the hash is the
    object's identity all the same, because a hash made of the value would change while the object is a key. Two
    variables of equal value are therefore two keys of a dict.
    """

    __slots__ = ()

    # numpy leaves `array * variable` to us instead of building an array of objects.
    __array_ufunc__ = None

    value: Any

    __add__, __radd__ = _forward(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _forward(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _forward(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _forward(operator.truediv), _reflected(operator.truediv)
    __floordiv__, __rfloordiv__ = _forward(operator.floordiv), _reflected(operator.floordiv)
    __mod__, __rmod__ = _forward(operator.mod), _reflected(operator.mod)
    __divmod__, __rdivmod__ = _forward(divmod), _reflected(divmod)
    __pow__, __rpow__ = _forward(operator.pow), _reflected(operator.pow)

    __neg__, __pos__, __abs__ = _unary(operator.neg), _unary(operator.pos), _unary(abs)
    __floor__, __ceil__, __trunc__ = _unary(math.floor), _unary(math.ceil), _unary(math.trunc)
    __float__, __int__, __bool__ = _unary(float), _unary(int), _unary(bool)

    __lt__, __le__ = _forward(operator.lt), _forward(operator.le)
    __gt__, __ge__ = _forward(operator.gt), _forward(operator.ge)

    def __eq__(self, other: object) -> Any:
        return self.value == _plain(other)

    def __ne__(self, other: object) -> Any:
        return self.value != _plain(other)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __round__(self, ndigits: int | None = None) -> Any:
        return round(self.value) if ndigits is None else round(self.value, ndigits)

    def __index__(self) -> int:
        if type(self.value) is not int:
            raise TypeError(f"{type(self.value).__name__!r} value cannot be interpreted as an integer")
        return self.value

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)
