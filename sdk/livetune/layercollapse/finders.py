"""The strategies that look for pairs; each yields chains of modules that it knows to run one after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeGuard

from torch import nn

from livetune.layercollapse.kinds import is_plain


@dataclass(frozen=True)
class Chain:
    """Modules of which each is fed by nothing but the one before it."""

    links: tuple[tuple[str, nn.Module], ...]
    """Path and module, in the order of execution."""
    refusal: str | None = None
    """Why nothing in this chain may be collapsed although it was recognised; None if it may."""


Finder = Callable[[nn.Module], Iterator[Chain]]
"""A strategy: takes the whole model, yields the chains it can vouch for, each module at most once."""


def sequential_chains(model: nn.Module) -> Iterator[Chain]:
    """Yield the chains that `nn.Sequential` containers execute.

    Sequentials nested in Sequentials are one chain. A subclass counts if it inherits `forward` (torchvision's MLP
    does); one with a `forward` of its own gives a chain with a refusal, and is not looked through.
    """
    inner: set[nn.Module] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential) or module in inner:
            continue
        if _runs_in_order(module):
            yield Chain(tuple(_flatten(path, module, inner)))
        else:
            children = tuple((_join(path, name), child) for name, child in module.named_children())
            yield Chain(children, f"{type(module).__name__} '{path}' has a forward of its own")


FINDERS: Final[tuple[Finder, ...]] = (sequential_chains,)
"""The strategies that `find_pairs` asks, in this order; the first to name a pair wins."""


def _runs_in_order(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and is_plain(module)


def _flatten(path: str, container: nn.Sequential, inner: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    # Not named_children(), which leaves out a module's second appearance in the chain.
    for name, child in container._modules.items():  # noqa: SLF001
        child_path = _join(path, name)
        if _runs_in_order(child):
            inner.add(child)
            yield from _flatten(child_path, child, inner)
        else:
            yield child_path, child


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
