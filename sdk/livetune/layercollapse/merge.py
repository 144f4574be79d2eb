"""Multiplying out one prepared pair in place, with a way back."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livetune.layercollapse.errors import CollapseError
from livetune.layercollapse.hooks import count_hooks, swap_output_hooks
from livetune.layercollapse.linearize import LinearizedActivation
from livetune.layercollapse.optimizer import Merge
from livetune.layercollapse.pairs import Pair
from livetune.layercollapse.prepare import Prepared, put


@dataclass(frozen=True)
class Merged:
    """What became of one pair."""

    merges: tuple[Merge, ...]
    """What the optimizer has to know."""
    parameters_removed: int
    """How many fewer parameters the model has, the slope not counted."""
    dropped_hooks: int
    """Hooks that looked at the hidden value, which is gone."""


def linears(prepared: Prepared, pair: Pair) -> tuple[nn.Linear, nn.Linear]:
    """Return a remaining pair's two linear layers as they are now.

    Raises:
        CollapseError: Somebody has put something else into the pair's slots since it was prepared.
    """
    model = prepared.model
    first = _submodule(model, prepared.home(pair.first))
    second = _submodule(model, pair.second)
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        raise CollapseError(f"pair {pair.name} must lie between nn.Linear layers, got {first} and {second}")
    if _submodule(model, pair.activation) is not prepared.layer(pair):
        raise CollapseError(f"pair {pair.name}: the prepared activation '{pair.activation}' has been replaced")
    return first, second


@torch.no_grad()
def product(first: nn.Linear, layer: LinearizedActivation, second: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return weight (o, d) and bias (o,) of the one layer that a linearised pair is.

    W = W2 diag(k) W1 and b = W2 (k * b1 + t) + b2, computed in float64 and cast to the first layer's type. There is
    no bias if no part of it exists; a bias whose values are all zero exists.
    """
    w1, w2 = first.weight.double(), second.weight.double()
    w2_k = w2 if layer.gain is None else w2 * layer.gain.double()
    terms: list[Tensor] = []
    if first.bias is not None:
        terms.append(w2_k @ first.bias.double())
    if layer.offset is not None:
        terms.append(w2 @ layer.offset.double().expand(first.out_features))
    if second.bias is not None:
        terms.append(second.bias.double())
    bias = sum(terms[1:], start=terms[0]).to(first.weight.dtype) if terms else None
    return (w2_k @ w1).to(first.weight.dtype), bias


def merge_(prepared: Prepared, pair: Pair, undo: ExitStack) -> Merged:
    """Collapse one pair in place; `undo.close()` brings back exactly what was there.

    The first layer stays the object it is, with its hooks and modes, and gets the product's weight and bias. Every slot
    from the activation to the second layer becomes `nn.Identity`, so that all other paths and keys of the state dict
    stay. The second layer's forward hooks move to its slot, where its output still passes.

    Raises:
        CollapseError: As `linears`.
    """
    model = prepared.model
    first, second = linears(prepared, pair)
    layer = prepared.layer(pair)
    weight, bias = product(first, layer, second)
    between = [model.get_submodule(path) for path in pair.between]
    hidden = [parameter for module in between for parameter in module.parameters()]
    weights = [first.get_parameter("weight"), second.get_parameter("weight")]
    biases = _present((first.bias, second.bias))

    undo.callback(_fill, first, weights[0], first.bias)
    _fill(first, _merged(weight, weights), None if bias is None else _merged(bias, biases))
    for path, module in zip(pair.between, between, strict=True):
        _empty_slot(model, path, module, undo)
    output = _empty_slot(model, pair.second, second, undo)
    dropped = sum(map(count_hooks, (*between, second)))
    undo.callback(swap_output_hooks, second, output)
    swap_output_hooks(second, output)

    removed = sum(p.numel() for p in (*weights, *biases, *hidden) if p is not layer.slope)
    return Merged(
        merges=(
            Merge(first.get_parameter("weight"), tuple(weights)),
            Merge(first.bias, tuple(biases)),
            Merge(None, tuple(hidden)),
        ),
        parameters_removed=removed - sum(p.numel() for p in first.parameters()),
        dropped_hooks=dropped - count_hooks(output),
    )


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _present(parameters: Iterable[nn.Parameter | None]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter is not None]


def _merged(value: Tensor, sources: Iterable[nn.Parameter]) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=any(source.requires_grad for source in sources))


def _fill(linear: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    linear.weight = weight
    linear.register_parameter("bias", bias)
    linear.out_features = weight.shape[0]


def _empty_slot(model: nn.Module, path: str, module: nn.Module, undo: ExitStack) -> nn.Identity:
    identity = nn.Identity()
    identity.training = module.training
    undo.callback(put, model, path, module)
    put(model, path, identity)
    return identity
