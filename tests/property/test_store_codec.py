"""Changes are written by hand: what is written is what the JSON encoder would write, and reads back exactly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetuned.domain.records import Assignment, Changed, Firing
from livetuned.store import codec

TEXTS = st.text(st.characters(codec=None, categories=None), max_size=20)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1), st.booleans(), TEXTS
)
CHANGES = st.builds(
    Changed,
    TEXTS,
    TEXTS,
    TEXTS,
    st.lists(st.builds(Assignment, TEXTS, VALUES, VALUES), max_size=3).map(tuple),
    st.lists(st.builds(Firing, TEXTS, st.integers(1, 2**40)), max_size=3).map(tuple),
    st.integers(0, 2**63 - 1),
)


@given(CHANGES)
def test_a_change_is_written_as_the_encoder_would(change: Changed) -> None:
    raw = {
        "actor": change.actor,
        "reason": change.reason,
        "request_id": change.request_id,
        "assignments": [{"variable": item.variable, "old": item.old, "new": item.new} for item in change.assignments],
        "firings": [{"trigger": item.trigger, "number": item.number} for item in change.firings],
        "undoes": change.undoes,
    }
    written = codec.encode(change)
    assert json.dumps(raw, separators=(",", ":")) == written
    assert repr(change) == repr(codec.decode("changed", written))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        codec.encode(Changed("", "", "", (Assignment("lr", 0.1, value),), ()))
