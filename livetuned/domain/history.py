"""What of the history somebody wants to see."""

from __future__ import annotations

from dataclasses import dataclass

from livetuned.domain.records import Changed, Record


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes are wanted. The default wants all."""

    after: int = 0
    """Only changes with a higher revision."""
    target: str = ""
    """Only changes that name this variable or trigger."""
    actor: str = ""
    """Only changes of this actor."""
    since_us: int | None = None
    """Only changes accepted at or after this wall time, microseconds since the Unix epoch."""
    until_us: int | None = None
    """Only changes accepted before this wall time, microseconds since the Unix epoch."""

    @property
    def selective(self) -> bool:
        """Whether a change may be left out for another reason than its revision."""
        return bool(self.target or self.actor or self.since_us is not None or self.until_us is not None)

    def wants(self, record: Record) -> bool:
        """Tells whether a change is wanted."""
        changed = record.payload
        if not isinstance(changed, Changed) or record.revision <= self.after:
            return False
        if self.since_us is not None and record.time_us < self.since_us:
            return False
        if self.until_us is not None and record.time_us >= self.until_us:
            return False
        if self.actor and changed.actor != self.actor:
            return False
        return not self.target or any(
            self.target == name
            for name in (
                *(item.variable for item in changed.assignments),
                *(item.trigger for item in changed.firings),
            )
        )
