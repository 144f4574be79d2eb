"""Series of samples: bounded, first and newest kept, steps rising, evenly thinned."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from livetuned.domain.series import STEP_MAX, Series


def filled(count: int, capacity: int = 10) -> Series:
    series = Series(capacity)
    for step in range(count):
        series.add(step, float(step), step * 1_000)
    return series


@given(st.integers(2, 20), st.integers(1, 2_000))
def test_of_a_long_run_first_and_newest_are_kept_and_the_rest_evenly(capacity: int, count: int) -> None:
    series = filled(count, capacity)
    points = series.points(capacity)
    assert 1 <= len(series) == len(points.steps) <= capacity
    assert (0, count - 1) == (points.steps[0], points.steps[-1])
    assert [float(step) for step in points.steps] == list(points.values)
    gaps = {after - before for before, after in zip(points.steps, points.steps[1:])}  # fmt: skip # noqa: B905
    *even, last = [after - before for before, after in zip(points.steps, points.steps[1:])] or [0]  # noqa: B905
    assert len(set(even)) <= 1
    assert not even or 0 < last <= even[0]
    assert all(gap > 0 for gap in gaps)
    if capacity >= 4 and count > capacity:
        assert len(series) > capacity // 2
    assert (count, 0.0, float(count - 1)) == (series.samples, series.minimum, series.maximum)


@given(st.integers(2, 12), st.lists(st.tuples(st.integers(0, 200), st.floats()), min_size=1, max_size=300))
def test_whatever_steps_come_they_rise_the_newest_is_last_and_memory_is_bounded(
    capacity: int, samples: list[tuple[int, float]]
) -> None:
    series = Series(capacity)
    for number, (step, value) in enumerate(samples):
        series.add(step, value, number)
        points = series.points(capacity)
        assert 1 <= len(series) <= capacity
        assert sorted(set(points.steps)) == list(points.steps)
        assert (step, number) == (points.steps[-1], points.times_us[-1])
        assert value == points.values[-1] or math.isnan(value)
        assert series.last[0] == step
    taken = dict(enumerate(samples))
    for step, value, number in zip(points.steps, points.values, points.times_us, strict=True):
        assert (step, True) == (taken[number][0], value == taken[number][1] or math.isnan(value))


@given(st.integers(1, 50), st.integers(1, 300), st.integers(-1, 300))
def test_a_part_is_chosen_evenly_with_its_ends(most: int, count: int, after: int) -> None:
    series = filled(count, 400)
    points = series.points(most, after)
    expected = [step for step in range(count) if step > after]
    assert min(most // 2, len(expected)) <= len(points.steps) <= min(most, len(expected))
    assert len({after - before for before, after in zip(points.steps[:-1], points.steps[1:-1])}) <= 1  # noqa: B905
    assert sorted(set(points.steps)) == list(points.steps)
    if expected:
        assert expected[-1] == points.steps[-1]
        if most > 1:
            assert expected[0] == points.steps[0]


def test_a_run_that_goes_back_to_a_checkpoint_replaces_what_came_after_it() -> None:
    series = filled(8)
    series.add(5, 50.0, 0)
    series.add(6, 60.0, 0)
    assert [0, 1, 2, 3, 4, 5, 6] == list(series.points(100).steps)
    assert [4.0, 50.0, 60.0] == list(series.points(100).values)[-3:]
    series.add(0, 1.0, 0)
    assert [0] == list(series.points(100).steps)


def test_what_is_not_finite_is_a_value_and_no_extreme() -> None:
    series = Series(10)
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        series.add(step, value, 0)
    assert (None, None, 3) == (series.minimum, series.maximum, len(series))
    series.add(STEP_MAX, 2.0, 0)
    assert (2.0, 2.0, (STEP_MAX, 2.0, 0)) == (series.minimum, series.maximum, series.last)
