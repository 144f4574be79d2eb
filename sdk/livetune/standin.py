"""Owns what the stand-ins for a session share: a replay, and a rank that another one speaks for."""

from __future__ import annotations

from livetune import messages as m
from livetune.specs import Scalar

__all__ = ["Standin"]


class Standin:
    """Something that a job asks in place of a session, without a daemon: what a checkpoint wants to know, and gives."""

    connected = False
    """There is no daemon."""
    run = 0
    """Nor a run that it counts."""
    agenda: tuple[m.ScheduledChange, ...] = ()
    """Nor changes that wait for their step here."""

    def __init__(self) -> None:
        self._in_use: dict[str, Scalar] = {}
        """Values of what is declared, by name."""

    def revision_of(self, name: str) -> int:  # noqa: ARG002 - as the session's
        """There is no store that a revision could belong to."""
        return 0

    def restored(self, event: m.Restored) -> list[m.Action]:
        """Take the values of a checkpoint."""
        actions: list[m.Action] = []
        for name, value, revision in event.variables:
            old, self._in_use[name] = self._in_use[name], value
            actions.append(m.Assign(name, value, revision, event.step, old != value, inherited=True))
        return actions
