"""Binding of live variables to an optimizer's hyperparameters, applied by the step that uses them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from livetune.errors import LiveTuneError


class BindError(LiveTuneError, ValueError):
    """Variables cannot be bound as asked; the optimizer is unchanged."""


class HasValue(Protocol):
    """What a live variable must offer."""

    @property
    def value(self) -> float:
        """The value to use from now on."""
        ...


class Binding:
    """The tie between an optimizer and its live variables; made by `bind`.

    Not thread-safe: everything happens in the thread that calls `optimizer.step()`.
    """

    def __init__(self, optimizer: Optimizer, settings: Sequence["_Setting"]) -> None:
        self._settings = settings
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    def remove(self) -> None:
        """Untie: the optimizer keeps the values it has. Doing it twice is harmless."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        for setting in self._settings:
            setting.apply(optimizer)

    def _after_load(self, _: Optimizer) -> None:
        # A checkpoint brings the values of its own time along; the variables' are in force.
        for setting in self._settings:
            setting.forget()


def bind(
    optimizer: Optimizer,
    *,
    lr: HasValue | None = None,
    weight_decay: HasValue | None = None,
    groups: Iterable[int] | None = None,
) -> Binding:
    """Let live variables govern an optimizer's hyperparameters.

    A variable's value is written by the optimizer's own step, before it computes, so a step uses what was in force
    when it began. It stands for the first bound group that is not zero; the others keep their ratio to that one, so a
    group without weight decay stays without. If all are zero, all get the value. A tensor is filled in place. The
    optimizer's state is never touched. A learning rate scheduler that writes in between wins until the variable
    changes.

    Args:
        optimizer: Any torch optimizer.
        lr: Variable for `lr`; None leaves it alone.
        weight_decay: Variable for `weight_decay`; None leaves it alone.
        groups: Indices of the parameter groups to govern; None stands for those that there are now.

    Returns:
        The binding; `remove()` unties.

    Raises:
        BindError: Nothing is to be bound, a group does not exist, or a group does not have the hyperparameter.
    """
    wanted = {key: variable for key, variable in (("lr", lr), ("weight_decay", weight_decay)) if variable is not None}
    if not wanted:
        raise BindError("bind needs lr or weight_decay, got neither")
    count = len(optimizer.param_groups)
    indices = list(range(count)) if groups is None else list(groups)
    if not indices or not all(0 <= index < count for index in indices):
        raise BindError(f"groups must be indices of parameter groups, 0..{count - 1}, got {indices}")
    return Binding(optimizer, [_Setting(optimizer, key, variable, indices) for key, variable in wanted.items()])


class _Setting:
    """One hyperparameter that follows one variable in some groups.

    Groups are known by index, because `load_state_dict` replaces the dictionaries.
    """

    def __init__(self, optimizer: Optimizer, key: str, variable: HasValue, indices: Sequence[int]) -> None:
        self._key = key
        self._variable = variable
        self._last = math.nan
        current: dict[int, float] = {}
        for index in indices:
            if key not in optimizer.param_groups[index]:
                raise BindError(f"group {index} of {type(optimizer).__name__} has no {key}")
            current[index] = float(optimizer.param_groups[index][key])
        reference = next((value for value in current.values() if value != 0.0), None)
        self._ratios = {index: 1.0 if reference is None else value / reference for index, value in current.items()}

    def apply(self, optimizer: Optimizer) -> None:
        value = self._variable.value
        if value == self._last:
            return
        for index, ratio in self._ratios.items():
            _write(optimizer.param_groups[index], self._key, value * ratio)
        self._last = value

    def forget(self) -> None:
        self._last = math.nan


def _write(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
