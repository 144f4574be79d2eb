"""Owns the decision what number a step uses: one `Governor` for each hyperparameter that follows a variable.

Where a schedule moves the hyperparameter, its own value stays in the parameter group between the steps: schedulers
such as CosineAnnealingLR compute the next value from the last, and would carry a factor along twice. So the value in
force is put there when a step begins (`Hold`) and taken away when it ends.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from livetune.torch.errors import BindError
from livetune.torch.news import HasValue, Listener, News
from livetune.torch.schedules import LR, Mode, base_of, is_scheduled, nominal, rebase_
from livetune.torch.slots import Group, Number, Slot, is_number

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hold:
    """A value that is in force for one step, and the one that comes back after it."""

    slot: Slot
    group: Group
    own: Number

    def undo(self) -> None:
        """Put the group's own value back, to the bit."""
        self.slot.write(self.group, self.own)


@dataclass
class _State:
    """What must survive a restart, so that the next step uses what the last one would have."""

    seen: float | None = None
    """The variable's value when it was last dealt with; None before the first step."""
    anchor: float | None = None
    """SCALE: the schedule's value that `seen` was said for; None while the schedule is undisturbed."""
    waiting: bool = False
    """SCALE: the schedule was at zero when `seen` was said, and has not left it yet."""
    pinned: bool = False
    """`seen` is used whatever the schedule says."""
    base: float | None = None
    """The base that the schedule has got, for schedules that do not keep it themselves."""


