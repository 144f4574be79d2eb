"""The optimizer's side: a parameter group for the slopes, and the move of merged parameters into their places."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from livetune.layercollapse.checks import require_non_negative
from livetune.layercollapse.errors import ArgumentError
from livetune.layercollapse.penalty import clamp_slopes_
from livetune.layercollapse.prepare import Prepared


@dataclass(frozen=True)
class Merge:
    """Parameters that became one, or that are gone."""

    merged: nn.Parameter | None
    """What took their place; None if nothing did."""
    sources: tuple[nn.Parameter, ...]
    """The dead ones, in the order in which their place in the optimizer is taken over: fc1's before fc2's."""


def attach_slopes_(optimizer: Optimizer, prepared: Prepared, *, lr: float | None = None) -> RemovableHandle:
    """Give the slopes a parameter group of their own, without weight decay, and clamp them after every step.

    Call it before learning rate schedulers are built: they count the groups. The group stays, empty, when all pairs are
    collapsed, for the same reason.

    Args:
        optimizer: Any optimizer with parameter groups.
        prepared: The prepared model's handle.
        lr: Learning rate of the slopes; None stands for the optimizer's default.

    Returns:
        The handle of the clamping hook; `remove()` ends the clamping.

    Raises:
        ArgumentError: The optimizer has slopes already, there is none to add, or the rate is negative or not finite.
    """
    slopes = [(f"{pair.name}.slope", prepared.layer(pair).slope) for pair in prepared.pairs]
    if not slopes:
        raise ArgumentError("every pair is collapsed: there is no slope to add to the optimizer")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, slope in slopes:
        if id(slope) in known:
            raise ArgumentError(f"{name} is in the optimizer already")
    group: dict[str, Any] = {"params": [slope for _, slope in slopes], "weight_decay": 0.0}
    if "param_names" in optimizer.param_groups[0]:
        group["params"] = slopes
    if lr is not None:
        group["lr"] = require_non_negative("lr", lr)
    optimizer.add_param_group(group)
    return optimizer.register_step_post_hook(lambda *_: clamp_slopes_(prepared))


def check_migratable(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state is not kept per parameter.

    Raises:
        ArgumentError: It is an LBFGS, whose history is one flat vector over all parameters.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ArgumentError("optimizer must keep its state per parameter, and LBFGS does not: build a new one instead")


def migrate_(optimizer: Optimizer, merges: Iterable[Merge]) -> None:
    """Put merged parameters where their sources were and drop the state of the dead.

    A merged parameter takes the place (group and index) of the first of its sources that the optimizer has, and starts
    without state. The state of every other parameter is untouched. Merges are followed in order, so the result of one
    may be the source of the next.
    """
    for merge in merges:
        heir = merge.merged
        dead = {id(source) for source in merge.sources}
        place = _first_place(optimizer, merge.sources)
        for group in optimizer.param_groups:
            kept: list[tuple[Tensor, str | None]] = []
            names = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], names, strict=True):
                if heir is not None and parameter is place:
                    kept.append((heir, name))
                elif id(parameter) not in dead:
                    kept.append((parameter, name))
            group["params"][:] = [parameter for parameter, _ in kept]
            if "param_names" in group:
                group["param_names"][:] = [name for _, name in kept]
        for source in merge.sources:
            optimizer.state.pop(source, None)


def _first_place(optimizer: Optimizer, sources: Iterable[nn.Parameter]) -> nn.Parameter | None:
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return next((source for source in sources if id(source) in known), None)
