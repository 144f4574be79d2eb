"""A training process for tests whose program has its own word on new values: it rewrites, vetoes, reacts, and fails."""

from __future__ import annotations

import json
import sys
import time

import livetune

job = livetune.init(sys.argv[1])
lr = job.variable("lr", 0.1, min=0.0, max=1.0)
wd = job.variable("wd", 0.0)
batch = job.variable("batch", 8)
stop = job.trigger("stop")


def even(size: int) -> int:
    return size - size % 2


def falling(new: float, old: float) -> None:
    if new > old:
        raise livetune.Veto(f"lr may only fall here, {new!r} is above {old!r}")


def broken(new: float, _old: float) -> None:
    if new == 13.0:
        raise KeyError("no such thing")


def say(new: object, old: object) -> None:
    sys.stdout.write(json.dumps({"old": old, "new": new, "lr": lr.value, "step": job.current_step}) + "\n")
    sys.stdout.flush()
    if new == 6:
        raise RuntimeError("too late to matter")


batch.pre_set(even)
lr.on_set(falling)
wd.on_set(broken)
batch.post_set(say)
while not stop():
    job.step()
    time.sleep(0.001)
job.finish()
