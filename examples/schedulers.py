"""What a changed learning rate means under a scheduler: the three modes of `livetune.torch.bind`, side by side.

Three copies of a network are trained under the same schedule; each is bound to the one variable `lr` in another mode.
While it runs, type in another terminal:

    ltctl set schedulers lr=0.02
    ltctl trigger schedulers run.stop

SCALE:     the next step uses 0.02, and the rest of the schedule is scaled with it.
REBASE:    the schedule goes on as if it had been built on 0.02.
OVERRIDE:  every step uses 0.02.
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

import livetune
from livetune.torch import Mode, bind

BASE_LR = 0.1
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    "onecycle": lambda optimizer, steps: OneCycleLR(optimizer, max_lr=BASE_LR, total_steps=steps),
    "lambda": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 0.1 ** (step / steps)),
}


class Training:
    """A network, its optimizer and its schedule, with the learning rate bound in one of the modes."""

    def __init__(self, lr: livetune.Variable[float], schedule: str, steps: int, mode: Mode) -> None:
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=BASE_LR)
        self.scheduler = SCHEDULES[schedule](self.optimizer, steps)
        self.binding = bind(self.optimizer, lr=lr, scheduler=self.scheduler, mode=mode)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Train on a batch; return the learning rate that was really used."""
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        self.scheduler.step()
        return self.binding.effective("lr")[0]  # not scheduler.get_last_lr(), which knows nothing of the change


def main() -> None:
    """Train to the end of the schedule, or until somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="which one (%(default)s)")
    parser.add_argument("--steps", type=int, default=12_000, help="length of the schedule (%(default)s)")
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

    with livetune.init("schedulers") as job:
        lr = job.variable("lr", BASE_LR, min=1e-6, max=1.0, scale="log", doc="Learning rate; the peak, to begin with.")
        control = livetune.RunControl(job)
        trainings = {mode.name: Training(lr, options.schedule, options.steps, mode) for mode in Mode}

        for step in range(1, options.steps + 1):
            batch = torch.randint(len(x), (256,))
            used = {name: training.step(x[batch], y[batch]) for name, training in trainings.items()}
            if lr.changed() or step % 250 == 0:
                print(f"step {step} used lr: " + ", ".join(f"{name} {rate:.5f}" for name, rate in used.items()))
            job.step()  # the safe point: what changes here is used by the next step
            if not control.proceed():
                break
        print(f"ended at step {job.current_step}")


if __name__ == "__main__":
    main()
