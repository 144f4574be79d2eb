"""The two clocks, in one place: wall time goes into records only, everything that is decided uses monotonic time."""

from __future__ import annotations

import time


def wall_us() -> int:
    """Returns the wall clock in microseconds since the Unix epoch."""
    return time.time_ns() // 1_000


def monotonic() -> float:
    """Returns the monotonic clock in seconds."""
    return time.monotonic()
