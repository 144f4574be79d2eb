"""The bundled workload: LayerCollapse steered by live variables while the model trains."""

import logging
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from livetune.layercollapse import (
    ExampleInputs,
    LayerCollapseError,
    Prepared,
    Report,
    attach_slopes_,
    collapse_,
    find_pairs,
    penalty,
    prepare_,
    regularised_pairs,
)
from livetune.torch import HasValue

_log = logging.getLogger(__name__)


class TriggerLike(Protocol):
    """What a trigger must offer."""

    def __call__(self) -> bool:
        """Return True once per firing."""
        ...


class JobLike(Protocol):
    """What a job must offer: `livetune.init` returns one."""

    def variable(
        self,
        name: str,
        default: float,
        /,
        *,
        min: float | None = None,  # noqa: A002 - the SDK's keyword
        max: float | None = None,  # noqa: A002 - the SDK's keyword
        doc: str = "",
    ) -> HasValue:
        """Declare a float variable."""
        ...

    def trigger(self, name: str, /, *, doc: str = "") -> TriggerLike:
        """Declare a trigger."""
        ...


class LiveLayerCollapse:
    """LayerCollapse of one model, steered from outside.

        live = LiveLayerCollapse(job, model, optimizer, example_inputs=batch)
        for x, y in loader:
            loss = criterion(model(x), y) + live.penalty()
            ...
            optimizer.step()
            job.step()
            report = live.poll()

    Declares `lc.strength` (at least 0), `lc.fraction` and `lc.threshold` (0..1) and the trigger `collapse`. Prepares
    every collapsible pair and gives the slopes a parameter group of their own, so build it before learning rate
    schedulers. Slopes that are not pulled (strength 0, or outside the fraction) rest: at strength 0 the network trains
    as if it had not been prepared. Use it in the thread of the training loop.

    Args:
        job: What `livetune.init` returned.
        model: The model to prepare, in place.
        optimizer: Its optimizer; it is carried over by a collapse.
        example_inputs: A batch of real data, on which parity and errors are measured at a collapse.
        slope_lr: Learning rate of the slopes; None stands for the optimizer's default.
        strength: Initial factor of the penalty.
        fraction: Initial fraction of the pairs to pull, last ones first.
        threshold: Initial distance to 1 below which a slope lets its pair be collapsed.

    Raises:
        PrepareError: The model has no collapsible pair, or is prepared already.
    """

    def __init__(
        self,
        job: JobLike,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        example_inputs: ExampleInputs,
        slope_lr: float | None = None,
        strength: float = 0.0,
        fraction: float = 1.0,
        threshold: float = 0.05,
    ) -> None:
        self._strength = job.variable(
            "lc.strength", strength, min=0.0, doc="Factor of the LayerCollapse penalty; published values are 0.05 to 5."
        )
        self._fraction = job.variable(
            "lc.fraction", fraction, min=0.0, max=1.0, doc="Fraction of the pairs that are pulled, last ones first."
        )
        self._threshold = job.variable(
            "lc.threshold", threshold, min=0.0, max=1.0, doc="A pair can be collapsed if its slope is nearer to 1."
        )
        self._collapse = job.trigger("collapse", doc="Collapse the pairs whose slopes are within lc.threshold of 1.")
        self.variables: dict[str, HasValue] = {
            "lc.strength": self._strength,
            "lc.fraction": self._fraction,
            "lc.threshold": self._threshold,
        }
        """The declared variables by name, for a loop that logs them."""
        self._model = model
        self._optimizer = optimizer
        self._example_inputs = example_inputs
        self.prepared: Prepared = prepare_(model, find_pairs(model))
        """The handle of the prepared model, for `slopes()` and `pairs`."""
        self.refusal: LayerCollapseError | None = None
        """Why the last firing of `collapse` did nothing; None if it did something or there was none."""
        attach_slopes_(optimizer, self.prepared, lr=slope_lr)
        self._pulling: tuple[bool, float] | None = None
        self._settle()

    def penalty(self) -> Tensor:
        """Return `lc.strength` times the penalty, a tensor of shape () to add to the loss."""
        strength = self._strength.value
        # At strength 0 there is no graph to build; the fraction 0 selects no pair.
        return strength * penalty(self.prepared, self._fraction.value if strength > 0.0 else 0.0)

    def poll(self) -> Report | None:
        """Do what was asked for from outside; call it after every `job.step()`.

        Returns:
            The outcome of `collapse` if one was fired; None otherwise.
        """
        return self.collapse() if self.requested() else None

    def requested(self) -> bool:
        """Take over changed values, and say whether a collapse was fired; the firing is consumed.

        The first half of `poll`, for loops that want to evaluate between the two.
        """
        self._settle()
        return self._collapse()

    def collapse(self) -> Report | None:
        """Collapse what is within `lc.threshold`; the second half of `poll`.

        Returns:
            The report, in which pairs that have not come near enough are listed as kept. None if the collapse was
            refused (parity, no pair left): the model is as it was, the refusal is logged as a warning and kept in
            `refusal`, and training goes on.
        """
        try:
            report = collapse_(
                self._model,
                self.prepared,
                example_inputs=self._example_inputs,
                threshold=self._threshold.value,
                optimizer=self._optimizer,
            )
        except LayerCollapseError as error:
            self.refusal = error
            _log.warning("collapse refused: %s", error)
            return None
        self.refusal = None
        return report

    def _settle(self) -> None:
        """Let exactly the slopes that are pulled be trained."""
        pulling = (self._strength.value > 0.0, self._fraction.value)
        if pulling == self._pulling:
            return
        self._pulling = pulling
        pulled = {pair.name for pair in regularised_pairs(self.prepared, pulling[1] if pulling[0] else 0.0)}
        for pair in self.prepared.pairs:
            slope = self.prepared.layer(pair).slope
            slope.requires_grad_(pair.name in pulled)
            # A gradient left behind would let the optimizer go on moving a slope that rests.
            slope.grad = None
