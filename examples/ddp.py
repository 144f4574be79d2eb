"""DistributedDataParallel on four processes: every change takes effect at the same step on all ranks.

    torchrun --standalone --nproc-per-node 4 examples/ddp.py

While it runs, type in another terminal:

    ltctl set ddp lr=0.1
    ltctl trigger ddp run.stop

Every rank prints the step at which it took the change. At the end they compare: the run fails if they differ.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import livetune
from livetune.torch import Ranks, bind


def main() -> None:
    """Train one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000, help="how many steps to train (%(default)s)")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[rank::size], torch.tensor(labels)[rank::size]

    # The same on every rank; only rank 0 talks to the daemon.
    with livetune.init("ddp", ranks=Ranks()) as job:
        lr = job.variable("lr", 1e-3, min=1e-6, max=1.0, scale="log", doc="Learning rate.")
        control = livetune.RunControl(job, max_steps=options.steps)

        model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr.value)
        bind(optimizer, lr=lr)

        while control.proceed():
            batch = torch.randint(len(x), (32,))
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.step()  # equally often on every rank, as the forward pass

            if lr.changed():
                print(f"step {job.current_step}: rank {rank} uses lr {lr.value:g}", flush=True)
            if rank == 0 and job.current_step % 250 == 0:
                print(f"step {job.current_step}: loss {loss.item():.3f}", flush=True)

        taken = [(change.step, change.values) for change in job.changes]
        everyone: list[object] = [None] * size
        dist.all_gather_object(everyone, taken)
        if any(other != taken for other in everyone):
            raise SystemExit(f"the ranks took changes at different steps: {everyone}")
        if rank == 0:
            steps = [step for step, _ in taken]
            print(f"ended at step {job.current_step}: all {size} ranks took changes at steps {steps}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
