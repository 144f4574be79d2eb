"""Owns what a variable has to say: whether its value was said now, stands since the beginning, or is nothing new."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol


class HasValue(Protocol):
    """What a live variable must offer.

    Some more are used where they exist. `revision` (int; 0 until the daemon has told a value) tells that somebody said
    the value that is there already. `inherited` (bool) tells that the value was taken over from the run that this
    process continues, so nobody said it for the step at which it came. `expect_used` and `used` are told what a step
    used after a change, for its acknowledgement.
    """

    @property
    def value(self) -> float:
        """The value to use from now on."""
        ...


class News(Enum):
    """What a look at a variable yields."""

    NONE = auto()
    """It is as it was."""
    FIRST = auto()
    """It has the value that the run begins with; nobody said it for this step."""
    SAID = auto()
    """Somebody set it, for the next step."""


class Listener:
    """Looks at a variable before each step."""

    def __init__(self, variable: HasValue) -> None:
        self._variable = variable
        self._declared = variable.value
        self._revision = self._current_revision()
        self._resumed = False
        self._continues = False
        self.expect(more=True)

    def expect(self, *, more: bool) -> None:
        """Promise to tell what is used, or take the promise back."""
        expect_used = getattr(self._variable, "expect_used", None)
        if expect_used is not None:
            expect_used(more=more)

    def tell(self, values: Sequence[float]) -> None:
        """Tell the variable what a step used, in each group."""
        used = getattr(self._variable, "used", None)
        if used is not None:
            used(values)

    def listen(self, seen: float | None) -> tuple[float, News]:
        """Look at the variable.

        Args:
            seen: The value that was dealt with last; None if none was.

        Returns:
            The value in force, and what is new about it.
        """
        value, revision = self._variable.value, self._current_revision()
        if self._resumed and seen is not None:
            if revision == 0 and value == self._declared:
                # The restarted program's own value; the one that is kept for it comes at its first safe points.
                return seen, News.NONE
            self._resumed = False
            self._revision = revision
            return value, News.NONE if value == seen else News.SAID
        again, self._revision = revision != self._revision, revision
        if seen is not None and value == seen and not again:
            return value, News.NONE
        # What a process takes over that went on from a checkpoint was said after that was written.
        inherited = bool(getattr(self._variable, "inherited", False)) and not self._continues
        unsaid = seen is None and value == self._declared and not again
        return value, News.FIRST if inherited or unsaid else News.SAID

    def resume(self) -> None:
        """What was seen comes from a checkpoint: it goes on until the variable has been told something else."""
        self._resumed = self._continues = True

    def _current_revision(self) -> int | None:
        revision: int | None = getattr(self._variable, "revision", None)
        return revision
