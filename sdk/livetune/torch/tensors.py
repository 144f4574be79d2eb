"""Owns live tensors: a variable's value where compiled code and captured graphs can see it change."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from livetune.torch.errors import BindError
from livetune.torch.slots import is_number


class Settable(Protocol):
    """What a live variable must offer to be shown in a tensor."""

    @property
    def name(self) -> str:
        """Name within the job."""
        ...

    @property
    def value(self) -> float:
        """The value to use from now on."""
        ...

    def post_set(self, callback: Callable[[Any, Any], object], /) -> Callable[[], None]:
        """Have a function called at the safe point, on the training thread, with the new value and the one before.

        Returns:
            What takes the callback out again; may be called from within it.
        """
        ...


def tensor(
    variable: Settable, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a tensor without dimensions that always has the variable's value.

    It is filled in place at the job's safe point, `job.step()`, and at no other time, so a compiled function that uses
    it is not compiled again, and a captured graph replays with the new value. Use it instead of `variable.value` in
    code that torch compiles: a number there is a constant of the graph.

    Do not change it, and do not call `job.step()` between the forward and the backward pass that use it: autograd
    refuses to differentiate what was changed in between. A copy (`.to(...)` of another device or dtype, `deepcopy`,
    `model.to(...)` of a buffer) does not follow any more, so ask for the right device here. The tensor follows as long
    as somebody holds it.

    Args:
        variable: A variable of a job whose value is a number.
        device: Where the tensor lives; None stands for torch's default device.
        dtype: Its type; a floating point one for a float variable.

    Returns:
        The tensor; it requires no gradient.

    Raises:
        BindError: The variable's value is no number, or the type can't hold its fractions.
    """
    value: object = variable.value
    if not is_number(value) and not isinstance(value, bool):
        raise BindError(f"a tensor holds a number: variable {variable.name!r} is {value!r}")
    if isinstance(value, float) and not (dtype.is_floating_point or dtype.is_complex):
        raise BindError(f"a tensor for the float variable {variable.name!r} needs a floating point dtype, got {dtype}")
    # Made in inference mode, it could not be filled outside of it.
    with torch.inference_mode(mode=False):
        live = torch.tensor(value, device=device, dtype=dtype)
    # The variable must not keep it alive: training code may ask for one in every epoch.
    reference = TensorWeakRef(live)

    def refresh(new: float, _old: float) -> None:
        target = reference()
        if target is None:
            remove()
            return
        with torch.no_grad():
            target.fill_(new)

    remove = variable.post_set(refresh)
    return live
