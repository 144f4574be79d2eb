"""A training with Lightning for tests: says what its optimizer used, when it validated and tested, line by line."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from framework_data import Telling, rows, say
from torch.nn import functional
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("job")
parser.add_argument("folder", type=Path)
parser.add_argument("--package", default="lightning.pytorch")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--mode", default="scale")
parser.add_argument("--max-steps", type=int, default=-1)
parser.add_argument("--max-epochs", type=int, default=-1)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--by-epoch", action="store_true", help="it would validate every million epochs, not steps")
parser.add_argument("--no-validation", action="store_true")
parser.add_argument("--manual", action="store_true", help="two optimizers, stepped by hand")
parser.add_argument("--fits", type=int, default=1)
parser.add_argument("--resume")
parser.add_argument("--ranks", type=int, default=1)
args = parser.parse_args()

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
warnings.simplefilter("ignore")
torch.set_num_threads(1)
L: Any = importlib.import_module(args.package)

from livetune.integrations.lightning import LiveTune  # noqa: E402 - after the package that the program uses

STEPS = 20_000


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.automatic_optimization = not args.manual

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.bonus = live.job.variable("bonus", 0.0)

    def configure_optimizers(self) -> Any:
        optimizer = Telling(self.linear, args.lr, args.weight_decay, "first")
        if args.manual:
            return [optimizer, torch.optim.Adam(torch.nn.Linear(1, 1).parameters(), lr=args.lr / 2)]
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def loss(self, batch: Any) -> Any:
        x, y = batch
        return functional.mse_loss(self.linear(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.bonus.value == 13:
            raise RuntimeError("the disk is on fire")
        loss = self.loss(batch)
        self.log("train/loss (mse)", loss)
        if not args.manual:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            say(validated=self.trainer.global_step)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))


live = LiveTune(args.job, mode=args.mode, optimizers=["generator", "critic"] if args.manual else ())
trainer = L.Trainer(
    callbacks=[live],
    max_steps=args.max_steps,
    max_epochs=args.max_epochs,
    default_root_dir=args.folder,
    accumulate_grad_batches=args.accumulate,
    val_check_interval=1.0 if args.by_epoch else 1_000_000,
    check_val_every_n_epoch=1_000_000 if args.by_epoch else None,
    limit_val_batches=0 if args.no_validation else 1,
    accelerator="cpu",
    devices=args.ranks,
    strategy="ddp" if args.ranks > 1 else "auto",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
train, val = DataLoader(rows(64), batch_size=8), DataLoader(rows(16), batch_size=8)
for number in range(args.fits):
    net = Net()
    trainer.fit(net, train, val, ckpt_path=args.resume)
    say(fitted=number, step=trainer.global_step, bonus=net.bonus.value)
    trainer.save_checkpoint(args.folder / f"end{number}.ckpt")
(result,) = trainer.test(net, val, verbose=False)
say(tested=result, step=trainer.global_step, lr=live.job.variables["generator.lr" if args.manual else "lr"].value)
