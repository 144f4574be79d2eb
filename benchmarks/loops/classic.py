"""The same loop with LiveTune 0.0.8, in LiveTune's own environment. Prints its dictionary port first."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time

from LiveTune.liveVar import liveVar

BLOCK = bytes(200_000)

with contextlib.redirect_stdout(io.StringIO()):  # it prints a banner
    value = liveVar(0.0, "x")
print("ready", value.dictionary_port[0], flush=True)
last = 0.0
while last >= 0:
    hashlib.sha256(BLOCK).digest()
    current = value()
    if current != last:
        now = time.monotonic_ns()
        last = current
        print(last, now, flush=True)
