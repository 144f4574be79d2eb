"""Running a model on example inputs to compare what it computes before and after, without leaving a trace in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from livetune.layercollapse.errors import CollapseError

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, the positional arguments, or the keyword arguments of the model's `forward`."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode and nothing is differentiated; each module's own mode returns."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_finite(name: str, value: object) -> None:
    """Refuse NaN and infinity in any tensor of a nested value.

    Raises:
        CollapseError: There is one.
    """
    for tensor in _tensors(value):
        if not bool(torch.isfinite(tensor).all()):
            raise CollapseError(
                f"{name} must be finite, got NaN or infinity in a tensor of shape {tuple(tensor.shape)}"
            )


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """Return copies of every floating point tensor of the model's output, in eval mode and without gradients.

    Raises:
        CollapseError: The model cannot run on the inputs, or its output has no floating point tensor, or not only
            finite numbers.
    """
    try:
        with _evaluating(model):
            if isinstance(inputs, Tensor):
                output = model(inputs)
            elif isinstance(inputs, Mapping):
                output = model(**inputs)
            else:
                output = model(*inputs)
    except Exception as error:
        raise CollapseError(f"the model cannot run on example_inputs: {type(error).__name__}: {error}") from error
    tensors = [tensor.detach().clone() for tensor in _tensors(output)]
    if not tensors:
        raise CollapseError(f"the model's output must hold a floating point tensor, got {type(output).__name__}")
    check_finite("the model's output on example_inputs", tensors)
    return tensors


def relative_change(actual: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the largest |actual - reference| / |reference| (Euclidean norms) over corresponding tensors.

    Infinite if the shapes differ, or if a reference is all zeros and the actual value is not.
    """
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in reference]:
        return float("inf")
    return max(map(_relative, actual, reference), default=0.0)


def _relative(actual: Tensor, reference: Tensor) -> float:
    wide = reference.double()
    difference = torch.linalg.vector_norm(actual.double() - wide).item()
    norm = torch.linalg.vector_norm(wide).item()
    if difference == 0.0:
        return 0.0
    return difference / norm if norm > 0.0 else float("inf")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
