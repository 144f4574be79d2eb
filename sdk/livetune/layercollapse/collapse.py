"""The collapse itself: choose pairs, multiply them out, prove that it was right, or leave everything as it was."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from livetune.layercollapse.checks import require_non_negative, require_unit_interval
from livetune.layercollapse.discover import count_parameters
from livetune.layercollapse.errors import ArgumentError, CollapseError
from livetune.layercollapse.linearize import forced_linear
from livetune.layercollapse.measure import ExampleInputs, check_finite, outputs_of, relative_change
from livetune.layercollapse.merge import Merged, linears, merge_
from livetune.layercollapse.optimizer import check_migratable, migrate_
from livetune.layercollapse.pairs import Pair, follow_chain
from livetune.layercollapse.prepare import Prepared
from livetune.layercollapse.report import PairReport, Report


def collapse_(
    model: nn.Module,
    prepared: Prepared,
    *,
    example_inputs: ExampleInputs,
    threshold: float = 0.05,
    only: Iterable[Pair | str] | None = None,
    force: bool = False,
    optimizer: Optimizer | None = None,
    tolerance: float = 1e-4,
) -> Report:
    """Make one linear layer of every prepared pair whose slope a is within `threshold` of 1.

    The last pair is taken first (arXiv 2311.17943), one at a time: W = W2 diag(k) W1, b = W2 (k * b1 + t) + b2. The
    result is compared, in eval mode on the example inputs, with the same model whose slopes are set to 1; if they
    differ by more than the tolerance everything is put back. Dropout within a pair goes with it.

    The first layer stays the module it is, with the product's weight and bias; the slots of everything up to the second
    layer become `nn.Identity`, so all other keys of the state dict stay. Hooks on the hidden value are dropped and
    counted in the report. Call it between steps, when no gradients are pending: the merged parameters have none, and
    no optimizer state. A model wrapped in DDP must be wrapped anew.

    Args:
        model: The model that was prepared.
        prepared: Its handle.
        example_inputs: One tensor, a sequence of positional or a mapping of keyword arguments of `forward`; real data,
            because the errors in the report are measured on it. User hooks see these runs.
        threshold: Collapse where |a - 1| is below this; 0..1.
        only: Consider only these pairs, or pairs of these names.
        force: Collapse whatever the slopes are.
        optimizer: The optimizer to carry over, in which the merged parameters take the places of the first layer's.
        tolerance: The largest accepted relative difference to the linearised model. The default is for float32 and
            wider; in bfloat16 about 0.05 is needed.

    Returns:
        What was collapsed, what was kept and why, and the measured errors.

    Raises:
        ArgumentError: An argument is out of its range, `only` names an unknown pair, or the optimizer cannot be carried
            over. Nothing has changed.
        CollapseError: The model is not the prepared one or has been altered, no pair is left, it cannot run on the
            inputs, inputs or outputs are not finite, or the parity check failed. Nothing has changed.
    """
    require_unit_interval("threshold", threshold)
    require_non_negative("tolerance", tolerance)
    if model is not prepared.model:
        raise CollapseError(f"model must be the one that was prepared, got another {type(model).__name__}")
    pairs = prepared.pairs
    if not pairs:
        raise CollapseError("no pair is left to collapse")
    wanted = _wanted(pairs, only)
    if optimizer is not None:
        check_migratable(optimizer)
    check_finite("example_inputs", example_inputs)
    parameters = count_parameters(model) - len(pairs)
    with ExitStack() as undo:
        with _watching(prepared) as seen:
            before = outputs_of(model, example_inputs)
        measured = {
            pair.name: _Measured(
                slope=prepared.layer(pair).slope.item(),
                pair_error=_pair_error(prepared, pair, seen),
                output_error=relative_change(_linearised(prepared, [pair], example_inputs), before),
                ran={"x", "y"} <= seen[pair.name].keys(),
            )
            for pair in pairs
        }
        reasons = _reasons_to_keep(prepared, measured, wanted, None if force else threshold)
        chosen = [pair for pair in pairs if pair.name not in reasons]
        expected = _linearised(prepared, chosen, example_inputs)
        merged = {pair.name: merge_(prepared, pair, undo) for pair in reversed(chosen)}
        after = outputs_of(model, example_inputs)
        parity = relative_change(after, expected)
        if not parity <= tolerance:
            raise CollapseError(
                f"the collapsed model must equal the linearised one within {tolerance:.1e} (relative), got "
                f"{parity:.1e}: a hidden value may be used elsewhere, or the type may be too narrow for this tolerance"
            )
        if optimizer is not None:
            migrate_(optimizer, [merge for outcome in merged.values() for merge in outcome.merges])
        undo.pop_all()
    for pair in chosen:
        prepared.forget(pair)
    return Report(
        parameters_before=parameters,
        parameters_after=count_parameters(model) - len(prepared.pairs),
        output_error=relative_change(after, before),
        parity_error=parity,
        threshold=threshold,
        tolerance=tolerance,
        pairs=tuple(_pair_report(pair, measured[pair.name], merged.get(pair.name), reasons) for pair in pairs),
    )


@dataclass(frozen=True)
class _Measured:
    slope: float
    pair_error: float
    output_error: float
    ran: bool


_Seen = Mapping[str, Mapping[str, Tensor]]


def _wanted(pairs: Sequence[Pair], only: Iterable[Pair | str] | None) -> frozenset[str]:
    remaining = frozenset(pair.name for pair in pairs)
    if only is None:
        return remaining
    names = frozenset(item if isinstance(item, str) else item.name for item in only)
    if unknown := sorted(names - remaining):
        raise ArgumentError(
            f"only must name remaining pairs ({', '.join(sorted(remaining))}), got {', '.join(unknown)}"
        )
    return names


@contextmanager
def _watching(prepared: Prepared) -> Iterator[_Seen]:
    """Record what goes into (x) and comes out of (y) every pair that runs within the block."""
    seen: dict[str, dict[str, Tensor]] = {pair.name: {} for pair in prepared.pairs}
    with ExitStack() as hooks:
        for pair in prepared.pairs:
            first, second = linears(prepared, pair)
            record = seen[pair.name]

            hooks.callback(first.register_forward_hook(partial(_see_input, record)).remove)
            hooks.callback(second.register_forward_hook(partial(_see_output, record)).remove)
        yield seen


def _see_input(record: dict[str, Tensor], _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
    if args:
        record["x"] = args[0].clone()


def _see_output(record: dict[str, Tensor], _: nn.Module, __: object, output: Tensor) -> None:
    record["y"] = output.clone()


def _linearised(prepared: Prepared, pairs: Iterable[Pair], inputs: ExampleInputs) -> list[Tensor]:
    with forced_linear(prepared.layer(pair) for pair in pairs):
        return outputs_of(prepared.model, inputs)


@torch.no_grad()
def _pair_error(prepared: Prepared, pair: Pair, seen: _Seen) -> float:
    record = seen[pair.name]
    if not {"x", "y"} <= record.keys():
        return 0.0
    first, second = linears(prepared, pair)
    z = functional.linear(record["x"], first.weight, first.bias)
    y = functional.linear(prepared.layer(pair).line(z), second.weight, second.bias)
    return relative_change([y], [record["y"]])


def _reasons_to_keep(
    prepared: Prepared, measured: Mapping[str, _Measured], wanted: frozenset[str], threshold: float | None
) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for pair in prepared.pairs:
        gap = abs(measured[pair.name].slope - 1.0)
        if pair.name not in wanted:
            reasons[pair.name] = "not chosen"
        elif not measured[pair.name].ran:
            reasons[pair.name] = "did not run on example_inputs, so nothing could be proven"
        elif threshold is not None and not gap < threshold:
            reasons[pair.name] = f"slope is {gap:.3f} from 1, not below the threshold {threshold:g}"
    chosen = [_as_it_is(prepared, pair) for pair in prepared.pairs if pair.name not in reasons]
    return {**reasons, **follow_chain(chosen)[1]}


def _as_it_is(prepared: Prepared, pair: Pair) -> Pair:
    """Return the pair with the sizes that its layers have after earlier collapses; the name stays."""
    first, second = linears(prepared, pair)
    biases = (first.bias is not None, second.bias is not None)
    return replace(pair, inputs=first.in_features, outputs=second.out_features, biases=biases)


def _pair_report(pair: Pair, measured: _Measured, merged: Merged | None, reasons: Mapping[str, str]) -> PairReport:
    if merged is None:
        note = reasons[pair.name]
    else:
        hooks = merged.dropped_hooks
        note = f"{hooks} hook(s) on the hidden value dropped" if hooks else ""
    return PairReport(
        name=pair.name,
        kind=pair.kind,
        slope=measured.slope,
        pair_error=measured.pair_error,
        output_error=measured.output_error,
        collapsed=merged is not None,
        reason=note,
        parameters_removed=0 if merged is None else merged.parameters_removed,
    )
