"""Which torch modules may stand between the two layers of a pair, and what they are called."""

from typing import Final

from torch import nn

from livetune.layercollapse.linearize import LinearizedActivation

ELEMENTWISE: Final[frozenset[type[nn.Module]]] = frozenset(
    {
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardshrink,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.PReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.RReLU,
        nn.SELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Softshrink,
        nn.Softsign,
        nn.Tanh,
        nn.Tanhshrink,
    }
)
"""Activations that act on every unit by itself. Exact types: a subclass may compute anything."""

DROPOUT: Final[frozenset[type[nn.Module]]] = frozenset(
    {nn.AlphaDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout}
)
"""Modules that are the identity outside training."""


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module runs its class's `forward`: nobody has put another one on the instance."""
    return "forward" not in vars(module)


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an elementwise activation that can be linearised, or already is."""
    return is_plain(module) and (type(module) in ELEMENTWISE or isinstance(module, LinearizedActivation))


def is_dropout(module: nn.Module) -> bool:
    """Whether the module is a dropout, which is dropped with the pair."""
    return is_plain(module) and type(module) in DROPOUT


def is_identity(module: nn.Module) -> bool:
    """Whether the module does nothing, ever."""
    return is_plain(module) and type(module) is nn.Identity


def label(module: nn.Module) -> str:
    """Return what a module is called in a pair's kind, for example `ReLU` or `dropout`."""
    if isinstance(module, LinearizedActivation):
        return f"linearized {label(module.activation)}"
    return "dropout" if is_dropout(module) else type(module).__name__


def linear_refusal(linear: nn.Linear) -> str | None:
    """Return why a linear layer's weight cannot be multiplied with another's, or None."""
    if type(linear) is not nn.Linear or not is_plain(linear):
        return f"is a {type(linear).__name__} that may compute something else than nn.Linear"
    if set(linear._parameters) != {"weight", "bias"} or linear.weight is None:  # noqa: SLF001 - weight norm and pruning show only here
        return "is reparametrized (weight norm, pruning): make it a plain nn.Linear first"
    return None


def between_refusal(path: str, module: nn.Module) -> str | None:
    """Return why a module that stands between two linear layers forbids the product, or None."""
    if isinstance(module, LinearizedActivation):
        return f"'{path}' is already prepared"
    if is_activation(module) or is_dropout(module) or is_identity(module):
        return None
    name = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the public base class of all of them
        return f"{name} '{path}' stands between, and folding it is not supported"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return f"{name} '{path}' stands between and is not linear: it divides by statistics of its input"
    return f"{name} '{path}' stands between and is not known to act on every unit by itself"
