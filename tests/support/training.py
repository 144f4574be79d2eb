"""A training process for tests: the SDK in a loop, told what to do by its arguments, telling what it sees line by line."""

from __future__ import annotations

import json
import logging
import sys
import time

import livetune

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
name, how = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "finish"


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


job = livetune.init(name)
lr = job.variable("lr", 0.1, min=1e-6, max=1.0)
wd = job.variable("wd", 0.0)
stop, save = job.trigger("stop"), job.trigger("save")
connected = None
longest = 0.0
while not stop():
    begun = time.perf_counter()
    job.step()
    longest = max(longest, time.perf_counter() - begun)
    if lr.changed() | wd.changed():
        say(lr=lr.value, wd=wd.value, step=job.current_step)
    if save():
        say(saved=job.current_step)
    if job.connected is not connected:
        connected = job.connected
        say(connected=connected, port=job.port, step=job.current_step)
    time.sleep(0.001)
say(longest_step=longest)
if how == "raise":
    raise RuntimeError("boom")
if how == "finish":
    job.finish()
# "fall": the end of the program is the end of the job
