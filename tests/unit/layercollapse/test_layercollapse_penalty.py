import pytest
import torch
from torch import nn

from livetune.layercollapse import (
    ArgumentError,
    Prepared,
    clamp_slopes_,
    collapse_,
    decay_slopes_,
    find_pairs,
    penalty,
    prepare_,
    regularised_pairs,
)


@pytest.fixture
def prepared() -> Prepared:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(4)]
    model = nn.ModuleList(blocks)
    return prepare_(model, find_pairs(model))


def fill(prepared: Prepared, *slopes: float) -> None:
    with torch.no_grad():
        for parameter, slope in zip(prepared.parameters(), slopes, strict=True):
            parameter.fill_(slope)


def test_is_the_sum_of_squared_distances_to_one(prepared):
    fill(prepared, 0.0, 0.5, 1.0, 0.9)
    value = penalty(prepared)
    assert () == value.shape
    assert pytest.approx(1.0 + 0.25 + 0.0 + 0.01) == value.item()
    value.backward()
    assert pytest.approx([-2.0, -1.0, 0.0, -0.2], abs=1e-6) == [p.grad.item() for p in prepared.parameters()]


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (1.0, 4)])
def test_a_fraction_takes_the_last_pairs_first(prepared, fraction, count):
    names = [pair.name for pair in prepared.pairs]
    assert names[4 - count :] == [pair.name for pair in regularised_pairs(prepared, fraction)]
    assert float(count) == penalty(prepared, fraction).item()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_fraction_outside_is_refused(prepared, fraction):
    with pytest.raises(ArgumentError, match=r"fraction must be in 0\.\.1, got"):
        penalty(prepared, fraction)


@pytest.mark.parametrize("amount", [-0.1, float("nan"), float("inf")])
def test_a_bad_amount_is_refused(prepared, amount):
    with pytest.raises(ArgumentError, match="amount must be finite and at least 0, got"):
        decay_slopes_(prepared, amount)


def test_the_decoupled_step_is_implicit(prepared):
    fill(prepared, 0.5, 0.5, 0.5, 0.5)
    decay_slopes_(prepared, 0.25, fraction=0.5)
    assert pytest.approx([0.5, 0.5, 1.0 / 1.5, 1.0 / 1.5]) == list(prepared.slopes().values())


@pytest.mark.parametrize("amount", [0.01, 1.0, 1.5, 1e3])
def test_the_decoupled_step_never_diverges(prepared, amount):
    # Published: a - 2 eta (a - 1) diverges from eta = 1 on.
    for _ in range(2000):
        decay_slopes_(prepared, amount)
    assert pytest.approx([1.0] * 4, abs=1e-4) == list(prepared.slopes().values())


def test_clamp_brings_drifted_slopes_back(prepared):
    # Published: slopes of 14.7 and -2.9 were seen.
    fill(prepared, 14.7, -2.9, 0.5, 1.0)
    clamp_slopes_(prepared)
    assert [1.0, 0.0, 0.5, 1.0] == list(prepared.slopes().values())


def test_the_penalty_of_a_collapsed_model_is_zero():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    prepared = prepare_(model, find_pairs(model))
    collapse_(model, prepared, example_inputs=torch.randn(3, 4), force=True)
    assert 0.0 == penalty(prepared).item()
    assert {} == prepared.slopes()


def test_a_fraction_means_the_same_pairs_after_a_collapse():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    prepared = prepare_(model, find_pairs(model))
    collapse_(model, prepared, example_inputs=torch.randn(3, 4), only=["2+4"], force=True)
    assert () == regularised_pairs(prepared, 0.5)
    assert ["0+2"] == [pair.name for pair in regularised_pairs(prepared, 1.0)]
