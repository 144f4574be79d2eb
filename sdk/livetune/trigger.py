"""Owns `Trigger`: an event that a person fires and that training code consumes, once per firing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from livetune.specs import TriggerSpec

__all__ = ["Trigger"]


class Trigger:
    """An event of a running job that is fired from outside. Made by `Job.trigger`.

    ``if save(): ...`` is True once per firing. A firing becomes visible at the safe point ``job.step()`` that follows
    it; two firings are two, never merged. Ask from the thread that calls ``job.step()``.
    """

    __slots__ = ("__weakref__", "_consume", "_ready", "_spec")

    def __init__(self, spec: TriggerSpec, consume: Callable[[str], None]) -> None:
        self._spec = spec
        self._consume = consume
        self._ready = 0

    def _show(self, firings: int) -> None:
        """Make firings visible; for the job at its safe point only."""
        self._ready += firings

    def _drop(self) -> None:
        """Forget visible firings; for a forked child."""
        self._ready = 0

    def __call__(self) -> bool:
        """Consume one visible firing.

        Returns:
            True if there was one; it is then acknowledged with the job's current step.
        """
        if not self._ready:
            return False
        self._ready -= 1
        self._consume(self._spec.name)
        return True

    @property
    def name(self) -> str:
        """Name within the job."""
        return self._spec.name

    @property
    def doc(self) -> str:
        """One sentence for whoever is about to fire it, or ''."""
        return self._spec.doc

    def __bool__(self) -> NoReturn:
        raise TypeError(f"trigger {self.name!r} is asked by calling it: `if {self.name.rsplit('.', 1)[-1]}():`")

    def __repr__(self) -> str:
        return f"<Trigger {self.name}, {self._ready} to consume>"

    def _repr_html_(self) -> str:
        from livetune.notebook import trigger_html

        return trigger_html(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"trigger {self.name!r} cannot be pickled: a firing is consumed once, by the process that owns the job"
        )
