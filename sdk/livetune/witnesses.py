"""Owns reports that wait until the program has told what its first step after a change really used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["Key", "Witnesses"]

Key = tuple[int, str, tuple[str, ...]]
"""What a report is known by: revision, trigger and names."""

PATIENCE_TICKS = 5
"""How many ticks of about a second a report waits: an evaluation may come before the next step."""


class Witnesses:
    """Reports in the order in which they are to be sent. Sans IO."""

    def __init__(self) -> None:
        self._promises: Counter[str] = Counter()
        """How many promise to tell, by variable."""
        self._held: dict[Key, set[str]] = {}
        """What each report still waits for. One that waits for nothing stands behind one that does."""
        self._ticks = 0

    def promise(self, name: str, *, more: bool) -> None:
        """Somebody in the program tells what is used of a variable, or does not any more."""
        self._promises[name] += 1 if more else -1

    def hold(self, key: Key, names: Iterable[str]) -> bool:
        """Say whether a report has to wait.

        Args:
            key: Of the report.
            names: Variables whose new values it says to be in use.
        """
        waits = {name for name in names if self._promises[name] > 0}
        if not waits and not self._held:
            return False
        self._held[key] = waits
        self._ticks = 0
        return True

    def holds(self, key: Key) -> bool:
        """Say whether a report waits."""
        return key in self._held

    def waiting_for(self, name: str) -> list[Key]:
        """Return the reports that wait for a variable."""
        return [key for key, names in self._held.items() if name in names]

    def told(self, name: str) -> list[Key]:
        """The program has told what it used of a variable. Returns what can be sent now."""
        for names in self._held.values():
            names.discard(name)
        ready: list[Key] = []
        for key, names in self._held.items():
            if names:
                break
            ready.append(key)
        for key in ready:
            del self._held[key]
        return ready

    def let_go(self) -> list[Key]:
        """Return everything, to be sent as it is."""
        held, self._held = list(self._held), {}
        return held

    def tick(self) -> list[Key]:
        """About a second has passed. Returns what has waited long enough."""
        self._ticks += 1
        return self.let_go() if self._held and self._ticks >= PATIENCE_TICKS else []
