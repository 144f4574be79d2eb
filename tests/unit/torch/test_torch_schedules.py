"""Every scheduler x every mode x every optimizer: each step used what was asked for, and nothing else was touched.

The reference is computed here, from a run without a binding: its schedule, and the definition of the mode.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from livetune.torch import Mode, bind
from support.optimizing import (
    OPTIMIZERS,
    RATES,
    SCHEDULES,
    STEPS,
    Live,
    Rates,
    advance,
    by_hand,
    contents,
    optimize,
    rates,
    record,
)

CHANGES = {3: 0.05, 6: 0.02}
"""What the variable is set to, and before which step."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def undisturbed(optimizer_name: str, schedule_name: str) -> tuple[Optimizer, list[list[dict[str, Any]]]]:
    """Train without a binding; return the optimizer, and the hyperparameters of every step. To be read only."""
    optimizer = OPTIMIZERS[optimizer_name]()
    scheduler = SCHEDULES[schedule_name].make(optimizer)
    seen = record(optimizer)
    for _ in range(STEPS):
        optimize(optimizer)
        advance(scheduler)
    return optimizer, seen


def expected(mode: Mode, schedule: Rates, base: float) -> Rates:
    """The definitions of the modes."""
    result: Rates = []
    value = anchor = None
    for step, scheduled in enumerate(schedule):
        if step in CHANGES:
            value, anchor = CHANGES[step], scheduled[0]
        if value is None:
            result.append(scheduled)
        elif mode is Mode.SCALE:
            result.append([value * rate / anchor for rate in scheduled])
        elif mode is Mode.REBASE:
            result.append([rate * value / base for rate in scheduled])
        else:
            result.append([value * rate / RATES[0] for rate in RATES[: len(scheduled)]])
    return result


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_each_step_uses_what_was_asked_for(schedule_name: str, mode: Mode, optimizer_name: str) -> None:
    _, plan = undisturbed(optimizer_name, schedule_name)
    want = expected(mode, rates(plan), SCHEDULES[schedule_name].base)

    optimizer = OPTIMIZERS[optimizer_name]()
    scheduler = SCHEDULES[schedule_name].make(optimizer)
    lr = Live(RATES[0])
    binding = bind(optimizer, lr=lr, scheduler=scheduler, mode=mode)
    places = [group["lr"] for group in optimizer.param_groups]
    seen = record(optimizer)
    told: Rates = []
    for step in range(STEPS):
        lr.value = CHANGES.get(step, lr.value)
        optimize(optimizer)
        told.append(binding.effective("lr"))
        advance(scheduler)

    tensors = isinstance(places[0], torch.Tensor)
    near = {"rel": 2e-6 if tensors else 1e-12, "abs": 1e-9 if tensors else 0.0}
    used = rates(seen)
    assert used == told
    for step, (expected_rates, used_rates) in enumerate(zip(want, used, strict=True)):
        assert pytest.approx(expected_rates, **near) == used_rates, f"step {step}"
    if mode is not Mode.REBASE:
        exact = [float(torch.tensor(value)) if tensors else value for value in CHANGES.values()]
        assert exact == [used[step][0] for step in CHANGES]
    if tensors:
        assert all(place is group["lr"] for place, group in zip(places, optimizer.param_groups, strict=True))

    # What each step used being given, everything else must be as if a person had written it in by hand.
    plan = [
        [{**values, "lr": rate} for values, rate in zip(step, used_rates, strict=True)]
        for step, used_rates in zip(plan, used, strict=True)
    ]
    reference = by_hand(OPTIMIZERS[optimizer_name](), plan)
    for theirs, ours in zip(contents(reference), contents(optimizer), strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_a_variable_that_was_never_changed_disturbs_nothing(schedule_name: str, optimizer_name: str) -> None:
    for mode in Mode:
        check_never_changed(schedule_name, mode, optimizer_name)


def check_never_changed(schedule_name: str, mode: Mode, optimizer_name: str) -> None:
    alone, plan = undisturbed(optimizer_name, schedule_name)
    optimizer = OPTIMIZERS[optimizer_name]()
    scheduler = SCHEDULES[schedule_name].make(optimizer)
    binding = bind(optimizer, lr=Live(RATES[0]), scheduler=scheduler, mode=mode)
    seen = record(optimizer)
    for _ in range(STEPS):
        optimize(optimizer)
        advance(scheduler)
    assert plan == seen
    assert rates(plan)[-1] == binding.effective("lr")
    for theirs, ours in zip(contents(alone), contents(optimizer), strict=True):
        assert torch.equal(theirs, ours)
    for theirs, ours in zip(alone.param_groups, optimizer.param_groups, strict=True):
        assert {key: value for key, value in theirs.items() if key != "params"} == {
            key: value for key, value in ours.items() if key != "params"
        }


def test_no_scheduler_of_torch_is_missing_here() -> None:
    every = {
        name
        for name in schedulers.__all__
        if issubclass(getattr(schedulers, name), schedulers.LRScheduler) and name != "LRScheduler"
    }
    tested = {type(schedule.make(OPTIMIZERS["SGD"]())).__name__ for schedule in SCHEDULES.values()}
    assert every == tested
