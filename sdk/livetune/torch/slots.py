"""Owns the places in a parameter group where a number lives, and how one is read and written there.

A tensor is only ever filled in place: a compiled step and a captured graph hold on to the tensor itself.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Group: TypeAlias = dict[str, Any]
"""A parameter group of an optimizer."""

Number: TypeAlias = float | Tensor
"""A hyperparameter as optimizers keep it: a Python number, or a tensor of one element."""


@dataclass(frozen=True)
class Slot:
    """One number of a parameter group: `group[key]`, or one part of the tuple that is there."""

    key: str
    part: int | None = None

    @property
    def name(self) -> str:
        """What people call it: `lr`; `beta1` for the first of the `betas`."""
        return self.key if self.part is None else f"{self.key.removesuffix('s')}{self.part + 1}"

    def get(self, group: Group) -> Number:
        """Return what is there, not a copy."""
        there: Number = group[self.key] if self.part is None else group[self.key][self.part]
        return there

    def read(self, group: Group) -> float:
        """Return it as a float; waits for the device where it is a tensor."""
        return float(self.get(group))

    def copy(self, group: Group) -> Number:
        """Return it such that a later write does not change it; does not wait for the device."""
        there = self.get(group)
        return there.detach().clone() if isinstance(there, Tensor) else there

    def write(self, group: Group, value: Number) -> None:
        """Put a value there: into the tensor if there is one, else instead of the number."""
        there = self.get(group)
        if isinstance(there, Tensor):
            with torch.no_grad():
                if isinstance(value, Tensor):
                    there.copy_(value)
                else:
                    there.fill_(value)
        elif self.part is None:
            group[self.key] = value
        else:
            parts = list(group[self.key])
            parts[self.part] = value
            group[self.key] = tuple(parts)

    def round(self, group: Group, value: float) -> float:
        """Return what would be there if the value were written."""
        there = self.get(group)
        return float(torch.tensor(value, dtype=there.dtype)) if isinstance(there, Tensor) else value


def is_number(candidate: object) -> bool:
    """Say whether optimizers could compute with it as a hyperparameter: flags, None and text are none."""
    if isinstance(candidate, Tensor):
        return candidate.numel() == 1 and candidate.dtype is not torch.bool
    return isinstance(candidate, int | float) and not isinstance(candidate, bool)
