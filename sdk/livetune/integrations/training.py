"""Owns `Training`: one run of a framework's trainer as a job that can be tuned. The callbacks beside it translate."""

from __future__ import annotations

import atexit
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from livetune.control import RunControl
from livetune.errors import LiveTuneError, Veto
from livetune.job import Job, init, live_jobs
from livetune.specs import check_job_name
from livetune.torch import BindError, Binding, Mode, Ranks, bind
from livetune.torch.schedules import LR, check_rebasable, is_scheduled, nominal, rebase_
from livetune.torch.slots import Slot, is_number
from livetune.variable import Variable

__all__ = ["Asked", "NotTrainingError", "Settings", "Training"]

log = logging.getLogger("livetune")

SAMPLE_SECONDS = 0.5
"""How often a training loop logs what its framework has computed: twice as often as the daemon is sent anything."""
MAX_SERIES_NAME = 200

_STATE_VERSION = 1
_DOCS = {"lr": "Learning rate.", "weight_decay": "Weight decay."}


class NotTrainingError(LiveTuneError, RuntimeError):
    """The job of a callback is asked for before its trainer has begun to train."""


@dataclass(frozen=True)
class Settings:
    """What a user says about his training; the callbacks document it.

    Raises:
        InvalidNameError: The job's name breaks the rule.
    """

    job: str | Job
    hyperparameters: Sequence[str] | None
    mode: Mode | str

    def __post_init__(self) -> None:
        if self.hyperparameters is not None:
            object.__setattr__(self, "hyperparameters", tuple(self.hyperparameters))  # frozen, and a list is not
        if not isinstance(self.job, Job):
            check_job_name(self.job)

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name if isinstance(self.job, Job) else self.job


@dataclass(frozen=True)
class Asked:
    """What people asked of the run at a safe point, for the trainer to do."""

    checkpoint: bool
    evaluate: bool
    stop: bool


@dataclass(frozen=True)
class _Live:
    """An optimizer whose hyperparameters are live."""

    binding: Binding
    keys: Sequence[str]
    built_on: Mapping[str, Sequence[float]]
    """Of what no schedule moves: the groups' own values. A change overwrites them, one to zero for good."""

    def state_dict(self) -> dict[str, Any]:
        return {"binding": self.binding.state_dict(), "built_on": dict(self.built_on)}