class Governor:
    """Lets one variable govern one hyperparameter in some groups.

    Groups are known by index, because `load_state_dict` replaces the dictionaries.

    Args:
        optimizer: Whose hyperparameter it is.
        slot: Where it lives.
        variable: What it follows.
        indices: The groups that follow.
        roots: The schedulers that were named.
        mode: What a change means to a schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        slot: Slot,
        variable: HasValue,
        indices: Sequence[int],
        roots: Sequence[LRScheduler],
        mode: Mode,
    ) -> None:
        self.slot = slot
        self.indices = tuple(indices)
        self._listener = Listener(variable)
        self._roots = roots
        self._mode = mode
        self._used: list[Number] = []
        self._recheck = False
        self._rewrite = False
        built_on = {index: nominal(slot, optimizer.param_groups[index], index, roots) for index in indices}
        self._reference = next((index for index, value in built_on.items() if value != 0.0), indices[0])
        reference = built_on[self._reference]
        self._ratios = {index: value / reference if reference else 1.0 for index, value in built_on.items()}
        group = optimizer.param_groups[self._reference]
        # OneCycleLR and CyclicLR overwrite what the optimizer was built with, and so it is a placeholder: a variable
        # that still says it asks for nothing.
        self._asks_nothing = {slot.read(group)}
        if slot.key in optimizer.defaults and is_number(slot.get(optimizer.defaults)):
            self._asks_nothing.add(slot.read(optimizer.defaults))
        self._state = _State(base=reference)

    def begin(self, optimizer: Optimizer) -> list[Hold]:
        """Put the value in force; return what is to be undone when the step has ended."""
        value, news = self._listener.listen(self._state.seen)
        scheduled = is_scheduled(self.slot, optimizer.param_groups[self._reference], self._roots)
        if scheduled or self._mode is Mode.OVERRIDE:
            holds = self._govern_schedule(optimizer, value, news, scheduled=scheduled)
        else:
            holds = []
            self._write(optimizer, value, news)
        self._used = [self.slot.copy(optimizer.param_groups[index]) for index in self.indices]
        if news is not News.NONE:
            # To read a number from a GPU would wait for it.
            on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in self._used)
            self._listener.tell([] if on_gpu else self.used())
        return holds

    def used(self) -> list[float]:
        """Return what the last step used in each group; empty before the first."""
        return [float(value) for value in self._used]

    def part(self) -> None:
        """Leave the variable: nothing is told to it any more."""
        self._listener.expect(more=False)

    def release(self) -> None:
        """Give the hyperparameter back to the schedule, until the variable changes."""
        self._state = _State(seen=self._state.seen, base=self._state.base)

    def after_load(self, optimizer: Optimizer) -> None:
        """Deal with a checkpoint of the optimizer, which brings the values of its own time along."""
        if is_scheduled(self.slot, optimizer.param_groups[self._reference], self._roots):
            # Its base may be that of an earlier time, while the variable's is in force. The next step looks, because
            # scheduler and binding may still be about to be loaded.
            self._recheck = self._mode is Mode.REBASE and self._state.seen == self._state.base
        elif self._mode is not Mode.OVERRIDE:
            # Nobody else writes here, so the variable's value is in force.
            self._rewrite = True

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart, as plain numbers."""
        return {"groups": list(self.indices), **asdict(self._state)}

    def parse(self, saved: dict[str, Any]) -> _State:
        """Check a saved state without taking it over.

        Raises:
            BindError: It is not one of this hyperparameter in these groups.
        """
        expected = {"groups", *(field.name for field in fields(_State))}
        if set(saved) != expected:
            raise BindError(f"the state of {self.slot.name} must have {sorted(expected)}, got {sorted(saved)}")
        if list(saved["groups"]) != list(self.indices):
            raise BindError(
                f"the state of {self.slot.name} is of groups {saved['groups']}, the binding of {list(self.indices)}"
            )
        return _State(**{name: saved[name] for name in expected - {"groups"}})

    def take(self, state: _State) -> None:
        """Go on from a state that `parse` has let pass."""
        self._state = state
        self._listener.resume()

    def _write(self, optimizer: Optimizer, value: float, news: News) -> None:
        """Write into the groups where no schedule does: whoever reads them sees it."""
        if news is News.NONE and not self._rewrite:
            return
        self._rewrite = False
        self._state = _State(seen=value, base=self._state.base)
        group = optimizer.param_groups[self._reference]
        if self.slot.read(group) != self.slot.round(group, value):
            for index, target in self._targets(value).items():
                self.slot.write(optimizer.param_groups[index], target)

    def _targets(self, value: float) -> dict[int, float]:
        # Not multiplied where there is no need: an int stays one.
        return {index: value if ratio == 1.0 else value * ratio for index, ratio in self._ratios.items()}

    def _govern_schedule(self, optimizer: Optimizer, value: float, news: News, *, scheduled: bool) -> list[Hold]:
        first = news is News.FIRST
        if first and self._is_neutral(optimizer, value):
            self._state = _State(seen=value, base=self._state.base)
        elif news is not News.NONE or self._recheck:
            self._change(optimizer, value, first=first, scheduled=scheduled)
        self._recheck = False
        if self._state.pinned:
            return self._hold(optimizer, dict(self._targets(value)))
        if self._state.anchor is None:
            return []
        return self._hold(optimizer, self._scaled(optimizer, value, self._state.anchor))

    def _is_neutral(self, optimizer: Optimizer, value: float) -> bool:
        """Say whether a variable that nobody has changed yet stands for what is there."""
        group = optimizer.param_groups[self._reference]
        built_on = nominal(self.slot, group, self._reference, self._roots)
        known = {*self._asks_nothing, built_on, self.slot.read(group)}
        if "initial_lr" in group and self.slot == LR:
            known.add(float(group["initial_lr"]))
        # Schedulers compute even their first rate, and tensors keep seven digits.
        return any(math.isclose(value, there, rel_tol=1e-6) for there in known)

    def _change(self, optimizer: Optimizer, value: float, *, first: bool, scheduled: bool) -> None:
        """Take a new value in, as the mode has it."""
        group = optimizer.param_groups[self._reference]
        base = self._base(group)
        new = _State(seen=value, base=base)
        if self.slot != LR or self._mode is Mode.OVERRIDE:
            new.pinned = True
        elif self._mode is Mode.SCALE:
            # A variable that differs from the start was said for no step, so it is the base of the whole schedule.
            now = base if first else self.slot.read(group)
            new.waiting = now == 0.0
            new.anchor = now or base
        elif value == 0.0 or base == 0.0:
            # A schedule multiplied by zero could never come back, nor one that is zero be moved.
            new.pinned = True
        else:
            if value != base:
                rebase_(self._roots, optimizer.param_groups, self.indices, value / base)
            new.base = value
        if first and scheduled:
            _log.warning(
                "%s: the variable says %g, but the schedule is built on %g: the variable's value is taken in its place",
                self.slot.name, value, base,
            )  # fmt: skip
        self._state = new

    def _base(self, group: Group) -> float:
        base = base_of(group, self._reference, self._roots) if self.slot == LR else None
        if base is None:
            base = self._state.base
        return self.slot.read(group) if base is None else base

    def _scaled(self, optimizer: Optimizer, value: float, anchor: float) -> dict[int, Number]:
        if self._state.waiting:
            now = self.slot.read(optimizer.param_groups[self._reference])
            if now == 0.0:
                return dict(self._targets(value))
            self._state.waiting = False
            if anchor == 0.0:
                self._state.anchor = anchor = now
        own = {index: self.slot.get(optimizer.param_groups[index]) for index in self.indices}
        # In this order the quotient is exactly 1 for the step that the value was said for.
        return {index: value * (scheduled / anchor) for index, scheduled in own.items()}

    def _hold(self, optimizer: Optimizer, targets: dict[int, Number]) -> list[Hold]:
        holds = []
        for index, target in targets.items():
            group = optimizer.param_groups[index]
            holds.append(Hold(self.slot, group, self.slot.copy(group)))
            self.slot.write(group, target.detach() if isinstance(target, Tensor) else target)
        return holds
