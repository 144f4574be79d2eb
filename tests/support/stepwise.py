"""A training job that takes as many steps as it is told, so that a test knows at which step something happens.

Arguments: the job's name, and a file with a job's state to go on from, or nothing. On its standard input: a number takes so many
steps, `save` consumes a firing, `state FILE` writes the job's state, `end` ends. Each is answered with a line of JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import livetune

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
job = livetune.init(sys.argv[1])
lr = job.variable("lr", 0.1, min=0.0, max=1.0)
wd = job.variable("wd", 0.0)
save = job.trigger("save")
if len(sys.argv) > 2:
    job.load_state_dict(json.loads(Path(sys.argv[2]).read_text()))


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


say(ready=True, step=job.current_step, lr=lr.value, wd=wd.value)
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    if word == "end":
        break
    if word == "state":
        Path(rest).write_text(json.dumps(job.state_dict()))
        say(saved=rest)
    elif word == "save":
        say(consumed=save(), at=job.current_step)
    else:
        for _ in range(int(word)):
            job.step()
        changes = [[change.step, {name: new for name, (_, new) in change.values.items()}] for change in job.changes]
        waiting = [change["step"] for change in job.state_dict()["scheduled"]]
        say(
            step=job.current_step, lr=lr.value, wd=wd.value, connected=job.connected, changes=changes, waiting=waiting,
        )  # fmt: skip
job.finish()
say(ended=True)
