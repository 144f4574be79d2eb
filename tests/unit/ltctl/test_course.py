"""How ltctl draws the course of a series, and writes what JSON can't hold."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetune.v1 import control_pb2
from ltctl import render
from ltctl.metrics import course


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "▁▂▃▄▅▆▇█"),
        ([5.0, 5.0], "▁▁"),
        ([1.0, math.nan, 0.0, math.inf, -math.inf], "█!▁!!"),
        ([math.nan], "!"),
        ([-1.7e308, 0.0, 1.7e308], "▁▅█"),
        ([0.0, 5e-324], "▁▁"),
    ],
)
def test_a_course(values: list[float], drawn: str) -> None:
    assert drawn == course(values)


@given(st.lists(st.floats()))
def test_any_values_are_drawn(values: list[float]) -> None:
    drawn = course(values)
    assert len(values) == len(drawn)
    assert [not math.isfinite(value) for value in values] == [block == "!" for block in drawn]


def test_what_is_not_finite_is_a_word_in_json() -> None:
    series = control_pb2.MetricSeries(name="loss", rank=1, samples=3, last_value=math.inf, point_steps=[1, 2, 3])
    series.point_values.extend([math.nan, -math.inf, 0.5])
    series.point_times_us.extend([1_500_000, 2_000_000, 3_000_000])
    data = render.series_data(series)
    assert data == json.loads(json.dumps(data, allow_nan=False))
    assert ("Infinity", None, ["NaN", "-Infinity", 0.5]) == (
        data["value"], data["minimum"], [point["value"] for point in data["points"]],
    )  # fmt: skip
    assert "1970-01-01T00:00:01.500000+00:00" == data["points"][0]["time"]
