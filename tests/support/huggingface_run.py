"""A training with transformers' Trainer for tests: says what its optimizer used, when it evaluated, line by line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from framework_data import Telling, rows, say
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

import livetune
from livetune.integrations.huggingface import LiveTune

parser = argparse.ArgumentParser()
parser.add_argument("job")
parser.add_argument("folder", type=Path)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--mode", default="scale")
parser.add_argument("--schedule", default="cosine")
parser.add_argument("--max-steps", type=int, default=100_000)
parser.add_argument("--epochs", type=float, default=0)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--eval-strategy", default="epoch")
parser.add_argument("--save-strategy", default="no")
parser.add_argument("--catch", action="store_true", help="train again after a failure")
parser.add_argument("--trains", type=int, default=1)
parser.add_argument("--resume")
parser.add_argument("--restore-callbacks", action="store_true")
parser.add_argument("--own-job", action="store_true")
args = parser.parse_args()

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
warnings.simplefilter("ignore")
torch.set_num_threads(1)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        if self.training and live.job.variables["run.max_steps"].value == 13_000:
            raise RuntimeError("the disk is on fire")
        logits = self.linear(x)
        return {"loss": functional.mse_loss(logits, labels), "logits": logits}


def data(count: int) -> Any:
    return [{"x": x, "labels": y} for x, y in rows(count)]


class Telltale(Trainer):
    """The program's own Trainer: its optimizer says what it does, as far as the Trainer lets it."""

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = Telling(self.model.linear, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        say(evaluating=self.state.global_step)
        return super().evaluate(*arguments, **named)


training_args = TrainingArguments(
    output_dir=str(args.folder),
    learning_rate=args.lr,
    weight_decay=args.weight_decay,
    lr_scheduler_type=args.schedule,
    max_steps=-1 if args.epochs else args.max_steps,
    num_train_epochs=args.epochs or 1,
    gradient_accumulation_steps=args.accumulate,
    per_device_train_batch_size=8,
    eval_strategy=args.eval_strategy,
    eval_steps=100_000,
    save_strategy=args.save_strategy,
    metric_for_best_model="loss" if args.save_strategy == "best" else None,
    logging_steps=5,
    max_grad_norm=0.0,
    use_cpu=True,
    report_to=[],
    disable_tqdm=True,
    restore_callback_states_from_checkpoint=args.restore_callbacks,
    ddp_backend="gloo" if "RANK" in os.environ else None,
)
own = livetune.init(args.job) if args.own_job else None
if own is not None:
    bonus = own.variable("bonus", 0.0)
live = LiveTune(args.job if own is None else own, mode=args.mode)
trainer = Telltale(Net(), training_args, train_dataset=data(64), eval_dataset=data(16), callbacks=[live])
trainer.remove_callback(PrinterCallback)  # it prints, and so do we
for number in range(args.trains):
    try:
        trainer.train(resume_from_checkpoint=args.resume)
    except RuntimeError as error:
        if not args.catch:
            raise
        say(caught=str(error))
        trainer.train()
    say(trained=number, step=trainer.state.global_step)
result = trainer.predict(data(16), metric_key_prefix="test").metrics
rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
say(tested=result, step=trainer.state.global_step, logged_rate=rates[-1])
