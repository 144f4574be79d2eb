"""Moving a module's hooks to the module that takes its slot, so that the user's hooks outlive a replacement."""

from torch import nn

_OUTPUT_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_HOOKS = (
    *_OUTPUT_HOOKS,
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_COUNTED = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def swap_hooks(one: nn.Module, other: nn.Module) -> None:
    """Exchange all forward and backward hooks of two modules; its own inverse.

    The dictionaries themselves change places, because the handles that torch gave to the user hold them weakly:
    `handle.remove()` goes on working.
    """
    _swap(one, other, _HOOKS)


def swap_output_hooks(one: nn.Module, other: nn.Module) -> None:
    """Exchange the forward hooks, which look at a module's output, and nothing else; its own inverse."""
    _swap(one, other, _OUTPUT_HOOKS)


def count_hooks(module: nn.Module) -> int:
    """Return how many forward and backward hooks, before and after, a module has."""
    return sum(len(getattr(module, name)) for name in _COUNTED)


def _swap(one: nn.Module, other: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        mine, theirs = getattr(one, name), getattr(other, name)
        setattr(one, name, theirs)
        setattr(other, name, mine)
