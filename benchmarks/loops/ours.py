"""The loop that is measured: our SDK. Prints each new value with the monotonic time at which the loop saw it."""

from __future__ import annotations

import hashlib
import sys
import time

import livetune

BLOCK = bytes(200_000)  # about 0.1 ms of work that lets other threads run, as a GPU call does

job = livetune.init("bench")
value = job.variable("x", 0.0)
if not job.wait_connected(20):
    sys.exit("not connected")
print("ready", flush=True)
last = 0.0
while last >= 0:
    hashlib.sha256(BLOCK).digest()
    job.step()
    if value.value != last:
        now = time.monotonic_ns()
        last = value.value
        print("seen", last, now, flush=True)
job.finish()
