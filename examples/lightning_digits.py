"""Lightning, with one line more: `callbacks=[LiveTune("lightning-digits")]`.

It begins with a learning rate that is far too small. While it runs, type in another terminal:

    ltctl set lightning-digits lr=0.5 --reason "it hardly moves"
    ltctl trigger lightning-digits run.evaluate run.checkpoint
    ltctl metrics lightning-digits
    ltctl trigger lightning-digits run.stop
"""

import argparse
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from livetune.integrations.lightning import LiveTune

EVALUATE_EVERY = 1000
"""Steps between two validations that nobody asks for."""


class Digits(lightning.LightningModule):
    """A small network, trained with SGD under a cosine.

    Args:
        steps: Over how many steps the learning rate goes to zero.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = functional.cross_entropy(self.network(x), y)
        self.log("loss", loss)
        return loss

    def _accuracy(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (self.network(x).argmax(1) == y).float().mean()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the share of digits that are told right."""
        self.log("accuracy", self._accuracy(batch))

    def on_validation_epoch_end(self) -> None:
        """Say what the validation has found."""
        print(f"step {self.global_step}: accuracy {self.trainer.callback_metrics['accuracy']:.1%}", flush=True)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """The same at the end."""
        self.log("test_accuracy", self._accuracy(batch))

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRScheduler:
        """Build optimizer and schedule as ever: the callback finds them."""
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train until the steps are made or somebody says stop, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000, help="how long to train (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("lightning-out"), help="for checkpoints (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more

    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train, validation, test = torch.utils.data.random_split(data, [1200, 300, 297], torch.Generator().manual_seed(0))

    trainer = lightning.Trainer(
        callbacks=[LiveTune("lightning-digits")],  # the one line
        max_steps=options.steps,
        val_check_interval=EVALUATE_EVERY,
        check_val_every_n_epoch=None,
        default_root_dir=options.out,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Digits(options.steps)
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True), DataLoader(validation, batch_size=300))
    (result,) = trainer.test(model, DataLoader(test, batch_size=297), verbose=False)
    print(f"ended at step {trainer.global_step}: test accuracy {result['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
