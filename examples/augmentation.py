"""Live variables in the workers of a DataLoader: how strongly images are augmented, and how two sources are mixed.

The network learns digits as they were scanned, and is also tested on negatives (white for black) and on noisy images,
of which it knows nothing. While it runs, type in another terminal:

    ltctl set augmentation mix.negatives=0.5 augment.noise=0.3 --reason "robustness"
    ltctl trigger augmentation run.stop
"""

import argparse
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import livetune


class Digits(IterableDataset[tuple[Tensor, Tensor, bool]]):
    """Endless images with their labels, and whether each is a negative. Runs in the workers."""

    def __init__(
        self, x: Tensor, y: Tensor, noise: livetune.Variable[float], negatives: livetune.Variable[float]
    ) -> None:
        self.x, self.y = x, y
        self.noise, self.negatives = noise, negatives

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        while True:
            index = torch.randint(len(self.x), ())
            # A worker reads what is in use in the training process now.
            negative = bool(torch.rand(()) < self.negatives.value)
            image = 1 - self.x[index] if negative else self.x[index]
            yield image + self.noise.value * torch.randn(64), self.y[index], negative


def main() -> None:
    """Train until the time is over or somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="how long to train (%(default)s)")
    options = parser.parse_args()

    digits, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(digits / 16, dtype=torch.float32), torch.tensor(labels)
    (train_x, test_x), (train_y, test_y) = x.split([1400, 397]), y.split([1400, 397])
    tests = {"scanned": test_x, "negatives": 1 - test_x, "noisy": test_x + 0.5 * torch.randn(test_x.shape)}

    with livetune.init("augmentation") as job:
        noise = job.variable("augment.noise", 0.0, min=0.0, max=1.0, doc="Standard deviation of noise added to pixels.")
        negatives = job.variable("mix.negatives", 0.0, min=0.0, max=1.0, doc="Share of negatives among the images.")
        control = livetune.RunControl(job)
        loader = DataLoader(Digits(train_x, train_y, noise, negatives), batch_size=64, num_workers=2)

        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        end = time.monotonic() + options.seconds
        for batch_x, batch_y, is_negative in loader:
            loss = functional.cross_entropy(model(batch_x), batch_y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.step()  # the safe point: from here on the workers read the new values, too

            if job.current_step % 250 == 0:
                with torch.no_grad():
                    right = {name: (model(images).argmax(1) == test_y).float().mean() for name, images in tests.items()}
                accuracies = ", ".join(f"{name} {share:.0%}" for name, share in right.items())
                share = is_negative.float().mean()
                print(f"step {job.current_step}: {share:.0%} negatives in the batch; right: {accuracies}")
            if time.monotonic() > end or not control.proceed():
                break
        print(f"ended at step {job.current_step}")


if __name__ == "__main__":
    main()
