"""A training process for tests that obeys a RunControl; says what it did, line by line."""

from __future__ import annotations

import json
import logging
import sys
import time

import livetune

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
job = livetune.init(sys.argv[1])
control = livetune.RunControl(job, max_steps=int(sys.argv[2]))
lr = job.variable("lr", 0.1)


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


while True:
    time.sleep(0.001)
    job.step()
    if control.checkpoint():
        say(saved=job.current_step)
    if control.evaluate():
        say(evaluated=job.current_step)
    if lr.changed():
        say(lr=lr.value)
    if not control.proceed():
        break
say(tested=job.current_step, still=control.proceed())
