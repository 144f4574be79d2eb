"""Owns how the ranks of one job take changes at the same step: rank 0 leads, the others do what it says.

Only rank 0 talks to the daemon. At every safe point each rank takes its part in one small message from rank 0: whether
there is something to do at the *next* safe point. Nobody waits for it before then, so it travels while a step computes.
When there is something, all ranks meet at that next safe point: rank 0 asks them what their programs say of the new
values, and tells them what takes effect. Whatever becomes of the daemon, or of the connection to it, every rank is told
the same at the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from livetune.messages import Refusal
from livetune.specs import Scalar

__all__ = ["Agreement", "Judgement"]

Judgement = tuple[str, Scalar, Scalar]
"""What rank 0 asks the others: a variable, the value that is to be used, and the one in use."""


class Agreement(Protocol):
    """What carries the messages between ranks. Every method is called by all ranks, in the same order.

    Whatever a method raises is taken to mean that a rank is gone: from then on no change takes effect any more.
    """

    @property
    def rank(self) -> int:
        """This rank, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def attach(self, step: Callable[[], None]) -> None:
        """Take the job's safe point, for ranks that have run out of inputs before the others."""

    def turn(self, wanted: bool) -> bool:
        """Say (rank 0) or learn whether there will be something to do at the next safe point, without waiting.

        Returns:
            Whether there is something to do now: what rank 0 said at the last safe point.
        """

    def tell(self, message: object) -> object:
        """Bring a message from rank 0 to all ranks. Returns it, on every rank."""

    def gather(self, answer: object) -> list[object]:
        """Bring an answer of each rank to rank 0. Returns them by rank there, nothing elsewhere."""


def first_refusal(answers: list[object]) -> Refusal | None:
    """Return the refusal of the lowest rank that refused, with its rank in the reason."""
    for rank, answer in enumerate(answers):
        if isinstance(answer, Refusal):
            return Refusal(f"rank {rank}: {answer.reason}")
    return None
