"""Preparing a model: activations of the chosen pairs become `LinearizedActivation`, at no change of the function."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from torch import nn

from livetune.layercollapse.config import PrepareConfig
from livetune.layercollapse.errors import PrepareError
from livetune.layercollapse.hooks import swap_hooks
from livetune.layercollapse.kinds import is_activation
from livetune.layercollapse.linearize import LinearizedActivation
from livetune.layercollapse.pairs import Pair, Pairs, follow


class Prepared:
    """The handle of a prepared model: its pairs, their slopes, and which of them are collapsed by now.

    It belongs to the one model object that was prepared, not to copies of it. Not thread-safe: use it where the
    training loop runs.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, LinearizedActivation], pairs: Iterable[Pair], config: PrepareConfig
    ) -> None:
        self.model: Final = model
        """The prepared model."""
        self.config: Final = config
        """How it was prepared."""
        self.all_pairs: Final = tuple(pairs)
        """Every pair that was prepared, in the order of execution, those collapsed since included."""
        self._layers = dict(layers)
        self._merged_into: dict[str, str] = {}

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs that are prepared and not collapsed yet, in the order of execution."""
        return tuple(pair for pair in self.all_pairs if pair.name in self._layers)

    def layer(self, pair: Pair) -> LinearizedActivation:
        """Return the pair's prepared activation.

        Raises:
            KeyError: The pair is collapsed, or not of this model.
        """
        return self._layers[pair.name]

    def slopes(self) -> dict[str, float]:
        """Return the slope of every remaining pair by the pair's name; waits for the device."""
        return {pair.name: self.layer(pair).slope.item() for pair in self.pairs}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the slopes of the remaining pairs, for a parameter group without weight decay."""
        for pair in self.pairs:
            yield self.layer(pair).slope

    def home(self, path: str) -> str:
        """Return where the linear layer once at `path` is now: in a chain an earlier one may have taken it up."""
        return follow(self._merged_into, path)

    def forget(self, pair: Pair) -> None:
        """Take note that a pair is collapsed; called by `collapse_`."""
        del self._layers[pair.name]
        self._merged_into[pair.second] = pair.first


def prepare_(model: nn.Module, pairs: Pairs | Iterable[Pair], config: PrepareConfig | None = None) -> Prepared:
    """Replace, in place, the activation of each pair by one whose slope can be driven to a line.

    The model computes what it did before, bit for bit: every slope starts at 0. Hooks, device, type and train or eval
    mode of a replaced activation are kept. The state dict gains `PATH.slope`; what a replaced activation with
    parameters had at `PATH.x` is at `PATH.activation.x`. Prepare before learning rate schedulers are built, and before
    the model is wrapped (DDP, compile).

    Args:
        model: The model in which the pairs were found; all of it is changed or nothing.
        pairs: What `find_pairs` returned, of which the collapsible ones are taken; or chosen pairs, all of which must
            be collapsible.
        config: How to prepare; None stands for `PrepareConfig()`.

    Returns:
        The handle that `penalty` and `collapse_` need.

    Raises:
        PrepareError: There is no pair to prepare, a chosen pair cannot be collapsed or is named twice, the model is
            prepared already, or the pairs are not (or no longer) those of this model.
    """
    chosen = list(pairs.collapsible if isinstance(pairs, Pairs) else pairs)
    if not chosen:
        raise PrepareError("no pair to prepare: find_pairs found none that can be collapsed")
    for path, module in model.named_modules():
        if isinstance(module, LinearizedActivation):
            raise PrepareError(f"the model is already prepared: '{path}' is a LinearizedActivation")
    seen: set[str] = set()
    for pair in chosen:
        if pair.reason is not None:
            raise PrepareError(f"pair {pair.name} cannot be collapsed: {pair.reason}")
        if pair.name in seen:
            raise PrepareError(f"pair {pair.name} is named twice")
        _require_present(model, pair)
        seen.add(pair.name)
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    chosen.sort(key=lambda pair: order[pair.first])
    # All that can fail lies before the first change: from here on slots are only assigned.
    layers = {pair.name: _linearized(model, pair) for pair in chosen}
    for pair in chosen:
        layer = layers[pair.name]
        swap_hooks(layer.activation, layer)
        put(model, pair.activation, layer)
    return Prepared(model, layers, chosen, config or PrepareConfig())


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _require_present(model: nn.Module, pair: Pair) -> None:
    problem = f"pair {pair.name} is not one of this model (any more): run find_pairs on it again"
    try:
        first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
        between = [model.get_submodule(path) for path in pair.between]
        activation = model.get_submodule(pair.activation)
    except AttributeError as error:
        raise PrepareError(f"{problem}: {error}") from error
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        raise PrepareError(f"{problem}: '{pair.first}' or '{pair.second}' is no linear layer")
    sizes = (first.in_features, first.out_features, second.in_features, second.out_features)
    expected = (pair.inputs, pair.hidden, pair.hidden, pair.outputs)
    if sizes != expected or not is_activation(activation) or activation not in between:
        raise PrepareError(f"{problem}: expected sizes {expected} around an activation, got {sizes}")


def _linearized(model: nn.Module, pair: Pair) -> LinearizedActivation:
    weight = model.get_submodule(pair.first).get_parameter("weight")
    return LinearizedActivation(model.get_submodule(pair.activation), device=weight.device, dtype=weight.dtype)
