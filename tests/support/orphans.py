"""A job whose forked and spawned child read a variable on and on, and outlive their parent. Arguments: the job's name."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import livetune


def read(strength: livetune.Variable[float], text: livetune.Variable[str], kind: str) -> None:
    """Reads until the parent is gone, then some more."""
    os.setsid()
    parent, orphaned, said = os.getppid(), 0, None
    while orphaned < 50:
        state = [strength.value, strength.revision, len(text.value)]
        if state != said:
            os.write(1, (json.dumps({"kind": kind, "state": state}) + "\n").encode())
            said = state
        orphaned += os.getppid() != parent
        time.sleep(0.005)
    os.write(1, (json.dumps({"kind": kind, "last": state}) + "\n").encode())


def main(name: str) -> None:
    with livetune.init(name) as job:
        strength, text = job.variable("strength", 0.1), job.variable("text", "a" * 1_000)
        for kind in ("fork", "spawn"):
            process = multiprocessing.get_context(kind).Process(target=read, args=(strength, text, kind))  # type: ignore[attr-defined]
            process.start()
        while True:
            job.step()
            time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
