"""A plain training loop that is tuned while it runs: values, triggers and what the program logs.

It begins with a learning rate that is far too small. While it runs, type in another terminal:

    ltctl set plain-loop lr=0.5 --reason "it hardly moves"
    ltctl trigger plain-loop run.stop
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import livetune
from livetune.torch import bind

BATCH_SIZE = 64


def main() -> None:
    """Train until the time is over or somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="how long to train (%(default)s)")
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    (train_x, test_x), (train_y, test_y) = x.split([1400, 397]), y.split([1400, 397])

    with livetune.init("plain-loop") as job:
        lr = job.variable("lr", 1e-4, min=1e-6, max=1.0, scale="log", doc="Learning rate.")
        smoothing = job.variable("label_smoothing", 0.0, min=0.0, max=0.9, doc="Share of a label for all classes.")
        control = livetune.RunControl(job)

        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr.value)
        bind(optimizer, lr=lr)  # the optimizer follows by itself

        end = time.monotonic() + options.seconds
        while time.monotonic() < end and control.proceed():
            batch = torch.randint(len(train_x), (BATCH_SIZE,))
            # Everything else is read where it is used.
            loss = functional.cross_entropy(model(train_x[batch]), train_y[batch], label_smoothing=smoothing.value)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.step()  # the safe point: changes take effect here, all at once
            job.log(loss=loss)

            if lr.changed():
                print(f"step {job.current_step}: lr is now {lr.value:g}")
            if job.current_step % 500 == 0 or control.evaluate():
                with torch.no_grad():
                    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
                job.log(test_accuracy=accuracy)
                print(f"step {job.current_step}: loss {loss.item():.3f}, test accuracy {accuracy:.1%}")
        print(f"ended at step {job.current_step}")


if __name__ == "__main__":
    main()