@dataclass(frozen=True)
class _SavedOptimizer:
    """What a checkpoint says of an optimizer, as `_Live.state_dict` wrote it."""

    binding: Mapping[str, Any]
    built_on: Mapping[str, Sequence[float]]

    @property
    def governors(self) -> Mapping[str, Any]:
        governors: Mapping[str, Any] = self.binding["governors"]
        return governors


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says, for a run that goes on from it."""

    job: Mapping[str, Any]
    """The state of the job."""
    own: Mapping[str, float]
    """What the program itself said then; where it says something else now, somebody has edited it."""
    optimizers: Mapping[str, _SavedOptimizer]
    """By prefix."""

    @staticmethod
    def parse(state: Mapping[str, Any]) -> _Saved:
        if state.get("version") != _STATE_VERSION:
            raise BindError(f"the version of a training's state must be {_STATE_VERSION}, got {state.get('version')!r}")
        optimizers = {prefix: _SavedOptimizer(**saved) for prefix, saved in state["optimizers"].items()}
        return _Saved(state["job"], state["own"], optimizers)


class _Said:
    """A variable that was changed at the very safe point at which its checkpoint was saved.

    The binding in that checkpoint has not dealt with the value yet; to the one that takes over, it was said for the
    next step, whether a daemon is there or not.
    """

    def __init__(self, variable: Variable[float]) -> None:
        self._variable = variable

    @property
    def value(self) -> float:
        return self._variable.value

    @property
    def revision(self) -> int:
        return self._variable.revision or -1


class Training:
    """One training: its job, what people ask of it, and the optimizers whose hyperparameters are live.

    The order is: construct, `resume` where there is a checkpoint, `control` and `bind`, `begin`, `step` for each step
    of the optimizer, `end`. All of it belongs to the training thread.

    Args:
        settings: What the user said. A job of his own, or one that is live under that name in this process, is used and
            not ended; else one is begun, over all ranks where torch.distributed has several.

    Raises:
        JobExistsError: It has a job of that name that another training of this kind uses.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        left = _running.pop(settings.name, None)
        if left is not None:
            left.abandon()
        self.job, self._begun_here = _job(settings)
        _running[settings.name] = self
        self._saved: _Saved | None = None
        self._own: dict[str, float] = {}
        self._optimizers: dict[str, _Live] = {}
        self._control: RunControl | None = None
        self._undo: list[Callable[[], None]] = []
        self._log_after = 0.0
        self.running = True

    # -- before the first step --

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            BindError: It is of another version.
        """
        self._saved = _Saved.parse(state)

    def control(self, max_steps: int, last_step: int | None) -> None:
        """Declare what can be asked of the run.

        Args:
            max_steps: The step at which the trainer ends by itself, 0 for none.
            last_step: The step at which its epochs end, which `run.max_steps` can't go beyond; None if nobody knows.
        """
        initial, _ = self._initial("run.max_steps", max_steps, max_steps)
        # After a crash the program's own end counts: it is edited more often than the one of the lost run was moved.
        self._control = RunControl(self.job, max_steps=int(initial), on_restart="reset")
        if last_step is not None:

            def within_epochs(new: int, _old: int) -> None:
                if new > last_step:
                    raise Veto(f"the trainer's epochs end at step {last_step}, and can't be moved: got {new}")

            self._undo.append(self._control.max_steps.on_set(within_epochs))

    def bind(
        self, optimizer: Optimizer, *, schedulers: Sequence[LRScheduler], own: Mapping[str, float], prefix: str = ""
    ) -> None:
        """Make an optimizer's hyperparameters live, under `prefix` and their names.

        Optimizer and schedulers have been restored already where the run goes on from a checkpoint.

        Args:
            optimizer: The optimizer.
            schedulers: All of its schedulers.
            own: What the program itself says of its hyperparameters, whatever a checkpoint says; at least of those that
                `live_hyperparameters` names.
            prefix: What the variables' names begin with.

        Raises:
            BindError: It does not have a hyperparameter that was asked for, or `livetune.torch.bind` refuses; or its
                learning rate was edited since the checkpoint, under a schedule that can't be moved.
        """
        keys = live_hyperparameters(optimizer, self._settings.hyperparameters)
        saved = None if self._saved is None else self._saved.optimizers.get(prefix)
        unscheduled = [key for key in keys if not is_scheduled(Slot(key), optimizer.param_groups[0], schedulers)]
        if saved is not None:
            for key in unscheduled:
                _write(optimizer, key, saved.built_on.get(key, []))
        built_on = {key: [float(group.get(key, 0.0)) for group in optimizer.param_groups] for key in unscheduled}
        variables: dict[str, Any] = {}
        anew = {key for key in keys if key in unscheduled or saved is None or key not in saved.governors}
        for key in keys:
            initial, was = self._initial(prefix + key, own[key], own_value(optimizer, key, schedulers))
            if was is not None:
                anew.add(key)
                if key == LR.key:
                    _rebuild(optimizer, schedulers, was, initial)
            variable = self.job.variable(
                prefix + key,
                float(initial),
                min=0.0,
                doc=_DOCS.get(key, ""),
                on_restart="keep" if was is None else "reset",
            )
            unheard = saved is not None and key not in anew and saved.governors[key]["seen"] != initial
            variables[key] = _Said(variable) if unheard else variable
        binding = bind(optimizer, scheduler=schedulers, mode=self._settings.mode, **variables)
        if saved is not None:
            fresh = binding.state_dict()["governors"]
            governors = {key: fresh[key] if key in anew else saved.governors[key] for key in keys}
            binding.load_state_dict({**saved.binding, "governors": governors})
        self._optimizers[prefix] = _Live(binding, keys, built_on)

    def begin(self) -> None:
        """Take up what else a checkpoint has of the job: the user's own variables, and changes that wait for a step.

        To be called once all is declared and bound; where there are several ranks, by all of them.

        Raises:
            CheckpointError: A declaration does not allow a value of the checkpoint any more.
        """
        if self._saved is None:
            return
        state = self._saved.job
        # What the program itself says of these counts too: they are dealt with where they are declared.
        others = {name: item for name, item in state["variables"].items() if name not in self._own}
        self.job.load_state_dict({**state, "variables": others})

    def _initial(self, name: str, own: float, fresh: float) -> tuple[float, float | None]:
        """Say what a variable begins with, and what the program said before, if somebody has edited it since.

        Who set a value while the program ran and then went on from a checkpoint wants that value; who edited the
        program before he went on wants the edit.
        """
        self._own[name] = own
        if self._saved is None or name not in self._saved.own:
            return fresh, None
        was = self._saved.own[name]
        if was == own:
            value: float = self._saved.job["variables"][name]["value"]
            if value != own:
                log.info("job %s: %s goes on with %g, as in the checkpoint", self.job.name, name, value)
            return value, None
        log.warning(
            "job %s: the program says %s=%g now, and said %g when the checkpoint was saved: %g it is",
            self.job.name, name, own, was, own,
        )  # fmt: skip
        return own, was

    # -- the loop --

    def step(self, step: int) -> Asked:
        """Be at the safe point after a step of the optimizer; holds while the run is paused.

        Returns:
            What was asked of the run.
        """
        control = self._control
        if control is None:
            raise RuntimeError("control() comes before step()")
        self.job.step(step)
        checkpoint, evaluate = control.checkpoint(), control.evaluate()
        # The trainer does what was asked once this has returned. A pause that was asked for as well comes after it.
        first = control.paused.value and (checkpoint or evaluate)
        return Asked(checkpoint, evaluate, stop=not first and not control.proceed())

    @property
    def max_steps(self) -> int:
        """The step at which the run ends, 0 for none."""
        return 0 if self._control is None else self._control.max_steps.value

    def due(self) -> bool:
        """Say whether it is time to log again; what is logged more often is dropped anyway."""
        now = time.monotonic()
        if now < self._log_after:
            return False
        self._log_after = now + SAMPLE_SECONDS
        return True

    def log(self, values: Mapping[str, Any]) -> None:
        """Log what a framework logs, and the hyperparameters as the last step used them.

        Names that the daemon would not take are rewritten; what is no number is left out.
        """
        numbers = {_series_name(name): value for name, value in values.items() if _is_loggable(value)}
        for prefix, live in self._optimizers.items():
            for key in live.keys:
                used = live.binding.effective(key)
                if used:
                    numbers[prefix + key] = used[0]
        self.job.log(numbers)

    # -- what survives --

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs that goes on from a checkpoint: plain numbers, text, lists and dictionaries."""
        return {
            "version": _STATE_VERSION,
            "job": self.job.state_dict(),
            "own": dict(self._own),
            "optimizers": {prefix: live.state_dict() for prefix, live in self._optimizers.items()},
        }

    # -- the end --

    def end(self, error: BaseException | None = None) -> None:
        """Untie the optimizers, and end the job if it was begun here; again does nothing.

        Args:
            error: What the training ended with.
        """
        self._untie()
        if self._begun_here:
            self.job.__exit__(None if error is None else type(error), error, None)

    def abandon(self) -> None:
        """End it as failed, where the framework does not say that, or why, it has ended."""
        self._untie()
        if self._begun_here:
            self.job.finish(failed=True, message="the trainer left the training before its end")

    def _untie(self) -> None:
        self.running = False
        for live in self._optimizers.values():
            live.binding.remove()
        for undo in self._undo:
            undo()
        self._undo.clear()
        if _running.get(self.job.name) is self:
            del _running[self.job.name]


