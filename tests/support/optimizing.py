"""Small training runs on torch's optimizers and schedulers, and what each step of them really used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

STEPS = 9
RATES = (0.1, 0.01)
"""Learning rates of the two groups that every optimizer here has, but LBFGS."""

Rates = list[list[float]]
"""Learning rates: one list of all groups for each step."""


@dataclass
class Live:
    """Stands for a live variable."""

    value: Any


def groups(count: int = 2, *, tensors: bool = False) -> list[dict[str, Any]]:
    """Parameter groups of one weight each, with their own learning rates."""
    torch.manual_seed(0)
    return [
        {"params": [torch.nn.Parameter(torch.randn(3))], "lr": torch.tensor(rate) if tensors else rate}
        for rate in RATES[:count]
    ]


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "SGD": lambda: torch.optim.SGD(groups(), lr=RATES[0]),
    "SGD+momentum": lambda: torch.optim.SGD(groups(), lr=RATES[0], momentum=0.9),
    "SGD+fused": lambda: torch.optim.SGD(groups(), lr=RATES[0], momentum=0.9, fused=True),
    "SGD+tensor": lambda: torch.optim.SGD(groups(tensors=True), lr=RATES[0], momentum=0.9, foreach=False),
    "Adam": lambda: torch.optim.Adam(groups(), lr=RATES[0]),
    "Adam+tensor": lambda: torch.optim.Adam(groups(tensors=True), lr=RATES[0], foreach=False),
    "Adam+fused+tensor": lambda: torch.optim.Adam(groups(tensors=True), lr=RATES[0], fused=True),
    "AdamW": lambda: torch.optim.AdamW(groups(), lr=RATES[0], weight_decay=0.1),
    "AdamW+foreach": lambda: torch.optim.AdamW(groups(), lr=RATES[0], foreach=True),
    "AdamW+fused": lambda: torch.optim.AdamW(groups(), lr=RATES[0], fused=True),
    "Adagrad": lambda: torch.optim.Adagrad(groups(), lr=RATES[0]),
    "RMSprop": lambda: torch.optim.RMSprop(groups(), lr=RATES[0], momentum=0.5),
    "LBFGS": lambda: torch.optim.LBFGS(groups(1), lr=RATES[0], max_iter=3),
}


def cycles(optimizer: Optimizer) -> bool:
    """Say whether OneCycleLR and CyclicLR can cycle its momentum."""
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


def warm_up(optimizer: Optimizer, steps: int = 3) -> schedulers.LRScheduler:
    return schedulers.LinearLR(optimizer, start_factor=0.25, total_iters=steps)


def peaks(optimizer: Optimizer, peak: float) -> list[float]:
    return [peak * rate for rate in RATES[: len(optimizer.param_groups)]]


def one_cycle(optimizer: Optimizer, **options: Any) -> schedulers.LRScheduler:
    return schedulers.OneCycleLR(
        optimizer, max_lr=peaks(optimizer, 5.0), total_steps=STEPS + 2, cycle_momentum=cycles(optimizer), **options
    )


def cyclic(optimizer: Optimizer, mode: str) -> schedulers.LRScheduler:
    low, high = peaks(optimizer, 0.5), peaks(optimizer, 2.0)
    return schedulers.CyclicLR(
        optimizer, low, high, step_size_up=3, mode=mode, gamma=0.9, cycle_momentum=cycles(optimizer)
    )


def nested(optimizer: Optimizer, first: schedulers.LRScheduler, then: schedulers.LRScheduler) -> schedulers.LRScheduler:
    """Put a scheduler that consists of others into a sequence; torch can do that for the first one only."""
    with warnings.catch_warnings():
        # It warns of its own first step.
        warnings.simplefilter("ignore")
        return schedulers.SequentialLR(optimizer, [first, then], [5])


def lambdas(function: Callable[[int], float]) -> Callable[[Optimizer], schedulers.LRScheduler]:
    return lambda optimizer: schedulers.LambdaLR(optimizer, function)


def hf_cosine(step: int, *, warm: int = 2, total: int = 14, cycles: float = 0.5, floor: float = 0.0) -> float:
    """The lambda of get_cosine_schedule_with_warmup, and of get_cosine_with_min_lr_schedule_with_warmup."""
    if step < warm:
        return step / max(1, warm)
    progress = (step - warm) / max(1, total - warm)
    factor = 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))
    return max(0.0, factor * (1 - floor) + floor)


def hf_hard_restarts(step: int, *, warm: int = 2, total: int = 14, cycles: int = 2) -> float:
    """The lambda of get_cosine_with_hard_restarts_schedule_with_warmup."""
    if step < warm:
        return step / max(1, warm)
    progress = (step - warm) / max(1, total - warm)
    return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def hf_polynomial(step: int, *, warm: int = 2, total: int = 14, power: float = 2.0) -> float:
    """The lambda of get_polynomial_decay_schedule_with_warmup; its absolute rates become ratios."""
    start, end = RATES[0], 1e-7
    if step < warm:
        return step / max(1, warm)
    if step > total:
        return end / start
    remaining = 1 - (step - warm) / (total - warm)
    return ((start - end) * remaining**power + end) / start


def hf_inverse_sqrt(step: int, *, warm: int = 2) -> float:
    """The lambda of get_inverse_sqrt_schedule."""
    if step < warm:
        return step / max(1, warm)
    return 1.0 / math.sqrt((step + warm - warm) / warm)


def hf_wsd(step: int, *, warm: int = 2, stable: int = 3, decay: int = 9) -> float:
    """The lambda of get_wsd_schedule: warm-up, stable, decay."""
    if step < warm:
        return step / warm
    if step < warm + stable:
        return 1.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warm - stable) / decay)))


@dataclass(frozen=True)
class Schedule:
    """How a scheduler is made, and the base of the first group that REBASE counts from."""

    make: Callable[[Optimizer], schedulers.LRScheduler]
    base: float = RATES[0]


SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": Schedule(lambdas(lambda step: 0.9**step)),
    "MultiplicativeLR": Schedule(lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.8 + 0.02 * step)),
    "StepLR": Schedule(lambda o: schedulers.StepLR(o, 2, gamma=0.5)),
    "MultiStepLR": Schedule(lambda o: schedulers.MultiStepLR(o, [2, 4, 5, 7], gamma=0.5)),
    "ConstantLR": Schedule(lambda o: schedulers.ConstantLR(o, factor=0.5, total_iters=5)),
    "LinearLR": Schedule(lambda o: schedulers.LinearLR(o, start_factor=0.25, total_iters=6)),
    "ExponentialLR": Schedule(lambda o: schedulers.ExponentialLR(o, 0.9)),
    "PolynomialLR": Schedule(lambda o: schedulers.PolynomialLR(o, total_iters=12, power=2.0)),
    "CosineAnnealingLR": Schedule(lambda o: schedulers.CosineAnnealingLR(o, T_max=20)),
    "CosineAnnealingLR, floor, beyond its end": Schedule(
        lambda o: schedulers.CosineAnnealingLR(o, T_max=5, eta_min=0.003)
    ),
    "CosineAnnealingWarmRestarts": Schedule(
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2, eta_min=0.003)
    ),
    "ReduceLROnPlateau": Schedule(lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0, min_lr=0.002)),
    "OneCycleLR": Schedule(one_cycle, base=5 * RATES[0]),
    "OneCycleLR, three phases, linear": Schedule(
        lambda o: one_cycle(o, three_phase=True, anneal_strategy="linear"), base=5 * RATES[0]
    ),
    "CyclicLR": Schedule(lambda o: cyclic(o, "triangular"), base=2 * RATES[0]),
    "CyclicLR, triangular2": Schedule(lambda o: cyclic(o, "triangular2"), base=2 * RATES[0]),
    "CyclicLR, exp_range": Schedule(lambda o: cyclic(o, "exp_range"), base=2 * RATES[0]),
    "SequentialLR": Schedule(
        lambda o: schedulers.SequentialLR(o, [warm_up(o), schedulers.CosineAnnealingLR(o, 12, 0.002)], [3])
    ),
    "SequentialLR of three": Schedule(
        lambda o: schedulers.SequentialLR(
            o, [warm_up(o), schedulers.ExponentialLR(o, 0.9), schedulers.StepLR(o, 1, gamma=0.7)], [3, 6]
        )
    ),
    "ChainedScheduler": Schedule(
        lambda o: schedulers.ChainedScheduler([warm_up(o, 4), schedulers.ExponentialLR(o, 0.9)])
    ),
    "ChainedScheduler in SequentialLR": Schedule(
        lambda o: nested(
            o, schedulers.ChainedScheduler([warm_up(o, 4), schedulers.ExponentialLR(o, 0.9)]), schedulers.StepLR(o, 2)
        )
    ),
    "SequentialLR in SequentialLR": Schedule(
        lambda o: nested(
            o, schedulers.SequentialLR(o, [warm_up(o), schedulers.ExponentialLR(o, 0.8)], [3]), schedulers.StepLR(o, 1)
        )
    ),
    "SequentialLR in ChainedScheduler": Schedule(
        lambda o: schedulers.ChainedScheduler(
            [
                schedulers.SequentialLR(o, [warm_up(o), schedulers.PolynomialLR(o, 12)], [3]),
                schedulers.CosineAnnealingLR(o, 15, eta_min=0.002),
            ]
        )
    ),
    "HF constant with warm-up": Schedule(lambdas(lambda step: min(1.0, step / 2))),
    "HF linear with warm-up": Schedule(lambdas(lambda step: step / 2 if step < 2 else (14 - step) / 12)),
    "HF cosine with warm-up": Schedule(lambdas(hf_cosine)),
    "HF cosine with min_lr": Schedule(lambdas(lambda step: hf_cosine(step, floor=0.1))),
    "HF cosine with hard restarts": Schedule(lambdas(hf_hard_restarts)),
    "HF polynomial": Schedule(lambdas(hf_polynomial)),
    "HF inverse sqrt": Schedule(lambdas(hf_inverse_sqrt)),
    "HF warm-up, stable, decay": Schedule(lambdas(hf_wsd)),
}


def advance(scheduler: schedulers.LRScheduler) -> None:
    """Step a scheduler; one that wants a metric is told that nothing gets better."""
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


def optimize(optimizer: Optimizer) -> None:
    """Take a step towards the zero of a bowl."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((weight.square().sum() for group in optimizer.param_groups for weight in group["params"]), start=0.0)
        loss.backward()
        return loss

    optimizer.step(closure)


