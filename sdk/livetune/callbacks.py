"""Owns what a program has to say of new values of one variable: it rewrites, vetoes, reacts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from livetune.errors import Veto
from livetune.messages import Refusal
from livetune.specs import Scalar, VariableSpec, utf8

__all__ = ["Callbacks"]

log = logging.getLogger("livetune")

_REASON_LENGTH = 500
"""Most characters of a reason: it is for the person who typed the change."""

_Callback = Callable[..., Any]


class Callbacks:
    """The callbacks of one variable, of three kinds; each kind is called in the order in which it was registered.

    Args:
        spec: The variable's specification.

    Attributes:
        pre: get the value that was asked for, give the one to use.
        on: get the value to use and the one in use; may raise `Veto`.
        post: get the value now in use and the one before.
    """

    __slots__ = ("_spec", "on", "post", "pre")

    def __init__(self, spec: VariableSpec) -> None:
        self._spec = spec
        self.pre: tuple[_Callback, ...] = ()
        self.on: tuple[_Callback, ...] = ()
        self.post: tuple[_Callback, ...] = ()

    def add(self, kind: str, callback: _Callback) -> Callable[[], None]:
        """Register a callback.

        Returns:
            What takes it out again; calling that twice is harmless.

        Raises:
            TypeError: It can't be called.
        """
        if not callable(callback):
            raise TypeError(f"{kind}_set takes a function, got {callback!r}")
        entry = _Once(callback)
        setattr(self, kind, (*getattr(self, kind), entry))

        def remove() -> None:
            setattr(self, kind, tuple(other for other in getattr(self, kind) if other is not entry))

        return remove

    def judge(self, value: Scalar, old: Scalar) -> Scalar | Refusal:
        """Return the value to use instead of `old`, or why none is.

        Args:
            value: What was asked for; it keeps the specification.
            old: The value in use.
        """
        return self._ask(self.pre, value, old)

    def veto(self, value: Scalar, old: Scalar) -> Refusal | None:
        """Say why a value is not to be used instead of `old`, if it is not; nothing rewrites it any more."""
        answer = self._ask((), value, old)
        return answer if isinstance(answer, Refusal) else None

    def _ask(self, rewriting: tuple[_Callback, ...], value: Scalar, old: Scalar) -> Scalar | Refusal:
        try:
            for callback in rewriting:
                value = self._spec.bring(callback(value))
                refusal = self._spec.refusal(value)
                if refusal is not None:
                    return _refusal(f"pre_set callback {callback} gave what is not allowed: {refusal}")
            for callback in self.on:
                callback(value, old)
        except Veto as veto:
            return _refusal(str(veto) or "vetoed by the program, without a reason")
        except Exception as error:
            log.exception("a callback of variable %r failed: the change is refused", self._spec.name)
            return _refusal(f"a callback failed with {type(error).__name__}: {error}")
        return value

    def react(self, value: Scalar, old: Scalar) -> None:
        """Call what reacts. The value is in use: what goes wrong here is logged and undoes nothing."""
        for callback in self.post:
            try:
                callback(value, old)
            except Exception:
                log.exception(
                    "post_set callback %s of variable %r failed; its value is in use", callback, self._spec.name
                )


class _Once:
    """One registration: the same function may be registered twice."""

    __slots__ = ("_function",)

    def __init__(self, function: _Callback) -> None:
        self._function = function

    def __call__(self, *values: Scalar) -> Any:
        return self._function(*values)

    def __str__(self) -> str:
        return getattr(self._function, "__qualname__", None) or repr(self._function)


def _refusal(reason: str) -> Refusal:
    return Refusal(utf8(reason, _REASON_LENGTH))
