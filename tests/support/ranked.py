"""A distributed training process for tests: one rank of a gloo job; says at which step it saw which values.

`ranked.py JOB RANK WORLD_SIZE MEETING_FILE [HOW]`; HOW is "uneven" (each rank has another number of inputs, joined), "veto"
(rank 1 has its own word on lr), "late" (it comes by it after some hundred steps), "numbered" (each rank numbers its steps
by itself), "held" (a RunControl is obeyed), "alone" (each rank talks to the daemon by itself), "bare" (no message between ranks but
those of the SDK; 2,000 steps), or "from FILE" (it goes on from the job's state in that file, which is written at its end in any case:
FILE is then MEETING_FILE.state).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import sdk_bugs  # noqa: F401 - plants the bug that a control asks for
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import livetune
from livetune.torch import Ranks

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
torch.set_num_threads(1)
name, rank, size, meeting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
how = sys.argv[5] if len(sys.argv) > 5 else ""
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
ranks = Ranks()
if how == "alone":
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
job = livetune.init(name, ranks=None if how == "alone" else ranks)
lr = job.variable("lr", 0.0)
wd = job.variable("wd", 0.0)
stop = job.trigger("stop")
save = job.trigger("save")
linear = torch.nn.Linear(4, 1)
model = linear if how in ("alone", "bare") else DistributedDataParallel(linear)
text = job.variable("text", "")
control = livetune.RunControl(job) if how == "held" else None
seen: list[tuple[int, float, float]] = []
saved: list[int] = []


def passed() -> int:
    """How many safe points this rank has passed, however it numbers them."""
    return job.current_step // 7 if how == "numbered" else job.current_step


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps({"rank": rank, **facts}) + "\n")
    sys.stdout.flush()


def small(new: float, _old: float) -> None:
    if new > 1.0:
        raise livetune.Veto("rank 1 takes nothing above 1")


if how == "veto" and rank == 1:
    lr.on_set(small)


def note(_new: float, _old: float) -> None:
    seen.append((passed(), lr.value, wd.value))


lr.post_set(note)
wd.post_set(note)


def train() -> bool:
    """One step; says whether it was the last one."""
    model(torch.ones(2, 4)).sum().backward()
    job.step(7 * (passed() + 1) + rank if how == "numbered" else None)
    if how == "late" and passed() == 300 and rank == 1:
        lr.on_set(small)
    if how == "late" and passed() == 600:  # three meetings later at the least
        say(late=True)
    if save():
        saved.append(passed())
    return stop() if control is None else not control.proceed()


if how.startswith("from "):
    # Only rank 0's counts: the others have none.
    job.load_state_dict(json.loads(Path(how[5:]).read_text()) if rank == 0 else {})
say(ready=True)
if how == "uneven":
    with Join([model, ranks]):
        for _ in range(600 * (rank + 1)):
            train()
            time.sleep(0.002)
elif how == "bare":
    for _ in range(2_000):
        train()
        time.sleep(0.001)
else:
    while not train():
        pass
say(
    seen=seen, saved=saved, passed=passed(), step=job.current_step, values=[lr.value, wd.value], text=text.value,
    changes=[(change.revision, change.step) for change in job.changes],
)  # fmt: skip
if rank == 0:
    Path(f"{meeting}.state").write_text(json.dumps(job.state_dict()))
job.finish()
dist.destroy_process_group()
