"""What a collapse did: parameters, slope and error of every pair, as a value that prints as a table."""

from dataclasses import asdict, dataclass

from livetune.layercollapse.tables import table


@dataclass(frozen=True)
class PairReport:
    """One pair's part of a collapse. Errors are relative, |new - old| / |old|, on the example inputs."""

    name: str
    """The pair's name, the paths of its layers."""
    kind: str
    """What the pair is made of, for example `linear-ReLU-dropout-linear`."""
    slope: float
    """a, the slope when the collapse was asked for; at 1 the pair is linear and collapsing it is exact."""
    pair_error: float
    """Change of the pair's own output when its residual slope 1 - a, and nothing else, is dropped."""
    output_error: float
    """Change of the model's output from the same."""
    collapsed: bool
    """Whether the pair is one layer now."""
    reason: str
    """Why it was kept, or what went with it."""
    parameters_removed: int
    """Parameters that went with it; 0 if it was kept."""


@dataclass(frozen=True)
class Report:
    """The outcome of one `collapse_`; `str()` gives a table."""

    parameters_before: int
    """Parameters of the model before this collapse, slopes not counted."""
    parameters_after: int
    """Parameters of the model after it, slopes not counted."""
    output_error: float
    """Relative change of the model's output on the example inputs by the whole collapse."""
    parity_error: float
    """Relative difference between the collapsed model and the same model with the slopes set to 1."""
    threshold: float
    """Pairs with |a - 1| below this were collapsed."""
    tolerance: float
    """The largest parity error that would have been accepted."""
    pairs: tuple[PairReport, ...]
    """Every pair that was prepared and not collapsed before, in the order of execution."""

    @property
    def collapsed(self) -> tuple[PairReport, ...]:
        """The pairs that were collapsed."""
        return tuple(pair for pair in self.pairs if pair.collapsed)

    @property
    def kept(self) -> tuple[PairReport, ...]:
        """The pairs that were kept, each with its reason."""
        return tuple(pair for pair in self.pairs if not pair.collapsed)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "pairs": [asdict(pair) for pair in self.pairs]}

    def __str__(self) -> str:
        rows = [
            (
                pair.name,
                pair.kind,
                f"{pair.slope:.4f}",
                f"{pair.pair_error:.2%}",
                f"{pair.output_error:.2%}",
                "collapsed" if pair.collapsed else "kept",
                f"{pair.parameters_removed:,}",
                pair.reason,
            )
            for pair in self.pairs
        ]
        header = ("pair", "kind", "slope", "pair error", "output error", "", "removed", "reason")
        change = 100.0 * (self.parameters_after - self.parameters_before) / max(self.parameters_before, 1)
        return (
            f"{table(header, rows)}\n"
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,} ({change:+.2f} %), output changed by "
            f"{self.output_error:.2%}, parity {self.parity_error:.1e} (at most {self.tolerance:.1e})"
        )
