"""Owns `LiveTune` for Hugging Face: one line, and what a transformers `Trainer` trains can be tuned while it runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from livetune.integrations.training import NotTrainingError, Settings, Training, live_hyperparameters, running
from livetune.job import Job
from livetune.torch import Mode

__all__ = ["LiveTune", "NotTrainingError"]

log = logging.getLogger("livetune")


class LiveTune(TrainerCallback, ExportableState):
    """Makes what a transformers `Trainer` trains tunable while it runs.

        trainer = Trainer(model, args, train_dataset=..., callbacks=[LiveTune("bert")])

    Learning rate and weight decay are the variables `lr` and `weight_decay`, which begin with what the optimizer was
    built with; a new `lr` is used by the next step exactly, and as a factor over the schedule from then on. The
    `learning_rate` that the Trainer logs is what the schedule says; the one really used is logged to the job as `lr`.
    `run.checkpoint`, `run.evaluate`, `run.stop`, `run.paused` and `run.max_steps` are those of `livetune.RunControl`.
    What the Trainer logs is logged (`ltctl metrics`).

    The job begins with `train` and ends with it. The safe point is at the end of each step of the optimizer. Over
    several processes all take a change at the same step. Hugging Face tells no callback of an exception: a job whose
    training ended with one is failed when the program ends, or when it trains again under that name.

    Args:
        job: The job's name, or a job of `livetune.init`, which is then not ended here; with that you can declare
            variables of your own before the training. `callback.job` is that job, from `on_train_begin` on.
        hyperparameters: The numbers of its parameter groups that are live: `("lr", "momentum")`. None for learning rate
            and weight decay, the latter where there is one.
        mode: What a changed learning rate means to the schedule, as for `livetune.torch.bind`.

    Raises:
        InvalidNameError: The job's name breaks the rule.
    """

    def __init__(
        self,
        job: str | Job,
        *,
        hyperparameters: Sequence[str] | None = None,
        mode: Mode | str = Mode.SCALE,
    ) -> None:
        self._settings = Settings(job, hyperparameters, mode)
        self._training: Training | None = None
        self._saving = False
        """A checkpoint was asked for and has not been saved yet."""

    @property
    def job(self) -> Job:
        """The job.

        Raises:
            NotTrainingError: It has not begun: it does so with `Trainer.train`.
        """
        # A Trainer that restores callbacks from a checkpoint replaces this object by one of its own.
        training = self._training or running(self._settings.name)
        if training is None:
            raise NotTrainingError(
                f"job {self._settings.name!r} begins with Trainer.train: to declare variables before, give LiveTune a "
                "job of your own, from livetune.init"
            )
        return training.job

    # -- begin and end --

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the job, declare and bind. A checkpoint has been loaded into optimizer and schedule already."""
        del control
        optimizer: Optimizer = kwargs["optimizer"]
        scheduler: LRScheduler = kwargs["lr_scheduler"]
        training = self._training = Training(self._settings)
        if state.global_step > 0 and (saved := _saved(state)):
            training.resume(saved)
        training.control(state.max_steps, _last_step(args, state, kwargs.get("train_dataloader")))
        # What the program says: of its groups the Trainer tells the optimizer only weight decay, and the checkpoint
        # has overwritten them.
        said = {**optimizer.defaults, "weight_decay": args.weight_decay}
        keys = live_hyperparameters(optimizer, self._settings.hyperparameters)
        training.bind(optimizer, schedulers=[scheduler], own={key: float(said[key]) for key in keys})
        training.begin()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the job."""
        del args, state, control, kwargs
        if self._training is not None:
            self._training.end()

    # -- the loop --

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Be at the safe point, and tell the Trainer what was asked of it."""
        training = self._training
        if training is None:
            return  # added while it trains
        asked = training.step(state.global_step)
        if training.due():
            training.log({})
        state.max_steps = training.max_steps or sys.maxsize
        self._saving = self._saving or asked.checkpoint
        control.should_save = control.should_save or self._saving
        control.should_training_stop = control.should_training_stop or asked.stop
        if asked.evaluate:
            if args.eval_strategy == "no" and kwargs.get("eval_dataloader") is None:
                log.warning(
                    "job %s: run.evaluate is not possible: TrainingArguments(eval_strategy='no') and nothing evaluated "
                    "so far, so nobody knows of a data set; eval_strategy='epoch' or 'steps' tells of one",
                    training.job.name,
                )
            else:
                control.should_evaluate = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that a checkpoint is there: with `save_strategy="best"` the Trainer may drop the wish for one."""
        del args, state, control, kwargs
        self._saving = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log what the Trainer logs, but for the learning rate that is not the one used."""
        del args, state, control, kwargs
        if self._training is not None and self._training.running:
            self._training.log({name: value for name, value in (logs or {}).items() if name != "learning_rate"})

    # -- checkpoints --

    def state(self) -> dict[str, Any]:
        """Return what a run needs that goes on from a checkpoint; the Trainer keeps it in `trainer_state.json`."""
        training = self._training
        return {
            "args": {
                "job": self._settings.name,
                "hyperparameters": self._settings.hyperparameters,
                "mode": Mode(self._settings.mode).value,
            },
            "attributes": {} if training is None else {"saved": training.state_dict()},
        }


def _saved(state: TrainerState) -> Mapping[str, Any] | None:
    """What a checkpoint has of this callback; None if it was saved without."""
    callbacks: Any = state.stateful_callbacks  # a dictionary by now, whatever its declaration says
    kept = callbacks.get(LiveTune.__name__)
    if not isinstance(kept, Mapping):
        return None
    saved: Mapping[str, Any] | None = kept.get("attributes", {}).get("saved")
    return saved


def _last_step(args: TrainingArguments, state: TrainerState, loader: Any) -> int | None:
    """The step at which the Trainer's epochs end; None if it goes over its data as often as it takes."""
    if state.num_train_epochs >= sys.maxsize or not hasattr(loader, "__len__"):
        return None
    steps = -(-len(loader) // args.gradient_accumulation_steps)
    return int(state.num_train_epochs) * max(1, steps)