def running(name: str) -> Training | None:
    """Return the training that runs under a job's name, if one does."""
    return _running.get(name)


def live_hyperparameters(optimizer: Optimizer, wanted: Sequence[str] | None) -> list[str]:
    """Return the keys of an optimizer's numbers that are to be live.

    Args:
        optimizer: The optimizer.
        wanted: What the user wants; None for learning rate and weight decay, the latter where there is one.

    Raises:
        BindError: It does not have one of them.
    """
    group = optimizer.param_groups[0]
    known = [key for key, value in group.items() if key != "params" and is_number(value)]
    for key in wanted or ():
        if key not in known:
            raise BindError(
                f"hyperparameters: {type(optimizer).__name__} has no number {key!r} in its groups, only {known}"
            )
    return list(wanted) if wanted is not None else [key for key in ("lr", "weight_decay") if key in known]


def own_value(optimizer: Optimizer, key: str, schedulers: Sequence[LRScheduler]) -> float:
    """Return what an optimizer was built with: of the first group that has it not at zero, and of a schedule its base.

    It is what a variable has to begin with in order to ask for nothing (see `livetune.torch.bind`).
    """
    values = [
        nominal(Slot(key), group, index, schedulers)
        for index, group in enumerate(optimizer.param_groups)
        if key in group
    ]
    return float(next((value for value in values if value), 0.0))


