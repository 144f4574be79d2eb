"""A network that trains, on batches from DataLoader workers that are forked anew in each epoch. It says how it gets on.

Arguments: the job's name, how many workers, and how many batches an epoch has. Told `declare NAME`, `leave` or `end` by a line. It catches nothing: what
the SDK lets out ends it. A line of JSON a few times a second and at what is new:

    step, lr (the variable), used (what the optimizer really used), connected, epoch, forks, saved (firings consumed);
    over, in the end, with lies: what workers said that believed to be the job, or had a value that was not in use since
    they were forked.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

import sdk_bugs  # noqa: F401 - plants the bug that a control asks for
import torch
from torch.utils.data import DataLoader, Dataset

import livetune
from livetune.torch import bind

BATCH = 4
Item = tuple[float, bool]
"""The strength a worker read, and whether it took itself for the job."""


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Augmented(Dataset[Item]):
    """Gives what a worker sees of the job."""

    def __init__(self, job: livetune.Job, strength: livetune.Variable[float], length: int) -> None:
        self._length = length
        self._job = job
        self._strength = strength

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        forked = torch.utils.data.get_worker_info() is not None
        return self._strength.value, forked and self._job.connected


def first(items: Sequence[Item]) -> Item:
    """Collates to the first: a tensor would be passed over a socket of torch's own."""
    return items[0]


def told() -> str:
    """Returns the line that came on standard input; "" if none. Not by a thread: workers are forked."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return ""
    return b"".join(iter(lambda: os.read(0, 1), b"\n")).decode()


def main(name: str, workers: int, batches: int) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(1)
    job = livetune.init(name)
    lr, strength = job.variable("lr", 0.1, min=1e-6, max=1.0), job.variable("strength", 0.5)
    save = job.trigger("save")
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr.value)
    binding = bind(optimizer, lr=lr)
    loader = DataLoader(Augmented(job, strength, batches * BATCH), BATCH, num_workers=workers, collate_fn=first)
    interrupted: list[int] = []
    # Raised by the loop: Python drops a KeyboardInterrupt that comes while it clears up an object.
    signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    epoch = saved = 0
    found: list[str] = []
    last: tuple[object, ...] = ()
    spoken = 0.0
    while True:
        epoch += 1
        in_use = {strength.value}
        for value, lies in loader:
            inputs = torch.randn(BATCH, 8)
            loss = (model(inputs) - value * inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.step()
            job.log(loss=loss)
            saved += save()
            in_use.add(strength.value)
            if lies or value not in in_use:
                found.append(f"a worker says {(value, lies)}, in use since it was forked: {in_use}")
            news = lr.value, binding.effective("lr")[0], job.connected, saved
            if news != last or time.monotonic() - spoken > 0.05:
                last, spoken = news, time.monotonic()
                facts = dict(zip(("lr", "used", "connected", "saved"), news, strict=True))
                say(step=job.current_step, epoch=epoch, forks=epoch * workers, **facts)
            if interrupted:
                raise KeyboardInterrupt
            command, _, argument = told().partition(" ")
            if command == "declare":
                job.variable(argument, 0.0)
            elif command in ("leave", "end"):
                say(over=job.current_step, lies=found[:3])
                if command == "end":
                    job.finish()
                return  # else the end of the program is the end of the job


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
