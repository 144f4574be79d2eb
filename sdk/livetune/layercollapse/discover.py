"""Finding the pairs of linear layers in a model that can be collapsed into one."""

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from livetune.layercollapse.finders import FINDERS, Chain, Finder
from livetune.layercollapse.hooks import count_hooks
from livetune.layercollapse.kinds import between_refusal, is_activation, is_identity, label, linear_refusal
from livetune.layercollapse.pairs import Pair, Pairs, growth

_Links = Sequence[tuple[str, nn.Module]]


def find_pairs(model: nn.Module, finders: Sequence[Finder] = FINDERS) -> Pairs:
    """Find the pairs linear-activation-linear of a model, with what collapsing each saves, or why it cannot be.

    Looks at structure and shapes only, so a model on the meta device will do. A module that `forward` calls out of its
    container's order, or a hidden value that it reads, cannot be seen here; `collapse_` finds out and refuses.

    Args:
        model: Any module. It is not changed.
        finders: The strategies to ask, in this order; of two that name the same pair the first wins.

    Returns:
        The pairs in the order in which they were found, those that cannot be collapsed included; empty if there are
        none.
    """
    sharing = _Sharing(model)
    found: dict[tuple[str, str], Pair] = {}
    for finder in finders:
        for chain in finder(model):
            for pair in _pairs_of(chain, sharing):
                found.setdefault((pair.first, pair.second), pair)
    return Pairs(found.values(), count_parameters(model))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, shared ones counted once and those of lazy layers not at all."""
    return sum(p.numel() for p in module.parameters() if not isinstance(p, UninitializedParameter))


class _Sharing:
    """Which parameters and modules of a model appear in more than one place."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        self._modules = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))

    def refusal(self, links: _Links) -> str | None:
        """Return why sharing forbids collapsing these modules, or None.

        An activation or dropout without state and hooks may serve in several places: only its slot is replaced.
        """
        for path, module in links:
            for name, parameter in module.named_parameters():
                if self._parameters[id(parameter)] > 1:
                    return f"'{path}.{name}' is shared with another module"
            if self._modules[id(module)] > 1 and (isinstance(module, nn.Linear) or count_hooks(module)):
                return f"'{path}' is used in more than one place"
        return None


def _pairs_of(chain: Chain, sharing: _Sharing) -> Iterator[Pair]:
    start: tuple[str, nn.Linear] | None = None
    between: list[tuple[str, nn.Module]] = []
    for path, module in chain.links:
        if isinstance(module, nn.Linear):
            if start is not None:
                yield _describe(start, between, (path, module), chain.refusal, sharing)
            start, between = (path, module), []
        else:
            between.append((path, module))


def _describe(
    start: tuple[str, nn.Linear], between: _Links, stop: tuple[str, nn.Linear], refusal: str | None, sharing: _Sharing
) -> Pair:
    (first_path, first), (second_path, second) = start, stop
    activations = [path for path, module in between if is_activation(module)]
    visible = [label(module) for _, module in between if not is_identity(module)]
    outputs = second.out_features
    biases = (first.bias is not None, second.bias is not None)
    extra = sum(count_parameters(module) for _, module in between)
    reason = (
        refusal
        or _layers_refusal(start, stop)
        or next(filter(None, (between_refusal(path, module) for path, module in between)), None)
        or _activation_refusal(activations)
        or sharing.refusal((start, *between, stop))
        or growth(first.in_features, first.out_features, outputs, biases, extra)
    )
    return Pair(
        first=first_path,
        activation=activations[0] if activations else "",
        second=second_path,
        between=tuple(path for path, _ in between),
        kind="-".join(("linear", *visible, "linear")),
        inputs=first.in_features,
        hidden=first.out_features,
        outputs=outputs,
        biases=biases,
        extra_parameters=extra,
        reason=reason,
    )


def _layers_refusal(first: tuple[str, nn.Linear], second: tuple[str, nn.Linear]) -> str | None:
    for path, linear in (first, second):
        if (why := linear_refusal(linear)) is not None:
            return f"'{path}' {why}"
    one, other = first[1].weight, second[1].weight
    if first[1].out_features != second[1].in_features:
        return f"{first[1].out_features} outputs do not fit {second[1].in_features} inputs"
    if one.device != other.device or one.dtype != other.dtype:
        return f"the layers differ: {one.dtype} on {one.device}, {other.dtype} on {other.device}"
    return None


def _activation_refusal(activations: Sequence[str]) -> str | None:
    if len(activations) == 1:
        return None
    return f"{len(activations)} activations stand between" if activations else "no activation stands between"