def _write(optimizer: Optimizer, key: str, values: Sequence[float]) -> None:
    """Give the groups the values that they were built on: what was said since is the variable's."""
    for group, value in zip(optimizer.param_groups, values, strict=False):
        if key in group:
            Slot(key).write(group, value)


def _rebuild(optimizer: Optimizer, schedulers: Sequence[LRScheduler], was: float, lr: float) -> None:
    """Build a restored schedule on the learning rate that the program says now."""
    groups = optimizer.param_groups
    base = own_value(optimizer, LR.key, schedulers)
    if not is_scheduled(LR, groups[0], schedulers) or base in (0.0, lr):
        return  # the binding writes it, or there is nothing that a factor could move
    indices = range(len(groups))
    try:
        check_rebasable(schedulers, indices, len(groups))
    except BindError as error:
        raise BindError(
            f"the program's learning rate was edited from {was:g} to {lr:g} since the checkpoint was saved, and the "
            f"restored schedule can't be moved ({error}): go on with {was:g} and set lr while it runs"
        ) from error
    rebase_(schedulers, groups, indices, lr / base)


def _job(settings: Settings) -> tuple[Job, bool]:
    if isinstance(settings.job, Job):
        return settings.job, False
    for job in live_jobs():
        if job.name == settings.job:
            return job, False
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return init(settings.job, ranks=Ranks() if several else None), True


def _is_loggable(value: Any) -> bool:
    if hasattr(value, "numel"):
        return bool(value.numel() == 1)
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0


def _series_name(name: str) -> str:
    """Rewrite the name of a metric by the rule that `Job.log` has."""
    cleaned = re.sub(r"[^A-Za-z0-9_./]+", "_", name)
    cleaned = re.sub(r"[./]*([./])", r"\1", cleaned).strip("./") or "_"
    return ("_" + cleaned if cleaned[0].isdigit() else cleaned)[:MAX_SERIES_NAME].rstrip("./")


_running: dict[str, Training] = {}
"""By the job's name: trainings that nobody has ended."""


def _end_all() -> None:
    """At the interpreter's exit: a training that is not over has failed, of whatever ended the program."""
    error = getattr(sys, "last_value", None)
    for training in list(_running.values()):
        if error is None:
            training.abandon()
        else:
            training.end(error)


# Registered last, called first: before the handler of the SDK, to which a job that nobody ended has ended well.
atexit.register(_end_all)
