"""What tuning costs a training loop: steps a second with livetune and ten changes a second, beside the loop without.

A small network in one process, and over 1, 2 and 4 gloo ranks; blocks with and without alternate within each process.
And the idle safe point alone, with 1, 10 and 100 variables.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc

import servers
from common import HERE, arguments, machine, ratio, write_results
from livetune.v1 import control_pb2, control_pb2_grpc
from workers import Worker

CHANGES_PER_SECOND = 10

Pairs = tuple[list[int], list[int]]
"""Nanoseconds of each block without, and of each block with."""


@contextmanager
def changing(target: str, job: str) -> Iterator[list[int]]:
    """Changes lr and a variable, ten times a second, while the context lasts. Yields the revisions as they come."""
    done = threading.Event()
    revisions: list[int] = []

    def run() -> None:
        with grpc.insecure_channel(target) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            while not done.wait(1 / CHANGES_PER_SECOND):
                request = control_pb2.SetVariablesRequest(job=f"jobs/{job}")
                for name in ("lr", "v0"):
                    request.updates.add(variable_id=name).value.float_value = 1e-3 + len(revisions) % 7 * 1e-6
                revisions.append(stub.SetVariables(request).change.revision)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield revisions
    finally:
        done.set()
        thread.join()


def ask_all(workers: list[Worker], line: str) -> int:
    """Tells every rank the same and returns what the slowest took, in nanoseconds."""
    for worker in workers:
        worker.tell(line)
    return max(worker.read() for worker in workers)


def pairs(workers: list[Worker], target: str, job: str, blocks: int, steps: int) -> Pairs:
    """Times blocks without and with, in turn, the order turning. Nanoseconds of each block."""
    without: list[int] = []
    tuned: list[int] = []

    def block_with() -> None:
        with changing(target, job):
            tuned.append(ask_all(workers, f"with {steps}"))

    ask_all(workers, f"without {steps}")
    for number in range(blocks):
        if number % 2:
            block_with()
        without.append(ask_all(workers, f"without {steps}"))
        if not number % 2:
            block_with()
    return without, tuned


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


def measure(
    blocks: int, steps: int, idle: int
) -> tuple[dict[str, tuple[list[int], list[int]]], dict[int, list[float]]]:
    throughput: dict[str, tuple[list[int], list[int]]] = {}
    idles: dict[int, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=HERE)))
        target = stack.enter_context(servers.livetuned(folder)).target
        with closing(Worker("trainer.py", target, "single")) as single:
            single.read()
            throughput["one process"] = pairs([single], target, "single", blocks, steps)
            for variables in (1, 10, 100):
                idles[variables] = [single.ask(f"idle {idle} {variables}") / idle for _ in range(5)]
        for size in (1, 2, 4):
            with ExitStack() as several:
                job = f"ranks-{size}"
                workers = ranked(several, target, job, size, folder)
                throughput[f"{size} gloo ranks"] = pairs(workers, target, job, blocks, max(1, steps // size))
    return throughput, idles


def main() -> None:
    told = arguments(__doc__)
    blocks, steps, idle = (2, 5, 1_000) if told.quick else (20, 100, 200_000)
    throughput, idles = measure(blocks, steps, idle)
    rows = [
        [
            "job",
            "steps a second without",
            "with, and 10 changes a second",
            "with : without, median of pairs (min to max)",
        ]
    ]
    for name, (without, tuned) in throughput.items():
        count = steps if name == "one process" else max(1, steps // int(name.split()[0]))
        rates = [count / statistics.median(block) * 1e9 for block in (without, tuned)]
        rows.append([f"livetuned, {name}", *(f"{rate:,.0f}" for rate in rates), ratio(without, tuned)])
    idle_rows = [["variables", "idle job.step(), median of 5", "min to max"]]
    for variables, times in idles.items():
        spread = f"{min(times):.0f} to {max(times):.0f} ns"
        idle_rows.append([str(variables), f"{statistics.median(times):.0f} ns", spread])
    about = machine() | {"blocks of each": blocks, "steps a block": steps}
    results = {
        "machine": about,
        "block_ns": {name: {"without": without, "with": tuned} for name, (without, tuned) in throughput.items()},
        "idle_ns": {str(variables): times for variables, times in idles.items()},
    }
    tables = {"step-overhead": rows, "idle-step": idle_rows}
    write_results("step_overhead", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
