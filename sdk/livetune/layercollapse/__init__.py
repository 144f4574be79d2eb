"""LayerCollapse: train a network with fewer layers by driving activations to lines and multiplying out what is linear.

    pairs = find_pairs(model)
    prepared = prepare_(model, pairs)
    attach_slopes_(optimizer, prepared, lr=0.01)
    ...
    loss = task_loss + strength * penalty(prepared)
    ...
    report = collapse_(model, prepared, optimizer=optimizer, example_inputs=batch)

Implemented from the mathematics of LayerCollapse (arXiv 2311.17943), a descendant of Layer Folding (Ben Dror et al.,
2021).
Needs torch; knows nothing of daemons or jobs.
"""

from livetune.layercollapse.collapse import collapse_
from livetune.layercollapse.config import Mode, PrepareConfig
from livetune.layercollapse.discover import find_pairs
from livetune.layercollapse.errors import ArgumentError, CollapseError, LayerCollapseError, PrepareError
from livetune.layercollapse.finders import FINDERS, Chain, Finder
from livetune.layercollapse.linearize import LinearizedActivation
from livetune.layercollapse.measure import ExampleInputs
from livetune.layercollapse.optimizer import attach_slopes_
from livetune.layercollapse.pairs import Pair, Pairs
from livetune.layercollapse.penalty import clamp_slopes_, decay_slopes_, penalty, regularised_pairs
from livetune.layercollapse.prepare import Prepared, prepare_
from livetune.layercollapse.report import PairReport, Report

__all__ = [
    "FINDERS",
    "ArgumentError",
    "Chain",
    "CollapseError",
    "ExampleInputs",
    "Finder",
    "LayerCollapseError",
    "LinearizedActivation",
    "Mode",
    "Pair",
    "PairReport",
    "Pairs",
    "PrepareConfig",
    "PrepareError",
    "Prepared",
    "Report",
    "attach_slopes_",
    "clamp_slopes_",
    "collapse_",
    "decay_slopes_",
    "find_pairs",
    "penalty",
    "prepare_",
    "regularised_pairs",
]
