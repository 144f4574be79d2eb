"""A training process that times each of its steps, with the SDK or without: `stepper.py TARGET JOB`.

Told by lines, answers with JSON: `join` makes it a job, `meet` waits for the daemon, both say whether it is there;
`leave` ends the job, `steps N` makes N steps and answers with the nanoseconds of each, `end` ends the program.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import torch
from torch import nn

import livetune
from livetune.torch import Binding, bind

torch.set_num_threads(1)
torch.manual_seed(0)
target, name = sys.argv[1:]
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16 * 8 * 8, 64), nn.ReLU(),
    nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
joined: tuple[livetune.Job, Binding, list[livetune.Variable[float]]] | None = None


def join() -> bool:
    global joined  # noqa: PLW0603 - the program's state
    job = livetune.init(name, endpoint=target)
    lr = job.variable("lr", 1e-3, min=0.0, max=1.0)
    joined = job, bind(optimizer, lr=lr), [job.variable(f"v{number}", 0.5) for number in range(4)]
    job.step()
    return meet()


def meet() -> bool:
    return joined is not None and joined[0].wait_connected(20)


def leave() -> bool:
    global joined  # noqa: PLW0603 - the same
    if joined is not None:
        job, binding, _ = joined
        binding.remove()
        job.finish()
        joined = None
    return True


def steps(number: int) -> list[int]:
    times = [time.perf_counter_ns()]
    for _ in range(number):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if joined is not None:
            job, _, variables = joined
            for variable in variables:
                _ = variable.value
            job.log(loss=loss)
            job.step()
        times.append(time.perf_counter_ns())
    return [after - before for before, after in itertools.pairwise(times)]


sys.stdout.write(json.dumps("ready") + "\n")
sys.stdout.flush()
for line in sys.stdin:
    what, *numbers = line.split()
    if what == "end":
        break
    answer = {"join": join, "meet": meet, "leave": leave, "steps": steps}[what](*map(int, numbers))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
