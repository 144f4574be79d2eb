"""How often a caller may change something: a bucket of tokens for each, so that a runaway script disturbs no one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from livetuned.domain import limits
from livetuned.domain.errors import limit_exceeded
from livetuned.service import clock


def refilled(left: float, seconds: float, per_second: float, burst: int) -> float:
    """Returns the tokens of a bucket that had so many left, so many seconds ago; it holds `burst` at most."""
    return min(float(burst), left + seconds * per_second)


class Rates:
    """A bucket of `burst` tokens for each caller, filled up with `per_second`; a change takes one.

    Args:
        per_second: Changes a second in the long run.
        burst: Changes at once after a rest.
        now: Monotonic time in seconds.
    """

    def __init__(self, per_second: float, burst: int, now: Callable[[], float] = clock.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By caller: tokens left, and when that was true; the caller silent longest first."""

    def take(self, caller: str, count: int = 1) -> None:
        """Takes tokens of a caller.

        Raises:
            DomainError: LIMIT_EXCEEDED; then nothing is taken.
        """
        now = self._now()
        left, since = self._buckets.pop(caller, (float(self._burst), now))
        left = refilled(left, now - since, self._per_second, self._burst)
        enough = left >= count
        self._buckets[caller] = (left - count if enough else left, now)
        if len(self._buckets) > limits.CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            raise limit_exceeded(
                "changes_per_second",
                int(self._per_second) or 1,
                f"caller '{caller[:100]}' changes too fast; after a rest {self._burst:,} at once are allowed",
            )
