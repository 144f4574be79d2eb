"""The same loop with LiveTune 0.0.8, in LiveTune's own environment. Prints its dictionary port first.

With `idle` it runs no loop: only LiveTune's listeners work.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

from LiveTune.liveVar import liveVar

BLOCK = bytes(200_000)

# It prints a banner, and a line at every change from a thread of its own, which would run into ours.
out = os.fdopen(os.dup(1), "w")
sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
value = liveVar(0.0, "x")
print("ready", value.dictionary_port[0], file=out, flush=True)
while "idle" in sys.argv:
    time.sleep(3_600)
last = 0.0
while last >= 0:
    hashlib.sha256(BLOCK).digest()
    current = value()
    if current != last:
        now = time.monotonic_ns()
        last = current
        print("seen", last, now, file=out, flush=True)
