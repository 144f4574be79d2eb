"""What it costs a training job to change its learning rate: live, and by stop, checkpoint, restart and load.

The same job, the same program, in turn. Lost time is what passed from the last step before somebody decided to change
it until the job has made some steps with the new value, less what as many steps take otherwise. "Nothing" is the same
sum where nobody changes anything: the noise of the measure. Then the two ways are compared bit by bit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import servers
from common import HERE, left_out, machine, parser, write_results
from counters import Counter, counters
from workers import Worker

NO_COUNTER = "no counter on this machine"
PEAKS = (1e-3, 5e-4)
"""The learning rates that are changed to, in turn. One is half of the other: a live change multiplies the schedule, a
restart builds it anew, and with other ratios the two may round a last bit differently."""

WAYS = {
    "live": "livetuned: `ltctl set`",
    "restart": "stop, checkpoint, restart, load",
    "nothing": "nothing is changed",
}

PHASES = {
    "stopping": "the step in hand ends, of what is above a step",
    "checkpoint": "checkpoint written",
    "ended": "the process ends",
    "imports": "interpreter, torch and torchvision",
    "model and state": "model built, state loaded",
    "livetune": "livetune imported, job declared",
    "first batch": "workers started, first batch",
    "warm": "first steps, of what is above as many steps",
}
"""What a restart does, in order, each from the end of the one before."""


@dataclass
class Step:
    """A step that the job made.

    Attributes:
        number: Its number.
        at: When it was over, in monotonic nanoseconds.
        lr: The peak of the schedule from the next step on.
        joules: What each counter said then.
    """

    number: int
    at: int
    lr: float
    joules: dict[str, float]


@dataclass
class Loss:
    """What one change cost.

    Attributes:
        seconds: Lost time.
        steps: The same in steps of the job.
        used_after: Seconds from the decision until a step with the new value begins.
        known_after: Seconds from the decision until whoever decided it knows: when ltctl is back, or the restarted
            job trains.
        joules: What was used above what as many steps use otherwise, by counter; empty without counters.
        phases: Seconds of each phase of a restart.
    """

    seconds: float
    steps: float
    used_after: float = 0.0
    known_after: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)


class Job:
    """The training job over its restarts.

    Args:
        target: The daemon's gRPC target.
        folder: Where its checkpoint goes.
        told: The flags of this benchmark.
        name: The job's name.
    """

    def __init__(self, target: str, folder: Path, told: argparse.Namespace, name: str) -> None:
        self._environment = {**os.environ, "LIVETUNE_ENDPOINT": target}
        self._told = told
        self._checkpoint = folder / f"{name}.pt"
        self._name = name
        self._counters: dict[str, Counter] = counters()
        self._worker: Worker | None = None
        self.lr = PEAKS[0]
        self.bytes = 0

    def start(self, *flags: str, lr: float) -> None:
        """Starts the program, from its checkpoint if there is one."""
        told, resume = self._told, ["--resume"] if self._checkpoint.exists() else []
        words = ["--job", self._name, "--checkpoint", str(self._checkpoint), "--model", told.model, *resume, *flags]
        words += ["--device", told.device, "--batch", str(told.batch), "--workers", str(told.workers), "--lr", repr(lr)]
        words += ["--threads", str(told.threads)]
        words += ["--data", str(told.data)] if told.data else []
        self._worker = Worker("restartable.py", *words, environment=self._environment)
        self.lr = lr

    @property
    def worker(self) -> Worker:
        """The process."""
        assert self._worker is not None
        return self._worker

    def read(self) -> dict[str, Any]:
        """Returns the next thing it says."""
        said: dict[str, Any] = self.worker.read()
        return said

    def step(self) -> Step:
        """Returns the next step it makes; passes its phases over."""
        while "step" not in (said := self.read()):
            pass
        return Step(said["step"], said["at"], said["lr"], {name: read() for name, read in self._counters.items()})

    def steps(self, number: int) -> list[Step]:
        """Returns the next steps it makes."""
        return [self.step() for _ in range(number)]

    def set(self, lr: float) -> int:
        """Sets the learning rate as a person does, with ltctl. Returns when that was over, in monotonic nanoseconds."""
        words = [sys.executable, "-m", "ltctl", "set", self._name, f"lr={lr!r}", "--timeout", "60", "--reason", "bench"]
        subprocess.run(words, check=True, env=self._environment, stdout=subprocess.DEVNULL, timeout=120)
        self.lr = lr
        return time.monotonic_ns()

    def restart(self, lr: float, *flags: str) -> dict[str, int]:
        """Stops it and starts it again with a learning rate. Returns when each phase ended, in nanoseconds."""
        self.worker.tell("stop")
        times: dict[str, int] = {}
        while "checkpoint" not in times:
            said = self.read()
            times[said.get("phase", "step")] = said["at"]
            self.bytes = said.get("bytes", self.bytes)
        if code := self.worker.wait():
            raise RuntimeError(f"the job ended with {code}")
        times["ended"] = time.monotonic_ns()
        self.close()
        self.start(*flags, lr=lr)
        while "first batch" not in times:
            said = self.read()
            times[said["phase"]] = said["at"]
        return times

    def reach(self, step: int) -> None:
        """Waits until it has made a step."""
        while self.step().number < step:
            pass

    def digest(self) -> tuple[int, str]:
        """Returns a step, and the hash of model and optimizer after it."""
        self.worker.tell("digest")
        while "digest" not in (said := self.read()):
            pass
        return said["after"], said["digest"]

    def close(self) -> None:
        """Ends it."""
        if self._worker is not None:
            self._worker.close()


def usual(steps: list[Step]) -> float:
    """The median time of a step, in nanoseconds."""
    return statistics.median(one.at - other.at for other, one in itertools.pairwise(steps))


def loss(before: list[Step], last: Step) -> Loss:
    """What was lost until a step.

    Args:
        before: Undisturbed steps; the last is the last one before the decision.
        last: A step some steps after the change.
    """
    median, made = usual(before), last.number - before[-1].number
    lost = last.at - before[-1].at - made * median
    joules = {
        name: last.joules[name] - now - made * (now - before[0].joules[name]) / (len(before) - 1)
        for name, now in before[-1].joules.items()
    }
    return Loss(lost / 1e9, lost / median, joules=joules)


class Bench:
    """Changes a job's learning rate in one way after the other.

    Args:
        job: The job.
        steps: How many undisturbed steps are measured before and after a change.
    """

    def __init__(self, job: Job, steps: int) -> None:
        self._job = job
        self._steps = steps
        self._random = random.Random(0)

    def _decide(self) -> tuple[list[Step], int, float]:
        """Returns undisturbed steps, a moment somewhere within the next one, and another learning rate."""
        before = self._job.steps(self._steps + 1)
        time.sleep(self._random.uniform(0, 0.9) * usual(before) / 1e9)
        return before, time.monotonic_ns(), PEAKS[self._job.lr == PEAKS[0]]

    def nothing(self) -> Loss:
        """Changes nothing."""
        before, _, _ = self._decide()
        return loss(before, self._job.steps(self._steps + 1)[-1])

    def live(self) -> Loss:
        """Changes it with ltctl while the job trains."""
        before, decided, lr = self._decide()
        returned: list[int] = []
        setter = threading.Thread(target=lambda: returned.append(self._job.set(lr)))
        setter.start()
        while (first := self._job.step()).lr != lr:
            pass
        found = loss(before, self._job.steps(self._steps)[-1])
        setter.join()
        found.used_after, found.known_after = (first.at - decided) / 1e9, (returned[0] - decided) / 1e9
        return found

    def restart(self) -> Loss:
        """Stops the job, and starts it again with another learning rate from the checkpoint."""
        before, decided, lr = self._decide()
        ends = self._job.restart(lr)
        after = self._job.steps(self._steps)
        found = loss(before, after[-1])
        found.used_after, found.known_after = (ends["first batch"] - decided) / 1e9, (after[0].at - decided) / 1e9
        median = usual(before)
        # A step that was made is not lost.
        moments = [
            before[-1].at + (after[0].number - 1 - before[-1].number) * median,
            *map(ends.get, list(PHASES)[:-1]),
        ]
        moments.append(after[-1].at - len(after) * median)
        found.phases = {
            name: (end - begin) / 1e9 for name, begin, end in zip(PHASES, moments, moments[1:], strict=False)
        }
        return found


def same_bits(target: str, folder: Path, told: argparse.Namespace, steps: int) -> tuple[bool, int]:
    """Trains the same job twice, changed at the same step live and by a restart.

    Returns:
        Whether all bits of model and optimizer are the same in the end, and after how many steps with the new value.
    """
    with closing(Job(target, folder, told, "live-bits")) as live:
        live.start(lr=PEAKS[0])
        live.steps(steps)
        setter = threading.Thread(target=lambda: live.set(PEAKS[1]))
        setter.start()
        while (changed := live.step()).lr != PEAKS[1]:
            pass
        setter.join()
        live.steps(steps)
        end, expected = live.digest()
    with closing(Job(target, folder, told, "restart-bits")) as other:
        other.start("--until", str(changed.number), lr=PEAKS[0])
        other.reach(changed.number)
        other.restart(PEAKS[1], "--until", str(end))
        other.reach(end)
        return (end, expected) == other.digest(), end - changed.number


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """The median, and the least and the greatest."""
    median = f"{statistics.median(values):,.{digits}f} {unit}".rstrip()
    return f"{median} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def rows_of(losses: dict[str, list[Loss]], told: argparse.Namespace) -> list[list[str]]:
    head = ["change by", "training lost, median (min to max)", "in steps", "in images", "a step with it begins after"]
    rows = [[*head, "who asked knows after", "energy above that of as many steps"]]
    for way, name in WAYS.items():
        found = losses[way]
        steps = [one.steps for one in found]
        row = [name, spread([one.seconds for one in found], "s"), spread(steps, digits=1)]
        row.append(f"{statistics.median(steps) * told.batch:,.0f}")
        if way == "nothing":
            row += ["-", "-"]
        else:
            row += [spread([getattr(one, what) for one in found], "s") for what in ("used_after", "known_after")]
        energy = [f"{spread([one.joules[name] for one in found], 'J', 1)} by {name}" for name in found[0].joules]
        rows.append([*row, "; ".join(energy) or NO_COUNTER])
    return rows


def phases_of(restarts: list[Loss], size: int) -> list[list[str]]:
    rows = [["phase of a restart", "median", "min to max"]]
    for name, words in PHASES.items():
        seconds = [one.phases[name] for one in restarts]
        shown = f"{words} ({size / 1e6:,.0f} MB)" if name == "checkpoint" else words
        rows.append([shown, f"{statistics.median(seconds):.2f} s", f"{min(seconds):.2f} to {max(seconds):.2f}"])
    return rows


def flags() -> argparse.Namespace:
    reader = parser(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader.add_argument("--data", type=Path, help="folder of cifar10_train.npz; synthetic images without it")
    reader.add_argument("--device", default=device)
    reader.add_argument("--model", default="resnet50", help="one of torchvision's")
    reader.add_argument("--batch", type=int, default=64 if device == "cpu" else 512)
    reader.add_argument("--workers", type=int, default=2, help="processes that load and augment")
    reader.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of a step on a CPU")
    reader.add_argument("--rounds", type=int, default=8)
    reader.add_argument("--steps", type=int, default=15, help="steps that are measured before and after a change")
    told = reader.parse_args()
    if told.quick:
        told.model, told.batch, told.rounds, told.steps = "resnet18", 8, 1, 3
    return told


def main() -> None:
    told = flags()
    if not counters():
        left_out(f"energy: {NO_COUNTER} (RAPL, NVML) that may be read")
    losses: dict[str, list[Loss]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=HERE)))
        target = stack.enter_context(servers.livetuned(folder, "--job-ports", "22300-22309")).unix
        with closing(Job(target, folder, told, "bench")) as job:
            job.start(lr=PEAKS[0])
            job.steps(told.steps)
            bench = Bench(job, told.steps)
            for number in range(told.rounds):
                for way in list(WAYS) if number % 2 else list(WAYS)[::-1]:
                    losses[way].append(getattr(bench, way)())
                    print(f"round {number}, {way}: {losses[way][-1].seconds:.2f} s lost", flush=True)
            step, size = usual(job.steps(told.steps + 1)) / 1e9, job.bytes
        same, later = same_bits(target, folder, told, told.steps)
    about = machine() | {"torch": torch.__version__, "model": told.model, "batch": told.batch}
    about |= {"device": torch.cuda.get_device_name() if told.device.startswith("cuda") else told.device}
    about |= {
        "threads": told.threads,
        "images": "CIFAR-10" if told.data else "synthetic",
        "loading processes": told.workers,
    }
    about |= {"a step": f"{step:.3f} s", "checkpoint": f"{size / 1e6:.0f} MB", "rounds": told.rounds}
    verdict = "the same in every bit" if same else "not the same"
    about |= {f"model and optimizer {later} steps after the same change by both": verdict}
    results: dict[str, object] = {"machine": about, "counters": list(counters())}
    for way, found in losses.items():
        results[way] = [
            {name: value for name, value in asdict(one).items() if value or way != "nothing"} for one in found
        ]
    tables = {"change-cost": rows_of(losses, told), "restart-phases": phases_of(losses["restart"], size)}
    write_results("change_cost", results, tables, write=not told.no_write)
    print(f"model and optimizer {later} steps after the same change by both: {verdict}")


if __name__ == "__main__":
    main()
