"""A training job that tells how it is getting on: a line of JSON several times a second and at every new value.

Arguments: the job's name. Ends when a line comes on its standard input, and then tells how many steps it made, how many of them
raised, and how long the longest took.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

import livetune

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
log = logging.getLogger("trainer")
over = threading.Event()


def wait_for_the_end() -> None:
    sys.stdin.readline()
    over.set()


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


threading.Thread(target=wait_for_the_end, daemon=True).start()
job = livetune.init(sys.argv[1])
lr = job.variable("lr", 0.1, min=1e-6, max=1.0)
errors, longest, told = 0, 0.0, (0.0, 0.0, False)
while not over.is_set():
    begun = time.perf_counter()
    try:
        job.step()
    except Exception:
        log.exception("step")  # whatever it is, it is what must not happen
        errors += 1
    now = time.perf_counter()
    longest = max(longest, now - begun)
    if now - told[0] > 0.1 or told[1:] != (lr.value, job.connected):
        told = now, lr.value, job.connected
        say(step=job.current_step, lr=lr.value, connected=job.connected, errors=errors)
    time.sleep(0.001)
job.finish()
say(done=True, steps=job.current_step, errors=errors, longest_step_ms=round(longest * 1e3, 3))
