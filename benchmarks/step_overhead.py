"""What tuning costs a training loop: steps a second with livetune, idle and with ten changes a second, beside without.

A small network in one process, and over 1, 2 and 4 gloo ranks; blocks of each kind alternate within each process. How
long a change takes until it is in use. And the idle safe point alone, with 1, 10 and 100 variables, and over ranks.
"""

from __future__ import annotations

import bisect
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

import servers
from common import HERE, arguments, machine, median_interval, quantile, write_results
from livetune.v1 import control_pb2, control_pb2_grpc
from workers import Worker

CHANGES_PER_SECOND = 10

KINDS = ("without", "idle", "beside", "with")
"""Of blocks: without livetune; with it and no changes; without it, but changes of another job; with it and changes."""


@dataclass
class Measured:
    """One job's blocks, and how its changes took effect.

    Attributes:
        steps: Of each block.
        blocks: By kind, nanoseconds of each block.
        milliseconds: Of each change, from the call that sets it to the end of the safe point at which it is in use.
        later: Of each change, how many safe points after the one that the call found.
    """

    steps: int
    blocks: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    milliseconds: list[float] = field(default_factory=list)
    later: list[int] = field(default_factory=list)


@contextmanager
def changing(target: str, job: str) -> Iterator[dict[int, int]]:
    """Changes lr and a variable, ten times a second, while the context lasts. Yields when each was set, by revision."""
    done = threading.Event()
    set_at: dict[int, int] = {}

    def run() -> None:
        with grpc.insecure_channel(target) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            while not done.wait(1 / CHANGES_PER_SECOND):
                request = control_pb2.SetVariablesRequest(job=f"jobs/{job}")
                for name in ("lr", "v0"):
                    request.updates.add(variable_id=name).value.float_value = 1e-3 + len(set_at) % 7 * 1e-6
                now = time.monotonic_ns()
                set_at[stub.SetVariables(request).change.revision] = now

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield set_at
    finally:
        done.set()
        thread.join()


def ask_all(workers: list[Worker], line: str) -> int:
    """Tells every rank the same and returns what the slowest took, in nanoseconds."""
    for worker in workers:
        worker.tell(line)
    return max(worker.read() for worker in workers)


def alternate(workers: list[Worker], target: str, job: str, blocks: int, steps: int) -> Measured:
    """Times blocks of all kinds in turn, the order turning.

    Args:
        workers: The job's ranks.
        target: The daemon.
        job: Its name.
        blocks: How many of each kind.
        steps: Of each block.
    """
    measured = Measured(steps)

    def block(kind: str) -> None:
        spoken = f"{'with' if kind in ('idle', 'with') else 'without'} {steps}"
        if kind in ("without", "idle"):
            measured.blocks[kind].append(ask_all(workers, spoken))
            return
        with changing(target, job if kind == "with" else "aside") as set_at:
            measured.blocks[kind].append(ask_all(workers, spoken))
        if kind == "with":
            points, taken = workers[0].ask("taken")
            for revision, point in taken:
                if revision in set_at:  # not one that came between two blocks
                    measured.milliseconds.append((points[point] - set_at[revision]) / 1e6)
                    measured.later.append(point + 1 - bisect.bisect(points, set_at[revision]))

    ask_all(workers, f"without {steps}")
    for number in range(blocks):
        turn = number % len(KINDS)
        for kind in (*KINDS[turn:], *KINDS[:turn]):
            block(kind)
    return measured


def ranked(stack: ExitStack, target: str, job: str, size: int, folder: Path) -> list[Worker]:
    """Starts the ranks of a job and waits until all are ready."""
    meeting = folder / f"meeting-{job}"
    workers = [
        stack.enter_context(closing(Worker("trainer.py", target, job, str(rank), str(size), str(meeting))))
        for rank in range(size)
    ]
    for worker in workers:
        worker.read()
    return workers


def measure(blocks: int, steps: int, idle: int) -> tuple[dict[str, Measured], dict[str, list[float]]]:
    """Measures all jobs. Returns their blocks, and nanoseconds of idle safe points in each of five rounds."""
    jobs: dict[str, Measured] = {}
    idles: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=HERE)))
        target = stack.enter_context(servers.livetuned(folder)).target
        stack.enter_context(closing(Worker("trainer.py", target, "aside"))).read()
        with closing(Worker("trainer.py", target, "single")) as single:
            single.read()
            jobs["one process"] = alternate([single], target, "single", blocks, steps)
            for variables in (1, 10, 100):
                idles[f"one process, {variables}"] = [single.ask(f"idle {idle} {variables}") / idle for _ in range(5)]
        for size in (1, 2, 4):
            with ExitStack() as several:
                job = f"ranks-{size}"
                workers = ranked(several, target, job, size, folder)
                jobs[f"{size} gloo ranks"] = alternate(workers, target, job, blocks, max(1, steps // size))
                idles[f"{size} gloo ranks, 1"] = [ask_all(workers, f"idle {idle} 1") / idle for _ in range(5)]
    return jobs, idles


def relative(measured: Measured, kind: str, beside: str) -> str:
    """Returns the throughput of one kind of blocks as a share of another's, measured side by side."""
    pairs = zip(measured.blocks[beside], measured.blocks[kind], strict=True)
    return median_interval([other / one for other, one in pairs])


def main() -> None:
    told = arguments(__doc__)
    blocks, steps, idle = (2, 5, 1_000) if told.quick else (40, 100, 200_000)
    jobs, idles = measure(blocks, steps, idle)
    rows = [
        [
            "job", "steps a second without", "idle : without, median (95 % interval)", "10 changes a second : without",
            "10 changes a second : without, another job changed",
        ]
    ]  # fmt: skip
    delays = [["job", "changes", "set to in use, median", "95 %", "safe points later, median", "95 %"]]
    for name, measured in jobs.items():
        rate = measured.steps / statistics.median(measured.blocks["without"]) * 1e9
        ratios = [("idle", "without"), ("with", "without"), ("with", "beside")]
        rows.append([f"livetuned, {name}", f"{rate:,.0f}", *(relative(measured, *kinds) for kinds in ratios)])
        if measured.later:
            milliseconds = [statistics.median(measured.milliseconds), quantile(measured.milliseconds, 0.95)]
            later = [statistics.median(measured.later), quantile(measured.later, 0.95)]
            cells = [*(f"{value:.0f} ms" for value in milliseconds), *(f"{value:.0f}" for value in later)]
            delays.append([f"livetuned, {name}", str(len(measured.later)), *cells])
    idle_rows = [["job, variables", "idle job.step(), median of 5", "min to max"]]
    for name, times in idles.items():
        idle_rows.append([name, f"{statistics.median(times):,.0f} ns", f"{min(times):,.0f} to {max(times):,.0f} ns"])
    about = machine() | {"blocks of each": blocks, "steps a block": steps}
    results = {"machine": about, "jobs": {name: asdict(measured) for name, measured in jobs.items()}, "idle_ns": idles}
    tables = {"step-overhead": rows, "change-delay": delays, "idle-step": idle_rows}
    write_results("step_overhead", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
