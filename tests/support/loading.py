"""A training process whose DataLoader has workers that read a variable. It says what it sees, as lines of JSON.

Arguments: the job's name, the way to start workers (fork, spawn, forkserver), and "persistent" or "fresh". It ends when its
standard input is closed.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset

import livetune


class Augmented(Dataset[tuple[float, int]]):
    """Gives the strength of the augmentation in use, and who read it."""

    def __init__(self, strength: livetune.Variable[float], length: int) -> None:
        self.strength = strength
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[float, int]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return self.strength.value, info.id


def first(items: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Collates to the first: a tensor would be passed in shared memory of torch's own."""
    return items[0]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


WORKERS, PREFETCH = 2, 2


def main(name: str, method: str, how: str) -> None:
    torch.set_num_threads(1)
    with livetune.init(name) as job:
        strength = job.variable("strength", 0.1, min=0.0, max=1.0)
        loader = DataLoader(
            Augmented(strength, 2_000), batch_size=4, num_workers=WORKERS, prefetch_factor=PREFETCH, collate_fn=first,
            multiprocessing_context=method, persistent_workers=how == "persistent",
        )  # fmt: skip
        job.wait_connected(20)
        while True:
            say(epoch=job.current_step, connected=job.connected)
            late = 0
            """Batches of an older value since the safe point at which the value changed."""
            seen: set[int] = set()
            before = strength.value
            for value, worker in loader:
                job.step()
                now = strength.value
                if now != before:
                    say(changed=now, step=job.current_step)
                    before, late, seen = now, 0, set()
                if value != now:
                    late += 1
                elif worker not in seen:
                    seen.add(worker)
                    say(value=value, worker=worker, late=late)
                # Not in a thread: a worker forked while it holds the lock of stdin would wait for that for ever.
                if select.select([sys.stdin], [], [], 0)[0]:
                    return
                time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