def record(optimizer: Optimizer) -> list[list[dict[str, Any]]]:
    """From now on note the hyperparameters that each step begins with, behind all hooks that are there already."""
    seen: list[list[dict[str, Any]]] = []

    def note(*_: object) -> None:
        seen.append(
            [
                {
                    key: float(group["lr"]) if key == "lr" else group[key]
                    for key in ("lr", "momentum", "betas")
                    if key in group
                }
                for group in optimizer.param_groups
            ]
        )

    optimizer.register_step_pre_hook(note)
    return seen


def rates(seen: Sequence[Sequence[dict[str, Any]]]) -> Rates:
    """The learning rates out of what `record` has noted."""
    return [[group["lr"] for group in step] for step in seen]


def by_hand(optimizer: Optimizer, plan: Sequence[Sequence[dict[str, Any]]]) -> Optimizer:
    """Train without scheduler or binding, with hyperparameters that are written in by hand before each step."""
    for step in plan:
        for group, values in zip(optimizer.param_groups, step, strict=True):
            for key, value in values.items():
                if isinstance(group[key], Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = value
        optimize(optimizer)
    return optimizer


def contents(optimizer: Optimizer) -> list[Tensor]:
    """All weights and all of the state, in one order."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    tensors: list[Tensor] = []
    for weight in weights:
        tensors.append(weight.detach())
        flat: list[Any] = [value for _, value in sorted(optimizer.state[weight].items())]
        for value in flat:
            parts = value if isinstance(value, list) else [value]
            tensors += [torch.as_tensor(part, dtype=torch.float32) for part in parts if part is not None]
    return tensors
