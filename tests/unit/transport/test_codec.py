"""What crosses from the wire into the domain is bounded and sane."""

from __future__ import annotations

import math

from livetune.v1 import types_pb2
from livetuned.domain import limits
from livetuned.transport import codec


def test_of_what_a_step_used_so_many_numbers_are_kept_and_only_finite_ones() -> None:
    message = types_pb2.Outcome(variable_id="lr", status=types_pb2.APPLY_STATUS_APPLIED)
    message.used.extend([0.5, math.nan, math.inf, *[0.25] * 2 * limits.USED_VALUES])
    assert (0.5, *[0.25] * (limits.USED_VALUES - 3)) == codec.outcome_from_wire(message).used
