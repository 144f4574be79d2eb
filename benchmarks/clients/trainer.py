"""A training process that times its own steps: `trainer.py TARGET JOB [RANK WORLD_SIZE MEETING_FILE]`.

Told by lines, answers with the nanoseconds that N steps took: `without N`, as if livetune were not there; `with N`,
with the safe point, a bound learning rate and four variables read; `idle N VARIABLES`, idle safe points alone, with so
many variables more declared. `taken` answers how the changes of the last `with` took effect: when each of its safe
points was over (nanoseconds of the system's monotonic clock), and the revision and the safe point of each change.
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import livetune
from livetune.torch import Ranks, bind

torch.set_num_threads(1)
torch.manual_seed(0)
target, name = sys.argv[1:3]
ranks = None
if len(sys.argv) > 3:
    rank, size, meeting = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    ranks = Ranks()
leads = ranks is None or ranks.rank == 0

model: nn.Module = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16 * 8 * 8, 64), nn.ReLU(),
    nn.Linear(64, 10),
)  # fmt: skip
if ranks is not None:
    model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

job = livetune.init(name, endpoint=target, ranks=ranks)
lr = job.variable("lr", 1e-3, min=0.0, max=1.0)
others = [job.variable(f"v{number}", 0.5) for number in range(4)]
if leads and not job.wait_connected(20):
    sys.exit("not connected")
points: list[int] = []
changes: list[tuple[int, int]] = []
lr.post_set(lambda _new, _old: changes.append((lr.revision, len(points))))


def train() -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def without(steps: int) -> int:
    begun = time.perf_counter_ns()
    for _ in range(steps):
        train()
    return time.perf_counter_ns() - begun


def tuned(steps: int) -> int:
    binding = bind(optimizer, lr=lr)
    points.clear()
    changes.clear()
    begun = time.perf_counter_ns()
    for _ in range(steps):
        train()
        sum(variable.value for variable in others)
        job.step()
        points.append(time.monotonic_ns())
    spent = time.perf_counter_ns() - begun
    binding.remove()
    return spent


def idle(steps: int, variables: int) -> int:
    for number in range(variables):
        job.variable(f"idle{number}", 0.0)
    time.sleep(0.5)  # until they are declared and the first safe point after it is over
    job.step()
    job.step()
    begun = time.perf_counter_ns()
    for _ in range(steps):
        job.step()
    return time.perf_counter_ns() - begun


sys.stdout.write(json.dumps("ready") + "\n")
sys.stdout.flush()
for line in sys.stdin:
    what, *numbers = line.split()
    if what == "taken":
        answer: object = [points, changes]
    else:
        answer = {"without": without, "with": tuned, "idle": idle}[what](*map(int, numbers))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
job.finish()
