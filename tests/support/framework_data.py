"""What the framework tests train on: a few numbers, an optimizer that tells what it really uses, and a way to tell."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def rows(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs of four numbers, and their sum."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 4, generator=generator)
    return [(row, row.sum().reshape(1)) for row in x]


class Telling(torch.optim.SGD):
    """Says, where it computes, which learning rate and weight decay each group has, and how the model stands.

    Args:
        model: Whose weight and bias are its two groups; only the weight is decayed.
        lr: Learning rate of the weight; the bias has a tenth.
        weight_decay: Of the weight.
        name: Said with the facts.
        pause: Seconds that a step takes at least, so that a change from outside takes few.
    """

    def __init__(self, model: Any, lr: float, weight_decay: float, name: str = "", pause: float = 0.002) -> None:
        groups = [
            {"params": [model.weight], "weight_decay": weight_decay},
            {"params": [model.bias], "lr": lr / 10, "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr)
        self._model = model
        self._name = name
        self._pause = pause
        self._count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self._count += 1
        say(
            name=self._name,
            count=self._count,
            lr=[group["lr"] for group in self.param_groups],
            wd=[group["weight_decay"] for group in self.param_groups],
            training=self._model.training,
        )
        time.sleep(self._pause)
        return result
