"""What a step of training costs while the daemon is well, killed, frozen, cut off or slow, beside the loop without us.

One process. Blocks of steps with the SDK, the daemon in one state after the other, alternate with blocks in which the
program has left the daemon and the SDK's thread has ended. And how soon a program ends, by Ctrl-C and by itself.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import servers
from common import HERE, machine, parser, quantile, write_results
from workers import Worker

sys.path.append(str(HERE.parent / "tests"))

from support.proxy import Proxy, proxy

PORTS = ("--job-ports", "22320-22399")
"""Enough for jobs whose end the daemon has not heard of."""
RESAMPLES = 10_000


class Stage:
    """A daemon that can be killed and started, and the way to it.

    Args:
        folder: Where its state is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self.start()
        self._around = ExitStack()
        self.way: Proxy = self._around.enter_context(proxy(folder / "run" / "d.sock"))

    def start(self) -> None:
        self._server = self._running.enter_context(servers.livetuned(self._folder, *PORTS))

    def signal(self, number: int) -> None:
        self._server.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._running.close()

    def close(self) -> None:
        self._running.close()
        self._around.close()


def well(_: Stage) -> Iterator[None]:
    yield


def killed(stage: Stage) -> Iterator[None]:
    stage.kill()
    yield
    stage.start()


def frozen(stage: Stage) -> Iterator[None]:
    stage.signal(signal.SIGSTOP)
    yield
    stage.signal(signal.SIGCONT)


def cut_off(stage: Stage) -> Iterator[None]:
    stage.way.refuse()
    stage.way.reset()
    yield
    stage.way.refuse(on=False)


def slow(stage: Stage) -> Iterator[None]:
    stage.way.slow(delay=0.05, slice_bytes=64)
    yield
    stage.way.slow()


STATES: dict[str, Callable[[Stage], Iterator[None]]] = {
    "well": well,
    "killed": killed,
    "frozen": frozen,
    "cut off": cut_off,
    "slow": slow,
}
ALONE = "no SDK"
"""The program has left the daemon; the base of all ratios, and, compared with itself, the noise of the measure."""


@contextmanager
def state(stage: Stage, name: str) -> Iterator[None]:
    """Puts the daemon into a state, and back."""
    happening = STATES[name](stage)
    next(happening)
    try:
        yield
    finally:
        next(happening, None)


def block(worker: Worker, stage: Stage, name: str, steps: int) -> list[int]:
    """Returns the nanoseconds of each step, the daemon in a state, or without the SDK."""
    if name == ALONE:
        times: list[int] = worker.ask(f"steps {steps}")
        return times
    if not worker.ask("join"):
        raise RuntimeError("the job did not find its daemon")
    with state(stage, name):
        worker.ask(f"steps {steps // 4}")  # the change of state is not what is measured
        times = worker.ask(f"steps {steps}")
    worker.ask("meet")  # else its end is not recorded, and the daemon keeps the job for it
    worker.ask("leave")
    return times


def measure(
    worker: Worker, stage: Stage, rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Lets all states take turns, each between two blocks without the SDK.

    Returns:
        Of each state, the ratios of its median step to that of its neighbours, and the times of all its steps.
    """
    order = random.Random(0)
    names = [ALONE, *STATES]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    times: dict[str, list[int]] = {name: [] for name in names}
    worker.ask(f"steps {steps}")
    for number in range(rounds):
        order.shuffle(names)
        before = statistics.median(block(worker, stage, ALONE, steps))
        for name in names:
            here = block(worker, stage, name, steps)
            after = statistics.median(block(worker, stage, ALONE, steps))
            ratios[name].append(statistics.median(here) / (before + after) * 2)
            times[name] += here
            before = after
        print(f"round {number}: " + ", ".join(f"{name} {ratios[name][-1]:.3f}" for name in ratios), flush=True)
    return ratios, times


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bounds between which the median of so many values lies in 95 of 100 resamples."""
    dice = random.Random(0)
    medians = [statistics.median(dice.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    return quantile(medians, 0.025), quantile(medians, 0.975)


def ends(stage: Stage, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Returns the seconds until a program has ended, by state of its daemon, interrupted and by itself."""
    found: dict[str, dict[str, list[float]]] = {name: {"Ctrl-C": [], "itself": []} for name in (ALONE, *STATES)}
    for number in range(rounds):
        for name, how in ((name, how) for name in found for how in ("Ctrl-C", "itself")):
            job = f"ends-{number}-{name}-{how}".lower().replace(" ", "-")
            with (
                closing(Worker("stepper.py", stage.way.target, job, quiet=True)) as worker,
                ExitStack() as on,
            ):
                worker.read()
                if name != ALONE:
                    if not worker.ask("join"):
                        raise RuntimeError("the job did not find its daemon")
                    on.enter_context(state(stage, name))
                worker.ask("steps 20")
                begun = time.monotonic()
                worker.interrupt() if how == "Ctrl-C" else worker.tell("end")
                worker.wait()
                found[name][how].append(time.monotonic() - begun)
    return found


def main() -> None:
    reader = parser(__doc__)
    reader.add_argument("--rounds", type=int, default=24, help="how often each state is measured")
    reader.add_argument("--ends", type=int, default=4, help="how often a program ends in each state, in each way")
    told = reader.parse_args()
    rounds, steps, exits = (2, 20, 1) if told.quick else (told.rounds, 250, told.ends)
    with tempfile.TemporaryDirectory(dir=HERE) as folder, closing(Stage(Path(folder))) as stage:
        with closing(Worker("stepper.py", stage.way.target, "bench")) as worker:
            worker.read()
            ratios, times = measure(worker, stage, rounds, steps)
        ended = ends(stage, exits)
    rows = [["daemon", "median step", "to that of the loop without, median of pairs", "95 % of resamples", "p99 step"]]
    for name, found in ratios.items():
        low, high = interval(found)
        label = f"({name}, again)" if name == ALONE else f"livetuned, {name}"
        row = [label, f"{statistics.median(times[name]) / 1e6:.2f} ms", f"{statistics.median(found):.4f}"]
        rows.append([*row, f"{low:.4f} to {high:.4f}", f"{quantile(times[name], 0.99) / 1e6:.2f} ms"])
    exit_rows = [["daemon", "from Ctrl-C to the end of the process", "from the program's last line"]]
    for name, by in ended.items():
        label = name if name == ALONE else f"livetuned, {name}"
        exit_rows.append([label, *(f"{statistics.median(by[how]):.2f} s ({max(by[how]):.2f} at most)" for how in by)])
    about = machine() | {"rounds": rounds, "steps a block": steps, "ends of each": exits}
    results: dict[str, object] = {"machine": about, "ratios": ratios, "ends_s": ended}
    results["step_ns"] = {
        name: {f"p{p}": quantile(found, p / 100) for p in (5, 50, 95, 99)} for name, found in times.items()
    }
    tables = {"step-under-faults": rows, "ends": exit_rows}
    write_results("step_under_faults", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
