"""What a collapsible pair of linear layers is, what collapsing it saves, and how a list of them prints."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from livetune.layercollapse.tables import table


@dataclass(frozen=True)
class Pair:
    """Two linear layers with an activation between them: y = W2 s(W1 x + b1) + b2.

    Paths are those of `nn.Module.get_submodule`, from the root of the model.
    """

    first: str
    """Path of the linear layer that computes z = W1 x + b1."""
    activation: str
    """Path of the activation s; empty where the pair was refused for having none."""
    second: str
    """Path of the linear layer that computes W2 s(z) + b2."""
    between: tuple[str, ...]
    """Paths of every slot between the two layers, the activation's included, in the order of execution."""
    kind: str
    """What the pair is made of, for example `linear-ReLU-dropout-linear`."""
    inputs: int
    """d, the number of input features."""
    hidden: int
    """h, the number of hidden units."""
    outputs: int
    """o, the number of output features."""
    biases: tuple[bool, bool]
    """Whether the first and the second layer have a bias."""
    extra_parameters: int = 0
    """Parameters between the layers (a PReLU's), which go when the pair is collapsed."""
    reason: str | None = None
    """Why the pair cannot be collapsed; None if it can."""

    @property
    def name(self) -> str:
        """The pair's name in reports and arguments: the paths of its layers, `first+second`."""
        return f"{self.first}+{self.second}"

    @property
    def collapsible(self) -> bool:
        """Whether nothing speaks against collapsing the pair."""
        return self.reason is None

    @property
    def parameters_before(self) -> int:
        """Parameters of the pair: h (d + o), its biases, and what stands between."""
        return pair_parameters(self.inputs, self.hidden, self.outputs, self.biases) + self.extra_parameters

    @property
    def parameters_after(self) -> int:
        """Parameters of the one layer that takes its place: d o, and o if there is any bias."""
        return merged_parameters(self.inputs, self.outputs, self.biases)

    @property
    def saving(self) -> int:
        """How many parameters collapsing this pair alone removes; negative if the product is larger."""
        return self.parameters_before - self.parameters_after


def pair_parameters(inputs: int, hidden: int, outputs: int, biases: tuple[bool, bool]) -> int:
    """Return the number of parameters of two linear layers d -> h -> o."""
    return hidden * (inputs + outputs) + hidden * biases[0] + outputs * biases[1]


def merged_parameters(inputs: int, outputs: int, biases: tuple[bool, bool]) -> int:
    """Return the number of parameters of the product d -> o, which has a bias if either layer has one."""
    return inputs * outputs + outputs * any(biases)


def growth(inputs: int, hidden: int, outputs: int, biases: tuple[bool, bool], extra: int = 0) -> str | None:
    """Return why the product of d -> h -> o must not be multiplied out, or None if it does not grow.

    It grows where h < d o / (d + o), biases aside: a bottleneck is cheaper as it is.
    """
    before = pair_parameters(inputs, hidden, outputs, biases) + extra
    after = merged_parameters(inputs, outputs, biases)
    if after <= before:
        return None
    return f"the product {inputs}-{outputs} would grow from {before:,} to {after:,} parameters"


class Pairs(Sequence[Pair]):
    """The pairs found in one model, in the order of execution; `str()` gives a table.

    Pairs that were found but cannot be collapsed are listed too, each with its `reason`.
    """

    def __init__(self, pairs: Iterable[Pair], model_parameters: int) -> None:
        self._pairs = tuple(pairs)
        self.model_parameters = model_parameters
        """Parameters of the whole model, shared ones counted once."""

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "Pairs": ...
    def __getitem__(self, index: int | slice) -> "Pair | Pairs":
        if isinstance(index, slice):
            return Pairs(self._pairs[index], self.model_parameters)
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def collapsible(self) -> "Pairs":
        """The pairs that can be collapsed."""
        return Pairs((pair for pair in self._pairs if pair.collapsible), self.model_parameters)

    @property
    def refused(self) -> "Pairs":
        """The pairs that cannot be collapsed, each with its reason."""
        return Pairs((pair for pair in self._pairs if not pair.collapsible), self.model_parameters)

    @property
    def parameters_after(self) -> int:
        """Parameters of the whole model once every collapsible pair is collapsed.

        Pairs of a chain share layers, so this is not the sum of the single savings. The chain is followed as
        `collapse_` does it: last pair first, leaving out a pair whose product would have grown by then.
        """
        return self.model_parameters - follow_chain(self.collapsible)[0]

    def __str__(self) -> str:
        if not self._pairs:
            return "no pairs of linear layers found"
        rows = [
            (
                pair.first,
                pair.second,
                pair.kind,
                f"{pair.inputs}-{pair.hidden}-{pair.outputs}",
                f"{pair.parameters_before:,}",
                f"{pair.parameters_after:,}" if pair.collapsible else "",
                f"saves {pair.saving:,}" if pair.reason is None else f"no: {pair.reason}",
            )
            for pair in self._pairs
        ]
        listing = table(("first", "second", "kind", "d-h-o", "parameters", "collapsed", "saves, or why not"), rows)
        after = self.parameters_after
        change = 100.0 * (after - self.model_parameters) / max(self.model_parameters, 1)
        return f"{listing}\nmodel: {self.model_parameters:,} -> {after:,} parameters ({change:+.2f} %) with all of them"

    __repr__ = __str__


def follow(merged_into: Mapping[str, str], path: str) -> str:
    """Return where the layer once at `path` lives now, given which layers were merged into which."""
    while path in merged_into:
        path = merged_into[path]
    return path


def follow_chain(pairs: Sequence[Pair]) -> tuple[int, dict[str, str]]:
    """Work out what collapsing all these pairs does, last pair first, without doing it.

    Args:
        pairs: Pairs of one model in the order of execution; neighbours may share a layer.

    Returns:
        How many parameters go, and by name the pairs that are left out because their product would have grown by then.
    """
    outputs_of = {pair.second: pair.outputs for pair in pairs}
    bias_of = {pair.second: pair.biases[1] for pair in pairs}
    saved = 0
    left_out: dict[str, str] = {}
    for pair in reversed(pairs):
        outputs, biases = outputs_of[pair.second], (pair.biases[0], bias_of[pair.second])
        why = growth(pair.inputs, pair.hidden, outputs, biases, pair.extra_parameters)
        if why is not None:
            left_out[pair.name] = why
            continue
        saved += pair_parameters(pair.inputs, pair.hidden, outputs, biases) + pair.extra_parameters
        saved -= merged_parameters(pair.inputs, outputs, biases)
        outputs_of[pair.first], bias_of[pair.first] = outputs, any(biases)
    return saved, left_out
