"""Owns `LiveTune` for Lightning: one line, and what a `Trainer` trains can be tuned while it runs.

Needs `lightning` or `pytorch_lightning`; the callback is one of the package that the program uses.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from livetune.errors import DeclarationError
from livetune.integrations.training import NotTrainingError, Settings, Training, live_hyperparameters, own_value
from livetune.job import Job
from livetune.torch import Mode

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    _NAMES = ("lightning.pytorch", "pytorch_lightning")
    # The same library under two names, whose classes differ. What the program has imported is what it uses.
    _NAME = next((name for name in _NAMES if name in sys.modules), None) or (
        _NAMES[0] if find_spec("lightning") else _NAMES[1]
    )
    Callback = import_module(_NAME).Callback

__all__ = ["LiveTune", "NotTrainingError"]

log = logging.getLogger("livetune")


class LiveTune(Callback):
    """Makes what a `Trainer` trains tunable while it runs.

        trainer = Trainer(callbacks=[LiveTune("vgg")])

    Learning rate and weight decay of the optimizer are the variables `lr` and `weight_decay`, which begin with what the
    optimizer was built with; under a learning rate scheduler a new `lr` is used by the next step exactly, and as a
    factor from then on. `run.checkpoint`, `run.evaluate`, `run.stop`, `run.paused` and `run.max_steps` are those of
    `livetune.RunControl`. What the module logs is logged (`ltctl metrics`), and so is the learning rate really used.

    The job begins with `fit` and ends with it. Steps are the trainer's `global_step`; the safe point is at the end of
    each batch with which the optimizer stepped. Over several ranks all take a change at the same step.

    Args:
        job: The job's name, or a job of `livetune.init`, which is then not ended here. `callback.job` is that job, for
            variables of your own: from `LightningModule.setup` on.
        optimizers: A name for each optimizer, in the order of `configure_optimizers`, where there are several: their
            variables are `generator.lr`, `critic.lr`. Without, they are `opt0.lr`, `opt1.lr`.
        hyperparameters: The numbers of its parameter groups that are live: `("lr", "momentum")`. None for learning rate
            and weight decay, the latter where there is one.
        mode: What a changed learning rate means to a schedule, as for `livetune.torch.bind`.

    Raises:
        InvalidNameError: The job's name breaks the rule.
    """

    def __init__(
        self,
        job: str | Job,
        *,
        optimizers: Sequence[str] = (),
        hyperparameters: Sequence[str] | None = None,
        mode: Mode | str = Mode.SCALE,
    ) -> None:
        self._settings = Settings(job, hyperparameters, mode)
        self._names = tuple(optimizers)
        self._training: Training | None = None
        self._own: list[dict[str, float]] = []
        self._step = 0
        self._schedule: dict[str, Any] | None = None
        """When the trainer validates by itself, while it is made to validate now."""

    @property
    def job(self) -> Job:
        """The job.

        Raises:
            NotTrainingError: It has not begun: it does so with `fit`, before `LightningModule.setup`.
        """
        if self._training is None:
            raise NotTrainingError(
                f"job {self._settings.name!r} begins with Trainer.fit: declare variables in LightningModule.setup, or "
                "give LiveTune a job of your own, from livetune.init"
            )
        return self._training.job

    # -- begin and end --

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the job, before the module sets itself up."""
        del trainer, pl_module
        if stage == "fit":
            self._training = Training(self._settings)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizers as the program made them: a checkpoint has not been loaded into them yet."""
        del pl_module
        self._own = [
            {
                key: own_value(optimizer, key, _schedulers(trainer, optimizer))
                for key in live_hyperparameters(optimizer, self._settings.hyperparameters)
            }
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Declare and bind, once everything is restored."""
        training = self._begun()
        training.control(max(0, trainer.max_steps), _last_step(trainer, pl_module))
        for optimizer, own, prefix in zip(trainer.optimizers, self._own, self._prefixes(trainer), strict=True):
            training.bind(optimizer, schedulers=_schedulers(trainer, optimizer), own=own, prefix=prefix)
        training.begin()
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what there is at the end."""
        del pl_module
        self._begun().log(trainer.callback_metrics)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the job with `fit`."""
        del trainer, pl_module
        if stage == "fit" and self._training is not None:
            self._training.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the job as failed."""
        del pl_module
        self._validate_as_before(trainer)
        if self._training is not None:
            self._training.end(exception)

    # -- the loop --

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Give the trainer its own validation schedule back."""
        del pl_module, batch, batch_idx
        self._validate_as_before(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Be at the safe point, if the optimizer has stepped: while gradients are accumulated it has not."""
        del pl_module, outputs, batch, batch_idx
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        training = self._begun()
        asked = training.step(step)
        if training.due():
            training.log(trainer.callback_metrics)
        trainer.fit_loop.epoch_loop.max_steps = training.max_steps or -1
        if asked.evaluate:
            self._validate_now(trainer)
        if asked.checkpoint:
            path = _folder(trainer) / f"livetune-epoch={trainer.current_epoch}-step={step}.ckpt"
            trainer.save_checkpoint(path)
            log.warning("job %s: checkpoint saved as %s", training.job.name, path)
        # At its last step the trainer ends by itself; told to stop, it would validate once more.
        if asked.stop and not 0 < training.max_steps <= step:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer its own validation schedule back."""
        del pl_module
        self._validate_as_before(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the validation has found."""
        del pl_module
        if self._training is not None and self._training.running and not trainer.sanity_checking:
            self._training.log(trainer.callback_metrics)

    def _validate_now(self, trainer: Trainer) -> None:
        """Have the trainer validate at its own place for that, right after this batch.

        There it knows how to: what is logged goes where it goes, gradients and modes are as after any validation. It
        decides by its schedule, which therefore says, until it has begun, that it is due after every batch.
        """
        if not trainer.enable_validation:
            log.warning(
                "job %s: run.evaluate is not possible: the trainer has no validation (val_dataloaders, "
                "validation_step, limit_val_batches > 0)",
                self.job.name,
            )
            return
        now = {"val_check_batch": 1, "check_val_every_n_epoch": 1, "_val_check_time_interval": None}
        self._schedule = {name: getattr(trainer, name) for name in now if hasattr(trainer, name)}
        for name in self._schedule:
            setattr(trainer, name, now[name])

    def _validate_as_before(self, trainer: Trainer) -> None:
        schedule, self._schedule = self._schedule, None
        for name, value in (schedule or {}).items():
            setattr(trainer, name, value)

    # -- checkpoints --

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs that goes on from a checkpoint."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; whoever only tests or predicts with it does not."""
        if self._training is not None and self._training.running:
            self._training.resume(state_dict)

    # -- helpers --

    def _begun(self) -> Training:
        if self._training is None:
            raise NotTrainingError(f"job {self._settings.name!r}: LiveTune has missed the trainer's setup")
        return self._training

    def _prefixes(self, trainer: Trainer) -> list[str]:
        count = len(trainer.optimizers)
        if self._names and len(self._names) != count:
            raise DeclarationError(f"optimizers must be a name for each of {count} optimizers, got {self._names}")
        if self._names:
            return [f"{name}." for name in self._names]
        return [""] if count == 1 else [f"opt{index}." for index in range(count)]


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> list[LRScheduler]:
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [scheduler for scheduler in found if getattr(scheduler, "optimizer", None) is optimizer]


def _last_step(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The step at which the trainer's epochs end; None if there is none, or it is in the module's hands."""
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or batches == float("inf") or not pl_module.automatic_optimization:
        return None
    return epochs * -(-int(batches) // trainer.accumulate_grad_batches)


def _folder(trainer: Trainer) -> Path:
    """Where the trainer's own checkpoints go."""
    own = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(own) if own else Path(trainer.default_root_dir) / "checkpoints"
