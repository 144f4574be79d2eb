"""A job with two worker processes that read a variable on and on, without torch, whose own end takes seconds.

Arguments: the job's name, and the way to start workers. It ends by itself, with its workers alive, when the variable is 1.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import livetune


def read(strength: livetune.Variable[float], worker: int) -> None:
    # Not by os.getppid: a fork server outlives the program, and is the parent of its workers.
    parent, said = multiprocessing.parent_process(), None
    while parent is not None and parent.is_alive():
        if strength.value != said:
            said = strength.value
            os.write(1, (json.dumps({"worker": worker, "value": said}) + "\n").encode())
        time.sleep(0.005)


def main(name: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    job = livetune.init(name)
    strength = job.variable("strength", 0.1)
    for worker in (0, 1):
        context.Process(target=read, args=(strength, worker), daemon=True).start()  # type: ignore[attr-defined]
    while strength.value != 1.0:
        job.step()
        time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
