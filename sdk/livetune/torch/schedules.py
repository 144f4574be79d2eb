"""Owns what is known of learning rate schedulers: the modes, what they schedule, and how they go on from a new base."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import Enum

from torch import Tensor
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from livetune.torch.errors import BindError
from livetune.torch.slots import Group, Number, Slot

LR = Slot("lr")


class Mode(str, Enum):
    """What a changed learning rate means to a schedule; `docs/schedulers.md` compares them."""

    SCALE = "scale"
    """The value is the rate of the next step, and a factor over the rest of the schedule."""

    REBASE = "rebase"
    """The value is the schedule's new base (its peak, where it has one); written into the schedulers."""

    OVERRIDE = "override"
    """The value is the rate of every step, whatever the schedule says, until it is released."""


_SHARED_FLOORS = {schedulers.CosineAnnealingLR: "eta_min", schedulers.CosineAnnealingWarmRestarts: "eta_min"}
"""Rates that a scheduler keeps once for all groups."""

_LISTS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
"""Rates that schedulers keep for each group, in lists of their own."""

_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")
"""Rates that schedulers keep in the parameter groups."""

OWN_KEYS = frozenset(_GROUP_KEYS[1:]) | {"base_momentum", "max_momentum"}
"""Keys of a parameter group that belong to schedulers, not to the optimizer."""

_REBASABLE = frozenset(
    {
        schedulers.ChainedScheduler,
        schedulers.ConstantLR,
        schedulers.CosineAnnealingLR,
        schedulers.CosineAnnealingWarmRestarts,
        schedulers.CyclicLR,
        schedulers.ExponentialLR,
        schedulers.LambdaLR,
        schedulers.LinearLR,
        schedulers.MultiStepLR,
        schedulers.MultiplicativeLR,
        schedulers.OneCycleLR,
        schedulers.PolynomialLR,
        schedulers.ReduceLROnPlateau,
        schedulers.SequentialLR,
        schedulers.StepLR,
    }
)
"""All of whose rates are known, so that all can be moved together; a subclass may keep more."""


def flatten(roots: Iterable[LRScheduler]) -> Iterator[LRScheduler]:
    """Yield schedulers and all that they are made of, each once."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        scheduler = waiting.pop(0)
        if id(scheduler) not in seen:
            seen.add(id(scheduler))
            yield scheduler
            waiting += getattr(scheduler, "_schedulers", ())


def is_scheduled(slot: Slot, group: Group, roots: Sequence[LRScheduler]) -> bool:
    """Say whether a schedule moves a hyperparameter; schedulers leave their traces in the parameter groups."""
    if slot == LR:
        # ReduceLROnPlateau leaves no trace, so there it must be told.
        return bool(roots) or "initial_lr" in group
    return slot in {Slot("momentum"), Slot("betas", 0)} and "max_momentum" in group


def base_of(group: Group, index: int, roots: Sequence[LRScheduler]) -> float | None:
    """Return the rate that a group's schedule is built on, its peak where it has one; None if that is kept nowhere."""
    if "max_lr" in group:
        return float(group["max_lr"])
    for scheduler in flatten(roots):
        if isinstance(scheduler, schedulers.CyclicLR):
            return float(scheduler.max_lrs[index])
    return float(group["initial_lr"]) if "initial_lr" in group else None


def nominal(slot: Slot, group: Group, index: int, roots: Sequence[LRScheduler]) -> float:
    """Return the value that a hyperparameter is built on in a group: the base of its schedule, or what is there."""
    base = base_of(group, index, roots) if slot == LR else None
    return slot.read(group) if base is None else base


def check_rebasable(roots: Sequence[LRScheduler], indices: Collection[int], count: int) -> None:
    """Refuse what `rebase_` could not move as a whole.

    Args:
        roots: The schedulers.
        indices: Parameter groups to move.
        count: How many parameter groups there are.

    Raises:
        BindError: No scheduler, one of an unknown type, or one that keeps a floor for all groups while some are moved.
    """
    if not roots:
        raise BindError("mode rebase writes into the scheduler: it needs scheduler=..., got None")
    for scheduler in flatten(roots):
        kind = type(scheduler)
        if kind not in _REBASABLE:
            raise BindError(
                f"mode rebase does not know all rates that {kind.__name__} keeps; mode scale works with any scheduler"
            )
        floor = _SHARED_FLOORS.get(kind)
        if floor is not None and getattr(scheduler, floor) != 0.0 and len(indices) != count:
            raise BindError(
                f"mode rebase cannot move groups {sorted(indices)} of {count} alone: {kind.__name__} keeps one "
                f"{floor}={getattr(scheduler, floor)} for all; bind all groups, or use mode scale"
            )


def rebase_(roots: Sequence[LRScheduler], groups: Sequence[Group], indices: Collection[int], factor: float) -> None:
    """Multiply every rate that the schedule of some groups is made of, floors included; its shape stays.

    All of torch's schedulers are homogeneous in their rates, so from now on they yield `factor` times what they would
    have.

    Args:
        roots: Schedulers that `check_rebasable` let pass.
        groups: All parameter groups of the optimizer.
        indices: Those to move.
        factor: New base divided by the old one.
    """
    for index in indices:
        for key in _GROUP_KEYS:
            if key in groups[index]:
                _multiply(Slot(key), groups[index], factor)
    for scheduler in flatten(roots):
        for name in _LISTS:
            if hasattr(scheduler, name):
                old: list[Number] = getattr(scheduler, name)
                # A new list: SequentialLR shows the list of its part, and that would be multiplied twice.
                setattr(scheduler, name, [rate * factor if at in indices else rate for at, rate in enumerate(old)])
        floor = _SHARED_FLOORS.get(type(scheduler))
        if floor is not None:
            setattr(scheduler, floor, getattr(scheduler, floor) * factor)


def _multiply(slot: Slot, group: Group, factor: float) -> None:
    there = slot.get(group)
    slot.write(group, there.detach() * factor if isinstance(there, Tensor) else there * factor)
