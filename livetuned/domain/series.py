"""A series of samples that a program logged: bounded, however long the run, and still of the run's shape."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from livetuned.domain import limits

STEP_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A value that a program logged."""

    name: str
    step: int
    """The step at which it was logged."""
    value: float
    """May be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Points:
    """Columns of one length, in the order of steps."""

    steps: Sequence[int]
    values: Sequence[float]
    times_us: Sequence[int]
    """When each was received, in microseconds since the Unix epoch."""


class Series:
    """Samples of one rank under one name, in the order of steps.

    The first and the newest sample are kept, and between them every `stride`-th. When there are as many as may be kept,
    every second one of those is dropped and the stride doubles: a run of any length is covered evenly.

    A sample whose step is not above the last one's replaces what was kept from its step on: a program that goes on from
    a checkpoint passes the same steps again, and of several values of one step the newest counts.

    Args:
        capacity: Most points kept, a count; 2 at least.
    """

    __slots__ = ("_capacity", "_count", "_steps", "_stride", "_times", "_values", "maximum", "minimum", "samples")

    def __init__(self, capacity: int = limits.POINTS_PER_SERIES) -> None:
        self._capacity = capacity
        self._stride = 1
        self._count = 0
        """Samples that the points stand for: the point at index k is sample k * stride, but for the newest."""
        self._steps = array("q")
        self._values = array("d")
        self._times = array("q")
        self.samples = 0
        """Samples taken, those replaced or dropped since among them, a count."""
        self.minimum: float | None = None
        """Smallest finite value of all samples taken."""
        self.maximum: float | None = None
        """Largest finite value of all samples taken."""

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last(self) -> tuple[int, float, int]:
        """Step, value and time of the newest sample.

        Raises:
            IndexError: There is none.
        """
        return self._steps[-1], self._values[-1], self._times[-1]

    def add(self, step: int, value: float, time_us: int) -> None:
        """Takes a sample.

        Args:
            step: Its step, from 0 to 2**63 - 1.
            value: Its value; may be NaN or infinite.
            time_us: When it was received, in microseconds since the Unix epoch.
        """
        self.samples += 1
        if math.isfinite(value):
            self.minimum = value if self.minimum is None or value < self.minimum else self.minimum
            self.maximum = value if self.maximum is None or value > self.maximum else self.maximum
        if self._steps and step <= self._steps[-1]:
            self._rewind(step)
        if self._count and (self._count - 1) % self._stride:
            self._pop()  # the newest was kept for being the newest only
        self._steps.append(step)
        self._values.append(value)
        self._times.append(time_us)
        self._count += 1
        if len(self._steps) > self._capacity:
            self._thin()

    def points(self, most: int, after_step: int | None = None) -> Points:
        """Returns points in the order of steps, the newest among them.

        Args:
            most: How many at most, chosen evenly, a count; 1 at least.
            after_step: Only those after this step; None for all.
        """
        begin = 0 if after_step is None else bisect_right(self._steps, after_step)
        count = len(self._steps) - begin
        if count <= 0:
            return Points([], [], [])
        # The newest one comes by itself; of the others every so many, so that they and it are not too many.
        stride = max(1, -(-(count - 1) // (most - 1))) if most > 1 else count
        chosen, newest = slice(begin if most > 1 else len(self._steps), -1, stride), slice(-1, None)
        steps, values, times = self._steps, self._values, self._times
        return Points(steps[chosen] + steps[newest], values[chosen] + values[newest], times[chosen] + times[newest])

    def _rewind(self, step: int) -> None:
        while self._steps and self._steps[-1] >= step:
            self._pop()
        # The newest was among them: what is left are every `stride`-th, and the last of them is the newest now.
        self._count = (len(self._steps) - 1) * self._stride + 1 if self._steps else 0
        self._stride = self._stride if self._steps else 1

    def _pop(self) -> None:
        self._steps.pop()
        self._values.pop()
        self._times.pop()

    def _thin(self) -> None:
        newest = self.last
        self._steps, self._values, self._times = self._steps[::2], self._values[::2], self._times[::2]
        self._stride *= 2
        if (self._count - 1) % self._stride:
            if self._steps[-1] == newest[0]:
                return
            self._steps.append(newest[0])
            self._values.append(newest[1])
            self._times.append(newest[2])
