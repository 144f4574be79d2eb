"""What the modes mean, case by case: first values, zeros, momentum, releases, skipped and failed steps, resuming."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import logging
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers

from livetune.torch import BindError, Mode, bind
from support.optimizing import RATES, Live, groups, hf_cosine, optimize, rates, record

HALVING = 0.5


def halving(optimizer: Optimizer) -> schedulers.LRScheduler:
    """A chainable scheduler: it computes the next rate from the one that is there."""
    return schedulers.ExponentialLR(optimizer, HALVING)


def one(lr: float | torch.Tensor = 0.1, **options: Any) -> SGD:
    return SGD(groups(1), lr=lr, **options) if options else SGD([torch.nn.Parameter(torch.ones(3))], lr=lr)


def train(optimizer: Optimizer, scheduler: schedulers.LRScheduler, steps: int) -> None:
    for _ in range(steps):
        optimize(optimizer)
        scheduler.step()


# What the program sees


def test_the_schedule_keeps_its_own_rate_between_steps_and_effective_tells_what_was_used() -> None:
    optimizer, lr = one(), Live(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    assert [] == binding.effective()
    lr.value = 0.3
    optimize(optimizer)
    assert [0.3] == binding.effective("lr")
    assert [0.1] == scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_a_new_base_is_seen_by_the_program_too() -> None:
    optimizer, lr = one(), Live(0.1)
    scheduler = halving(optimizer)
    bind(optimizer, lr=lr, scheduler=scheduler, mode="rebase")
    lr.value = 0.3
    optimize(optimizer)
    assert pytest.approx([0.3]) == scheduler.get_last_lr()
    assert pytest.approx(0.3) == optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"]


def test_a_new_base_is_as_if_the_schedule_had_been_built_on_it() -> None:
    def one_cycle(optimizer: Optimizer, peak: float) -> schedulers.LRScheduler:
        return schedulers.OneCycleLR(optimizer, max_lr=peak, total_steps=12)

    built = one(momentum=0.9)
    other = one_cycle(built, 0.3)
    train(built, other, 8)
    optimizer, lr = one(momentum=0.9), Live(1.0)
    scheduler = one_cycle(optimizer, 1.0)
    bind(optimizer, lr=lr, scheduler=scheduler, mode=Mode.REBASE)
    train(optimizer, scheduler, 4)
    lr.value = 0.3
    train(optimizer, scheduler, 4)
    assert pytest.approx(other.get_last_lr()) == scheduler.get_last_lr()
    for key in ("initial_lr", "max_lr", "min_lr"):
        assert pytest.approx(built.param_groups[0][key]) == optimizer.param_groups[0][key]


def test_floors_move_with_the_base() -> None:
    optimizer, lr = one(), Live(0.1)
    plateau = schedulers.ReduceLROnPlateau(optimizer, min_lr=0.01)
    bind(optimizer, lr=lr, scheduler=plateau, mode="rebase")
    lr.value = 0.2
    optimize(optimizer)
    assert pytest.approx([0.02]) == plateau.min_lrs


def test_only_the_groups_that_were_chosen() -> None:
    for mode in Mode:
        optimizer, lr = SGD(groups(), lr=RATES[0]), Live(RATES[1])
        scheduler = halving(optimizer)
        bind(optimizer, lr=lr, groups=[1], scheduler=scheduler, mode=mode)
        lr.value = 0.5
        seen = record(optimizer)
        train(optimizer, scheduler, 2)
        later = 0.5 if mode is Mode.OVERRIDE else 0.25
        assert pytest.approx([RATES[0], 0.5]) == rates(seen)[0]
        assert pytest.approx([RATES[0] / 2, later]) == rates(seen)[1]


def test_two_bindings_of_different_groups_get_along() -> None:
    optimizer, first, second = SGD(groups(), lr=RATES[0]), Live(RATES[0]), Live(RATES[1])
    scheduler = halving(optimizer)
    bind(optimizer, lr=first, groups=[0])
    bind(optimizer, lr=second, groups=[1], mode="override")
    first.value, second.value = 0.4, 0.3
    seen = record(optimizer)
    train(optimizer, scheduler, 2)
    assert [[0.4, 0.3], [0.2, 0.3]] == rates(seen)


# First values


@pytest.mark.parametrize(
    ("mode", "used"),
    [("scale", [0.02, 0.01]), ("rebase", [0.02, 0.01]), ("override", [0.02, 0.02])],
)
def test_a_first_value_that_differs_is_the_base_of_the_schedule(mode: str, used: list[float], caplog: Any) -> None:
    optimizer = one(0.1)
    scheduler = halving(optimizer)
    seen = record(optimizer)
    binding = bind(optimizer, lr=Live(0.02), scheduler=scheduler, mode=mode)
    told = []
    with caplog.at_level(logging.WARNING, "livetune.torch"):
        for _ in range(2):
            optimize(optimizer)
            told += binding.effective()
            scheduler.step()
    assert pytest.approx(used) == told
    told_of = "lr: the variable says 0.02, but the schedule is built on 0.1: the variable's value is taken in its place"
    assert [told_of] == caplog.messages
    assert 2 == len(seen)


def test_a_first_value_that_differs_does_not_blow_up_a_warm_up() -> None:
    # Said for the first step of a warm-up, 0.02 would be 200 times the rate, and so would be the peak.
    optimizer = one(0.1)
    scheduler = schedulers.LinearLR(optimizer, start_factor=0.001, total_iters=4)
    binding = bind(optimizer, lr=Live(0.02))
    train(optimizer, scheduler, 5)
    assert pytest.approx([0.02]) == binding.effective()


@pytest.mark.parametrize("value", [0.1, 1.0, 0.04])
def test_under_one_cycle_the_optimizers_rate_the_peak_and_the_start_all_ask_for_nothing(value: float) -> None:
    optimizer = one(0.1, momentum=0.9)
    scheduler = schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    binding = bind(optimizer, lr=Live(value), momentum=Live(0.9))
    optimize(optimizer)
    assert pytest.approx([1.0 / 25]) == binding.effective()
    assert [0.95] == binding.effective("momentum")
    scheduler.step()


def test_a_tensor_that_was_built_with_the_variables_value_equals_it_in_its_own_precision() -> None:
    lr = Live(0.1)
    optimizer = Adam([torch.nn.Parameter(torch.ones(3))], lr=torch.tensor(lr.value), foreach=False)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    train(optimizer, scheduler, 2)
    assert [float(torch.tensor(0.1) * HALVING)] == binding.effective()


def test_a_change_before_the_first_step_is_said_for_the_first_step() -> None:
    optimizer, lr = one(0.1, momentum=0.9), Live(0.1)
    schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    binding = bind(optimizer, lr=lr)
    lr.value = 0.5
    optimize(optimizer)
    assert [0.5] == binding.effective()


def test_a_plateau_that_is_not_named_goes_on_from_the_value() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    plateau = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    binding = bind(optimizer, lr=lr)
    lr.value = 0.4
    told = []
    for _ in range(3):
        optimize(optimizer)
        told += binding.effective()
        plateau.step(1.0)
    assert [0.4, 0.4, 0.2] == told


def test_a_scheduler_that_comes_after_the_binding_is_noticed() -> None:
    optimizer, lr = one(momentum=0.9), Live(0.1)
    binding = bind(optimizer, lr=lr)
    scheduler = schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    alone = one(momentum=0.9)
    other = schedulers.OneCycleLR(alone, max_lr=1.0, total_steps=10)
    train(optimizer, scheduler, 3)
    train(alone, other, 3)
    assert other.get_last_lr() == scheduler.get_last_lr()
    lr.value = 0.5
    optimize(optimizer)
    assert [0.5] == binding.effective()
    assert other.get_last_lr() == scheduler.get_last_lr()


# Zeros


def test_where_the_schedule_is_at_zero_the_value_is_used_and_then_stands_for_the_base() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = schedulers.LambdaLR(optimizer, hf_cosine)
    binding = bind(optimizer, lr=lr)
    lr.value = 0.05
    told = []
    for _ in range(4):
        optimize(optimizer)
        told += binding.effective()
        scheduler.step()
    assert pytest.approx([0.05, 0.025, 0.05, 0.05 * hf_cosine(3)]) == told


def test_at_the_end_of_a_schedule_that_ends_at_zero_training_goes_on_with_the_value() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = schedulers.PolynomialLR(optimizer, total_iters=2)
    binding = bind(optimizer, lr=lr)
    train(optimizer, scheduler, 3)
    assert [0.0] == binding.effective()
    lr.value = 0.01
    for _ in range(2):
        train(optimizer, scheduler, 1)
        assert [0.01] == binding.effective()


@pytest.mark.parametrize("mode", Mode)
def test_zero_stops_and_the_way_back_is_open(mode: Mode) -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr, scheduler=scheduler, mode=mode)
    train(optimizer, scheduler, 1)
    lr.value = 0.0
    before = [weight.detach().clone() for weight in optimizer.param_groups[0]["params"]]
    train(optimizer, scheduler, 2)
    assert [0.0] == binding.effective()
    assert all(map(torch.equal, before, optimizer.param_groups[0]["params"]))
    lr.value = 0.8
    optimize(optimizer)
    assert pytest.approx([0.1 if mode is Mode.REBASE else 0.8]) == binding.effective()


def test_a_rate_that_is_zero_everywhere_can_be_bound_and_raised() -> None:
    for mode in Mode:
        optimizer, lr = one(0.0), Live(0.0)
        scheduler = halving(optimizer)
        binding = bind(optimizer, lr=lr, scheduler=scheduler, mode=mode)
        train(optimizer, scheduler, 1)
        lr.value = 0.3
        train(optimizer, scheduler, 2)
        assert [0.3] == binding.effective()


# Pins and releases


def test_release_goes_back_to_where_the_schedule_is_by_now() -> None:
    for mode in (Mode.SCALE, Mode.OVERRIDE):
        optimizer, lr = one(0.1), Live(0.1)
        scheduler = halving(optimizer)
        binding = bind(optimizer, lr=lr, mode=mode)
        lr.value = 0.3
        train(optimizer, scheduler, 2)
        binding.release()
        optimize(optimizer)
        assert [0.1 / 4] == binding.effective()
        lr.value = 0.2
        optimize(optimizer)
        assert [0.2] == binding.effective()


def test_release_does_not_swallow_a_change_that_no_step_has_used_yet() -> None:
    for scheduled in (True, False):
        optimizer, lr = one(0.1), Live(0.1)
        if scheduled:
            halving(optimizer)
        binding = bind(optimizer, lr=lr)
        optimize(optimizer)
        lr.value = 0.3
        binding.release()
        optimize(optimizer)
        assert [0.3] == binding.effective()


def test_an_override_needs_no_schedule_and_gives_back_what_was_there() -> None:
    optimizer, decay = one(0.1, weight_decay=0.5), Live(0.5)
    binding = bind(optimizer, weight_decay=decay, mode="override")
    decay.value = 0.1
    optimize(optimizer)
    assert [0.1] == binding.effective("weight_decay")
    assert 0.5 == optimizer.param_groups[0]["weight_decay"]
    binding.release()
    optimize(optimizer)
    assert [0.5] == binding.effective("weight_decay")


@pytest.mark.parametrize("mode", ["scale", "rebase"])
def test_a_cycled_momentum_is_pinned_by_a_change(mode: str) -> None:
    optimizer = Adam(groups(1), lr=0.1)
    scheduler = schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    beta1, beta2 = Live(0.9), Live(0.999)
    binding = bind(optimizer, betas=(beta1, beta2), scheduler=scheduler, mode=mode)
    train(optimizer, scheduler, 2)
    assert 0.95 != binding.effective("beta1")[0] != 0.9
    beta1.value, beta2.value = 0.5, 0.99
    seen = record(optimizer)
    train(optimizer, scheduler, 2)
    assert [(0.5, 0.99)] * 2 == [step[0]["betas"] for step in seen]
    assert [0.5] == binding.effective("beta1")
    binding.release()
    scheduled = optimizer.param_groups[0]["betas"]
    optimize(optimizer)
    assert (scheduled[0], 0.99) == seen[-1][0]["betas"]


# Other hyperparameters


def test_any_number_of_a_group_can_be_bound() -> None:
    alpha, eps, momentum = Live(0.99), Live(1e-8), Live(0.5)
    optimizer = torch.optim.RMSprop(groups(), lr=0.1, momentum=0.5)
    bind(optimizer, alpha=alpha, eps=eps, momentum=momentum, weight_decay=None)
    alpha.value, eps.value, momentum.value = 0.9, 1e-6, 0.1
    optimize(optimizer)
    for group in optimizer.param_groups:
        assert (0.9, 1e-6, 0.1) == (group["alpha"], group["eps"], group["momentum"])


def test_one_of_the_betas_alone() -> None:
    beta2 = Live(0.999)
    optimizer = AdamW(groups(), lr=0.1)
    binding = bind(optimizer, betas=(None, beta2))
    beta2.value = 0.95
    optimize(optimizer)
    assert [(0.9, 0.95)] * 2 == [group["betas"] for group in optimizer.param_groups]
    assert [0.95, 0.95] == binding.effective("beta2")


def test_betas_in_tensors_are_filled_in_place() -> None:
    beta1 = Live(0.9)
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    optimizer = Adam([torch.nn.Parameter(torch.ones(3))], lr=torch.tensor(0.1), betas=betas, foreach=False)
    bind(optimizer, betas=(beta1, None))
    beta1.value = 0.5
    optimize(optimizer)
    assert all(old is new for old, new in zip(betas, optimizer.param_groups[0]["betas"], strict=True))
    assert pytest.approx(0.5) == float(betas[0])


def test_an_int_stays_an_int() -> None:
    history = Live(100)
    optimizer = torch.optim.LBFGS(groups(1), lr=1, history_size=100)
    bind(optimizer, history_size=history)
    history.value = 5
    optimize(optimizer)
    assert "5" == repr(optimizer.param_groups[0]["history_size"])


# Steps that are skipped, fail, or are nested


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_use_up_a_change(fused: bool) -> None:
    weight, lr = torch.nn.Parameter(torch.ones(3)), Live(0.1)
    optimizer = SGD([weight], lr=0.1, fused=fused)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(gradient: float) -> None:
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    scheduler.step()
    lr.value = 0.4
    step(float("inf"))
    assert pytest.approx(0.9) == weight[0].item()
    step(1.0)
    assert [0.4] == binding.effective()
    assert pytest.approx(0.5) == weight[0].item()
    assert [0.05] == scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_a_step_that_fails_leaves_the_schedule_its_rate() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    optimize(optimizer)
    lr.value = 0.8

    def fail() -> float:
        raise RuntimeError("out of memory")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(fail)
        assert 0.1 == optimizer.param_groups[0]["lr"]
    scheduler.step()
    optimize(optimizer)
    assert [0.4] == binding.effective()
    assert 0.05 == optimizer.param_groups[0]["lr"]


def test_a_step_that_calls_the_step_of_its_base_uses_the_value_to_its_end() -> None:
    seen = []

    class Outer(SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            seen.append(self.param_groups[0]["lr"])
            return result

    one()  # the base has hooks of its own from its first instance on
    lr = Live(0.1)
    optimizer = Outer([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    scheduler = halving(optimizer)
    bind(optimizer, lr=lr)
    lr.value = 0.3
    train(optimizer, scheduler, 2)
    assert [0.3, 0.15] == seen
    assert [0.025] == scheduler.get_last_lr()


def test_a_step_that_was_taken_hold_of_before_the_binding_is_bound_too() -> None:
    # Accelerate calls the step that it found when it wrapped the optimizer.
    optimizer, lr = one(0.1), Live(0.1)
    halving(optimizer)
    original = optimizer.step
    binding = bind(optimizer, lr=lr)
    lr.value = 0.3
    weight = optimizer.param_groups[0]["params"][0]
    weight.grad = torch.ones(3)
    original()
    assert [0.3] == binding.effective()
    assert pytest.approx(0.7) == weight[0].item()

    def fail() -> float:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        original(fail)
    original()
    assert [0.3] == binding.effective()
    assert 0.1 == optimizer.param_groups[0]["lr"]


def test_a_wrapped_step_tells_its_arguments_as_before() -> None:
    class WithScaler(SGD):
        def step(self, closure: Any = None, *, grad_scaler: Any = None) -> Any:
            return super().step(closure)

    for schedule in (False, True):
        optimizer = WithScaler([torch.nn.Parameter(torch.ones(3))], lr=0.1)
        if schedule:
            halving(optimizer)
        bind(optimizer, lr=Live(0.1))
        assert ["closure", "grad_scaler"] == list(inspect.signature(optimizer.step).parameters)


def test_accumulated_gradients_count_as_one_step() -> None:
    weight, lr = torch.nn.Parameter(torch.ones(3)), Live(0.1)
    optimizer = SGD([weight], lr=0.1)
    scheduler = halving(optimizer)
    bind(optimizer, lr=lr)
    for micro in range(4):
        weight.sum().backward()
        lr.value = 0.1 * (1 + micro)
        if micro % 2:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert pytest.approx(1 - 2 * 0.2 - 2 * 0.4) == weight[0].item()


def test_values_can_be_in_force_without_a_step() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    halving(optimizer)
    binding = bind(optimizer, lr=lr)
    lr.value = 0.3
    with binding.applied():
        assert 0.3 == optimizer.param_groups[0]["lr"]
        optimize(optimizer)
        assert 0.3 == optimizer.param_groups[0]["lr"]
    assert 0.1 == optimizer.param_groups[0]["lr"]
    with pytest.raises(RuntimeError, match="replay"), binding.applied():
        raise RuntimeError("replay")
    assert 0.1 == optimizer.param_groups[0]["lr"]


# Checkpoints


def snapshot(optimizer: Optimizer, scheduler: schedulers.LRScheduler, binding: Any) -> dict[str, Any]:
    return copy.deepcopy(
        {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "binding": binding.state_dict()}
    )


@pytest.mark.parametrize("order", [("optimizer", "scheduler", "binding"), ("binding", "scheduler", "optimizer")])
@pytest.mark.parametrize("kept", [True, False], ids=["the variable's value is kept", "the variable changed meanwhile"])
@pytest.mark.parametrize("mode", Mode)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(mode: Mode, kept: bool, order: tuple[str, ...]) -> None:
    def start(value: float) -> dict[str, Any]:
        optimizer = AdamW(groups(), lr=value)
        scheduler = schedulers.CosineAnnealingLR(optimizer, 20, eta_min=0.001)
        lr = Live(value)
        return {
            "optimizer": optimizer,
            "scheduler": scheduler,
            "binding": bind(optimizer, lr=lr, scheduler=scheduler, mode=mode),
            "lr": lr,
        }

    def go_on(run: dict[str, Any]) -> list[list[float]]:
        told = []
        for _ in range(4):
            optimize(run["optimizer"])
            told.append(run["binding"].effective())
            run["scheduler"].step()
        return told

    run = start(RATES[0])
    go_on(run)
    run["lr"].value = 0.04
    go_on(run)
    saved = snapshot(run["optimizer"], run["scheduler"], run["binding"])
    if not kept:
        run["lr"].value = 0.07
    straight = go_on(run)

    again = start(run["lr"].value)
    for part in order:
        again[part].load_state_dict(saved[part])
    assert straight == go_on(again)


@dataclass
class Told:
    """Stands for a variable of a job that tells where its value is from."""

    value: float
    revision: int = 0
    inherited: bool = False

    def put(self, value: float, *, inherited: bool = False) -> None:
        self.value, self.revision, self.inherited = value, self.revision + 1, inherited


@pytest.mark.parametrize(("kept", "used"), [(0.2, 0.05), (0.3, 0.3)])
@pytest.mark.parametrize("inherited", [False, True])
def test_a_resumed_run_waits_for_the_value_that_the_daemon_has_kept(kept: float, used: float, inherited: bool) -> None:
    optimizer, lr = one(0.1), Told(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    lr.put(0.2)
    train(optimizer, scheduler, 1)
    saved = snapshot(optimizer, scheduler, binding)

    optimizer, lr = one(0.1), Told(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr)
    for part, target in (("optimizer", optimizer), ("scheduler", scheduler), ("binding", binding)):
        target.load_state_dict(saved[part])
    train(optimizer, scheduler, 1)
    assert [0.1] == binding.effective()
    lr.put(kept, inherited=inherited)
    train(optimizer, scheduler, 1)
    assert pytest.approx([used]) == binding.effective()
    lr.put(0.7)
    train(optimizer, scheduler, 1)
    assert [0.7] == binding.effective()


def test_a_value_that_was_kept_is_not_said_for_the_step_at_which_it_comes() -> None:
    # In a warm-up that would be a factor of hundreds.
    optimizer, lr = one(0.1), Told(0.1)
    scheduler = schedulers.LinearLR(optimizer, start_factor=0.001, total_iters=4)
    binding = bind(optimizer, lr=lr)
    train(optimizer, scheduler, 1)
    lr.put(0.03, inherited=True)
    train(optimizer, scheduler, 4)
    assert pytest.approx([0.03]) == binding.effective()


def test_the_same_value_said_again_is_said_for_the_next_step() -> None:
    for scheduled in (True, False):
        optimizer, lr = one(0.1), Told(0.1)
        scheduler = halving(optimizer) if scheduled else None
        binding = bind(optimizer, lr=lr)
        for _ in range(2):
            optimize(optimizer)
            if scheduler is None:
                optimizer.param_groups[0]["lr"] /= 2
            else:
                scheduler.step()
        assert [0.05] == binding.effective()
        lr.put(0.1)
        optimize(optimizer)
        assert [0.1] == binding.effective()


@pytest.mark.parametrize("mode", Mode)
def test_going_back_to_an_older_checkpoint_keeps_the_variable_in_force(mode: Mode) -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr, scheduler=scheduler, mode=mode)
    train(optimizer, scheduler, 1)
    saved = snapshot(optimizer, scheduler, binding)
    lr.value = 0.2
    train(optimizer, scheduler, 3)
    for part, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        target.load_state_dict(saved[part])
    optimize(optimizer)
    assert pytest.approx([0.1 if mode is Mode.REBASE else 0.2]) == binding.effective()


def test_the_state_is_plain() -> None:
    optimizer, lr = AdamW(groups(), lr=RATES[0]), Live(RATES[0])
    scheduler = halving(optimizer)
    binding = bind(optimizer, lr=lr, betas=(Live(0.9), None), weight_decay=Live(0.01))
    lr.value = 0.3
    train(optimizer, scheduler, 2)
    state = binding.state_dict()
    assert state == json.loads(json.dumps(state))
    binding.load_state_dict(state)
    assert state == binding.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "the version of a binding's state must be 1, got 2"),
        ({"mode": "rebase"}, "the mode of a binding's state must be 'scale', got 'rebase'"),
        ({"governors": {}}, r"the state is of \[\], the binding of \['lr'\]"),
        ({"governors": {"lr": {"groups": [0]}}}, r"the state of lr must have \[.*\], got \['groups'\]"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    optimizer = SGD(groups(), lr=0.1)
    binding = bind(optimizer, lr=Live(0.1))
    before = binding.state_dict()
    with pytest.raises(BindError, match=message):
        binding.load_state_dict(before | change)
    assert before == binding.state_dict()


def test_a_state_of_other_groups_is_refused() -> None:
    optimizer = SGD(groups(), lr=0.1)
    first = bind(optimizer, lr=Live(0.1), groups=[0])
    second = bind(optimizer, lr=Live(0.1), groups=[1])
    with pytest.raises(BindError, match=r"the state of lr is of groups \[0\], the binding of \[1\]"):
        second.load_state_dict(first.state_dict())


def test_an_optimizer_can_be_copied_and_freed() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    scheduler = halving(optimizer)
    bind(optimizer, lr=lr)
    train(optimizer, scheduler, 1)
    lr.value = 0.3
    twin = copy.deepcopy(optimizer)
    optimize(twin)
    assert 0.05 == twin.param_groups[0]["lr"]
    gone = weakref.ref(optimizer)
    del optimizer, scheduler
    gc.collect()
    assert gone() is None


# Untying


def test_remove_gives_the_optimizer_back_as_it_was() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    binding = bind(optimizer, lr=lr)
    binding.remove()
    assert "step" not in vars(optimizer)
    scheduler = halving(optimizer)
    step = optimizer.step
    binding = bind(optimizer, lr=lr)
    lr.value = 0.3
    train(optimizer, scheduler, 1)
    binding.remove()
    binding.remove()
    assert step is optimizer.step
    optimize(optimizer)
    assert 0.05 == optimizer.param_groups[0]["lr"]
    bind(optimizer, lr=lr)


def test_remove_takes_away_what_is_in_force_right_now() -> None:
    optimizer, lr = one(0.1), Live(0.1)
    halving(optimizer)
    binding = bind(optimizer, lr=lr)
    lr.value = 0.3
    with binding.applied():
        binding.remove()
        assert 0.1 == optimizer.param_groups[0]["lr"]
    with binding.applied():
        assert 0.1 == optimizer.param_groups[0]["lr"]


def test_remove_below_another_binding_leaves_that_one_alone() -> None:
    optimizer, lr, decay = one(0.1, weight_decay=0.1), Live(0.1), Live(0.1)
    first = bind(optimizer, lr=lr)
    second = bind(optimizer, weight_decay=decay)
    first.remove()
    lr.value, decay.value = 0.3, 0.2
    optimize(optimizer)
    assert [0.2] == second.effective("weight_decay")
    assert 0.1 == optimizer.param_groups[0]["lr"]


# Refusals


class Custom(schedulers.LRScheduler):
    def get_lr(self) -> list[float]:
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def test_a_scheduler_of_ones_own_is_scaled_and_pinned_but_not_rebased() -> None:
    for mode, used in ((Mode.SCALE, 0.15), (Mode.OVERRIDE, 0.3)):
        optimizer, lr = one(0.1), Live(0.1)
        scheduler = Custom(optimizer)
        binding = bind(optimizer, lr=lr, mode=mode)
        lr.value = 0.3
        train(optimizer, scheduler, 2)
        assert pytest.approx([used]) == binding.effective()
    with pytest.raises(BindError, match="mode rebase does not know all rates that Custom keeps; mode scale works"):
        bind(optimizer, lr=lr, groups=[0], scheduler=scheduler, mode="rebase")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": Live(0.1), "mode": "rebased"}, "mode must be one of scale, rebase, override, got 'rebased'; did you mean 'rebase'?"),
        ({"lr": Live(0.1), "mode": "rebase"}, "mode rebase writes into the scheduler: it needs scheduler=..., got None"),
        ({"weight_decai": Live(0.1)}, "group 0 of AdamW has no weight_decai; did you mean 'weight_decay'?"),
        ({"momentum": Live(0.1)}, "group 0 of AdamW has no momentum"),
        ({"initial_lr": Live(0.1)}, "group 0 of AdamW has no initial_lr"),
        ({"amsgrad": Live(1)}, "amsgrad of group 0 of AdamW must be a number, got False"),
        ({"params": Live(1)}, "params of group 0 of AdamW must be a number, got [Parameter"),
        ({"lr": Live("fast")}, "lr must be bound to a variable with a number as value, got Live(value='fast')"),
        ({"lr": 0.1}, "lr must be bound to a variable with a number as value, got 0.1"),
        ({"betas": Live(0.9)}, "betas must be a pair: a variable or None for each of (0.9, 0.999), got Live(value=0.9)"),
        ({"betas": (Live(0.9),)}, "betas must be a pair: a variable or None for each of (0.9, 0.999), got (Live(value=0.9),)"),
        ({"betas": (None, None)}, "bind needs at least one variable, such as lr or weight_decay, got none"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    optimizer = AdamW(groups(), lr=0.1)
    halving(optimizer)
    step = optimizer.step
    with pytest.raises(BindError) as caught:
        bind(optimizer, **arguments)
    assert str(caught.value).startswith(message)
    assert step is optimizer.step
    assert 0 == len(optimizer._optimizer_step_pre_hooks)


def test_betas_of_an_optimizer_without_them_are_refused() -> None:
    with pytest.raises(BindError, match="group 0 of SGD has no betas"):
        bind(one(), betas=(Live(0.9), None))


def test_a_second_binding_of_the_same_is_refused() -> None:
    optimizer = SGD(groups(), lr=0.1)
    first = bind(optimizer, lr=Live(0.1))
    with pytest.raises(BindError, match=r"lr of groups \[1\] is bound already: remove\(\) that binding first"):
        bind(optimizer, weight_decay=Live(0.0), lr=Live(0.1), groups=[1])
    first.remove()
    bind(optimizer, lr=Live(0.1), groups=[1])


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    with pytest.raises(BindError, match="scheduler must be one of this SGD, got ExponentialLR of another"):
        bind(one(), lr=Live(0.1), scheduler=halving(one()))


def test_a_floor_that_groups_share_can_not_be_moved_for_some() -> None:
    optimizer = SGD(groups(), lr=0.1)
    scheduler = schedulers.CosineAnnealingLR(optimizer, 10, eta_min=0.001)
    with pytest.raises(
        BindError, match=r"cannot move groups \[1\] of 2 alone: CosineAnnealingLR keeps one eta_min=0.001"
    ):
        bind(optimizer, lr=Live(0.01), groups=[1], scheduler=scheduler, mode="rebase")


def test_effective_of_what_is_not_bound_is_refused() -> None:
    binding = bind(AdamW(groups(), lr=0.1), betas=(Live(0.9), None))
    with pytest.raises(BindError, match="'betas' is not bound; did you mean 'beta1'\\?; bound: beta1"):
        binding.effective("betas")
