"""What drives the slopes to 1: the paper's penalty, its decoupled step, and the clamp that keeps them in 0..1."""

import math

import torch
from torch import Tensor

from livetune.layercollapse.checks import require_non_negative, require_unit_interval
from livetune.layercollapse.linearize import LinearizedActivation
from livetune.layercollapse.pairs import Pair
from livetune.layercollapse.prepare import Prepared


def regularised_pairs(prepared: Prepared, fraction: float = 1.0) -> tuple[Pair, ...]:
    """Return the pairs that a fraction selects: the last ones first, as published.

    Of n prepared pairs these are the last ceil(fraction n), less those collapsed by now, so a fraction means the same
    pairs throughout a run.

    Raises:
        ArgumentError: The fraction is not in 0..1.
    """
    require_unit_interval("fraction", fraction)
    total = len(prepared.all_pairs)
    # The margin keeps 0.07 of 100 at seven: the product is 7.000000000000001 in floating point.
    count = math.ceil(fraction * total - 1e-9)
    selected = {pair.name for pair in prepared.all_pairs[total - count :]}
    return tuple(pair for pair in prepared.pairs if pair.name in selected)


def penalty(prepared: Prepared, fraction: float = 1.0) -> Tensor:
    """Return the sum over the regularised pairs of (1 - a)^2, to be added to the loss with a strength.

    LayerCollapse, arXiv 2311.17943, section 3; published strengths are 0.05 to 5.

    Returns:
        A differentiable tensor of shape () on the slopes' device; zero once no regularised pair is left.

    Raises:
        ArgumentError: The fraction is not in 0..1.
    """
    layers = _layers(prepared, fraction)
    if not layers:
        parameter = next(prepared.model.parameters())
        return torch.zeros((), device=parameter.device, dtype=parameter.dtype)
    first, *others = (torch.square(1.0 - layer.slope) for layer in layers)
    # The pairs of a model that is spread over devices are summed where the first slope is.
    return sum((term.to(first) for term in others), start=first)


@torch.no_grad()
def decay_slopes_(prepared: Prepared, amount: float, fraction: float = 1.0) -> None:
    """Pull the regularised slopes towards 1 by one decoupled step, for optimizers that rescale gradients (Adam).

    a <- (a + 2 eta) / (1 + 2 eta), the implicit form of the authors' a <- a - 2 eta (a - 1): it converges for every
    eta, theirs diverges from 1 on. Also clamps all slopes. Call it after `optimizer.step()`, without
    `penalty` in the loss.

    Args:
        prepared: The prepared model's handle.
        amount: eta, the learning rate times the strength; at least 0.
        fraction: As in `penalty`.

    Raises:
        ArgumentError: The amount is negative or not finite, or the fraction not in 0..1.
    """
    require_non_negative("amount", amount)
    for layer in _layers(prepared, fraction):
        layer.slope.add_(2.0 * amount).div_(1.0 + 2.0 * amount)
    clamp_slopes_(prepared)


@torch.no_grad()
def clamp_slopes_(prepared: Prepared) -> None:
    """Put every slope back into 0..1, where it interpolates; left alone, slopes drift to 14.7 and -2.9.

    `attach_slopes_` has it called after every optimizer step. Not between forward and backward: it writes in place.
    """
    for slope in prepared.parameters():
        slope.clamp_(0.0, 1.0)


def _layers(prepared: Prepared, fraction: float) -> list[LinearizedActivation]:
    return [prepared.layer(pair) for pair in regularised_pairs(prepared, fraction)]
