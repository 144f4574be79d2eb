"""Binding of live variables to an optimizer's hyperparameters, applied by the step that uses them."""

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from livetune.torch.errors import BindError
from livetune.torch.governors import Governor, Hold
from livetune.torch.news import HasValue
from livetune.torch.schedules import OWN_KEYS, Mode, check_rebasable
from livetune.torch.slots import Group, Slot, is_number

_STATE_VERSION = 1

_bindings: WeakKeyDictionary[Optimizer, WeakSet["Binding"]] = WeakKeyDictionary()
"""Who governs what, so that two cannot govern the same; neither is kept alive by it."""


class Binding:
    """The tie between an optimizer and its live variables; made by `bind`.

    Not thread-safe: everything happens in the thread that calls `optimizer.step()`.
    """

    def __init__(self, optimizer: Optimizer, governors: Sequence[Governor], mode: Mode) -> None:
        self._optimizer = optimizer
        self._governors = {governor.slot.name: governor for governor in governors}
        self._mode = mode
        self._holds: list[Hold] = []
        self._depth = 0
        self._guarded = 0
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(_opaque(lambda *_: self._begin())),
            optimizer.register_step_post_hook(_opaque(lambda *_: self._end())),
            optimizer.register_load_state_dict_post_hook(lambda _: self._after_load()),
        ]
        self._unguard = self._guard()
        _bindings.setdefault(optimizer, WeakSet()).add(self)

    @property
    def mode(self) -> Mode:
        """What a changed learning rate means to the schedule."""
        return self._mode

    def effective(self, name: str = "lr") -> list[float]:
        """Tell what the last step really used, in each bound group in the order in which they were bound.

        Between steps `group["lr"]` and `scheduler.get_last_lr()` show what the schedule says, so this is what to log
        and to acknowledge. A step that a fused optimizer skips because of infinite gradients counts as one.

        Args:
            name: A bound hyperparameter; parts of `betas` are `beta1` and `beta2`.

        Returns:
            One number for each bound group; empty before the first step.

        Raises:
            BindError: It is not bound; the message has the nearest name that is.
        """
        if name not in self._governors:
            raise BindError(
                f"{name!r} is not bound{_nearest(name, self._governors)}; bound: {', '.join(self._governors)}"
            )
        return self._governors[name].used()

    def release(self) -> None:
        """Give everything back to the schedules, until a variable changes again.

        From the next step on the schedule's own values hold, at the place that it has reached meanwhile. What was
        written for good stays: hyperparameters without a schedule (unless in mode OVERRIDE), and a schedule's new base
        (REBASE).
        """
        for governor in self._governors.values():
            governor.release()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the values in force while something runs that never calls `optimizer.step()`, such as a graph's replay.

            with binding.applied():
                graph.replay()

        The captured optimizer must be `capturable`, with its learning rate in a tensor.
        """
        self._guarded += 1
        try:
            self._begin()
            yield
            self._end()
        finally:
            self._guarded -= 1
            if not self._guarded:
                self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs in order to go on with the same values; plain numbers, text and lists.

        Save it with the states of optimizer and scheduler.
        """
        return {
            "version": _STATE_VERSION,
            "mode": self._mode.value,
            "governors": {name: governor.state_dict() for name, governor in self._governors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; load optimizer and schedulers as well, in any order.

        A variable that has another value now than it had then counts as changed: the next step uses it. One of a job
        that has not heard from the daemon yet (`revision` 0) still has the program's own value; there the saved one
        goes on until it has.

        Args:
            state: What `state_dict` of a binding of the same hyperparameters, groups and mode returned.

        Raises:
            BindError: It is of another version, mode, set of hyperparameters or groups; the binding is unchanged.
        """
        for key, expected in (("version", _STATE_VERSION), ("mode", self._mode.value)):
            if state.get(key) != expected:
                raise BindError(f"the {key} of a binding's state must be {expected!r}, got {state.get(key)!r}")
        saved = state.get("governors", {})
        if set(saved) != set(self._governors):
            raise BindError(f"the state is of {sorted(saved)}, the binding of {sorted(self._governors)}")
        parsed = {name: governor.parse(saved[name]) for name, governor in self._governors.items()}
        for name, governor in self._governors.items():
            governor.take(parsed[name])

    def remove(self) -> None:
        """Untie: what was written for good stays, and schedules go on undisturbed. Doing it twice is harmless."""
        for governor in self._governors.values() if self._handles else ():
            governor.part()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unguard()
        self._restore()
        _bindings.get(self._optimizer, WeakSet()).discard(self)

    def governs(self, slot: Slot, indices: Iterable[int]) -> list[int]:
        """Return those of some groups in which this binding governs a hyperparameter."""
        governor = self._governors.get(slot.name)
        return [] if governor is None else sorted(set(indices) & set(governor.indices))

    def _begin(self) -> None:
        if _is_capturing() or not self._handles:
            # A graph would keep today's values for ever; its replays are wrapped in `applied`. Without hooks it is
            # removed.
            return
        if self._depth and self._guarded:
            # A subclass's step calls that of its base, which has hooks too.
            self._depth += 1
            return
        self._restore()
        self._depth = 1
        for governor in self._governors.values():
            self._holds += governor.begin(self._optimizer)

    def _end(self) -> None:
        if _is_capturing():
            return
        self._depth -= 1
        if self._depth <= 0:
            self._restore()

    def _restore(self) -> None:
        for hold in reversed(self._holds):
            hold.undo()
        self._holds.clear()
        self._depth = 0

    def _after_load(self) -> None:
        for governor in self._governors.values():
            governor.after_load(self._optimizer)

    def _guard(self) -> Callable[[], None]:
        """Have the groups' own values back even where a step ends in an exception, for which torch has no hook.

        Returns:
            What takes the guard away again.
        """
        optimizer, inner = self._optimizer, self._optimizer.step
        before = vars(optimizer).get("step")
        # What is wrapped tells inspect.signature whether a step takes a closure or a scaler.
        plain = inner.__func__ if inspect.ismethod(inner) else inner

        @functools.wraps(plain)
        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._guarded += 1
            try:
                return inner(*args, **kwargs)
            finally:
                self._guarded -= 1
                if not self._guarded:
                    self._restore()

        # A method, because schedulers that come later take it apart as one.
        guarded = types.MethodType(step, optimizer)
        optimizer.step = guarded  # type: ignore[method-assign]

        def unguard() -> None:
            if vars(optimizer).get("step") is not guarded:
                return  # somebody has wrapped it since; without holds it does nothing
            if before is None:
                del optimizer.step
            else:
                optimizer.step = before  # type: ignore[method-assign]

        return unguard


def bind(
    optimizer: Optimizer,
    *,
    lr: HasValue | None = None,
    weight_decay: HasValue | None = None,
    betas: Sequence[HasValue | None] | None = None,
    momentum: HasValue | None = None,
    groups: Iterable[int] | None = None,
    scheduler: LRScheduler | Sequence[LRScheduler] | None = None,
    mode: Mode | str = Mode.SCALE,
    **others: HasValue | None,
) -> Binding:
    """Let live variables govern an optimizer's hyperparameters.

    A variable's value takes effect in the optimizer's own step, before it computes, so a step uses what was in force
    when it began. It stands for the first bound group that is not zero; the others keep their ratio to that one, so a
    group without weight decay stays without. If all are zero, all get the value. A tensor is filled in place. The
    optimizer's state is never touched.

    Where nothing schedules a hyperparameter, the value is written into the groups when it changes; what the program
    writes there itself wins until the next change. Where a learning
    rate scheduler does, `mode` says what a change means:

    * `SCALE`: the next step uses the value v, and later ones `v * s(t) / s(change)`, s being the schedule.
    * `REBASE`: v is the schedule's new base or, where it has one, peak (`max_lr`); written into `scheduler`, floors
      in ratio. v = 0 is used as it is and leaves the schedule alone.
    * `OVERRIDE`: every step uses v until `release()`, as for hyperparameters without a schedule.

    Momentum and beta1 under a scheduler that cycles them are pinned by a change, in every mode, until `release()`.
    A variable that was never changed does not disturb a schedule, to the bit. One whose first value is none that the
    schedule is built on (the rate of the optimizer or group, `initial_lr`, `max_lr`) counts as its base from the first
    step on, with a warning in the log; where there is no schedule, it is written at the first step.

    Between steps the groups show what the schedule says: `Binding.effective` tells what was used.

    Args:
        optimizer: Any torch optimizer; one that Accelerate has wrapped stands for the one inside.
        lr: Variable for `lr`; None leaves it alone.
        weight_decay: Variable for `weight_decay`; None leaves it alone.
        betas: A variable or None for each of `betas`; None leaves both alone.
        momentum: Variable for `momentum`; None leaves it alone.
        groups: Indices of the parameter groups to govern; None stands for those that there are now.
        scheduler: The scheduler of `optimizer`, or all of them. Mode REBASE needs it, and so does ReduceLROnPlateau,
            which leaves no trace in the optimizer; others are noticed without.
        mode: What a changed learning rate means to a schedule.
        **others: Variables for other numbers in the parameter groups, such as `eps`, `alpha` or `dampening`.

    Returns:
        The binding; `remove()` unties.

    Raises:
        BindError: Nothing is to be bound, a group does not exist or does not have the hyperparameter, another binding
            governs it already, the variable is no number, the scheduler is of another optimizer, or the mode is unknown
            or can't be had with this scheduler. The optimizer is unchanged.
    """
    chosen = _mode(mode)
    optimizer = _innermost(optimizer)
    roots = _roots(optimizer, scheduler)
    count = len(optimizer.param_groups)
    indices = list(range(count)) if groups is None else list(dict.fromkeys(groups))
    if not indices or not all(0 <= index < count for index in indices):
        raise BindError(f"groups must be indices of parameter groups, 0..{count - 1}, got {indices}")
    _check_betas(optimizer, betas, indices)
    wanted = _wanted({"lr": lr, "weight_decay": weight_decay, "momentum": momentum, **others}, betas)
    if chosen is Mode.REBASE:
        check_rebasable(roots, indices, count)
    for slot, variable in wanted.items():
        _check(optimizer, slot, variable, indices)
    return Binding(
        optimizer,
        [Governor(optimizer, slot, variable, indices, roots, chosen) for slot, variable in wanted.items()],
        chosen,
    )


def _mode(mode: Mode | str) -> Mode:
    names = [known.value for known in Mode]
    if mode not in names:
        raise BindError(f"mode must be one of {', '.join(names)}, got {mode!r}{_nearest(str(mode), names)}")
    return Mode(mode)


OptimizerT = TypeVar("OptimizerT")


def _innermost(optimizer: OptimizerT) -> OptimizerT:
    """Return the optimizer that computes, for one that hands its steps on: the hooks are there."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = cast("OptimizerT", inner)
    return optimizer


def _roots(optimizer: Optimizer, scheduler: LRScheduler | Sequence[LRScheduler] | None) -> list[LRScheduler]:
    if scheduler is None:
        return []
    roots = list(scheduler) if isinstance(scheduler, Sequence) else [scheduler]
    for root in roots:
        if _innermost(getattr(root, "optimizer", None)) is not optimizer:
            raise BindError(
                f"scheduler must be one of this {type(optimizer).__name__}, got {type(root).__name__} of another"
            )
    return roots


def _wanted(scalars: Mapping[str, HasValue | None], betas: Sequence[HasValue | None] | None) -> dict[Slot, HasValue]:
    wanted = {Slot(key): variable for key, variable in scalars.items() if variable is not None}
    wanted |= {Slot("betas", part): variable for part, variable in enumerate(betas or ()) if variable is not None}
    if not wanted:
        raise BindError("bind needs at least one variable, such as lr or weight_decay, got none")
    return wanted


def _check_betas(optimizer: Optimizer, betas: object, indices: Sequence[int]) -> None:
    if betas is None:
        return
    for index in indices:
        there = optimizer.param_groups[index].get("betas")
        if there is None:
            raise BindError(f"group {index} of {type(optimizer).__name__} has no betas")
        if not isinstance(betas, tuple | list) or len(betas) != len(there):
            raise BindError(f"betas must be a pair: a variable or None for each of {tuple(there)}, got {betas!r}")


def _check(optimizer: Optimizer, slot: Slot, variable: HasValue, indices: Sequence[int]) -> None:
    for index in indices:
        group: Group = optimizer.param_groups[index]
        kind = type(optimizer).__name__
        if slot.key not in group or slot.key in OWN_KEYS:
            known = [key for key, there in group.items() if is_number(there) or key == "betas"]
            raise BindError(f"group {index} of {kind} has no {slot.key}{_nearest(slot.key, set(known) - OWN_KEYS)}")
        if not is_number(slot.get(group)):
            raise BindError(f"{slot.name} of group {index} of {kind} must be a number, got {slot.get(group)!r}")
    if not is_number(getattr(variable, "value", None)):
        raise BindError(f"{slot.name} must be bound to a variable with a number as value, got {variable!r}")
    for binding in _bindings.get(optimizer, ()):
        taken = binding.governs(slot, indices)
        if taken:
            raise BindError(f"{slot.name} of groups {taken} is bound already: remove() that binding first")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _opaque(hook: Callable[..., None]) -> Callable[..., None]:
    # Compiled, the variable's value would become a constant of the graph, and every change a new compilation.
    opaque: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call] # torch's gap
    return opaque


def _is_capturing() -> bool:
    # Asking initialises CUDA, which fails without a driver and is nothing to do behind a program's back.
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch's gap
    return initialized and torch.cuda.is_current_stream_capturing()
