"""A training job that logs without a pause until a line comes on its standard input.

Arguments: the job's name. Tells at the end how many calls it made in which time, and the longest step.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

import livetune

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
over = threading.Event()


def wait_for_the_end() -> None:
    sys.stdin.readline()
    over.set()


threading.Thread(target=wait_for_the_end, daemon=True).start()
job = livetune.init(sys.argv[1])
lr = job.variable("lr", 0.1, max=1.0)
calls, longest, begun = 0, 0.0, time.perf_counter()
while not over.is_set():
    before = time.perf_counter()
    job.step()
    longest = max(longest, time.perf_counter() - before)
    for _ in range(100):
        job.log(loss=1.0 / (1 + calls), accuracy=0.5)
        calls += 1
seconds = time.perf_counter() - begun
job.finish()
print(json.dumps({"calls": calls, "seconds": seconds, "steps": job.current_step, "longest_step": longest}))  # noqa: T201
