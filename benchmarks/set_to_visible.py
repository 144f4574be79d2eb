"""From the call that sets a value to the value seen by the training loop; and what reads and an idle safe point cost.

Three ways, in turn, in one run: livetuned (durable), livetuned with the store's fsync off (what durability
costs), and LiveTune 0.0.8 through its own wire format. LiveTune lives in an environment of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc

import classic_wire
import servers
from common import CLASSIC_PYTHON, CLASSIC_VERSION, HERE, classic_environment, machine, parser, quantile, write_results
from livetune.v1 import control_pb2, control_pb2_grpc

Set = Callable[[float], None]

BLOCKS = 5
WARM_UP = 10


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose output is read, ended afterwards."""
    running = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(10)


def line(running: subprocess.Popen[str], start: str = "") -> str:
    """Returns the next line that begins so; LiveTune prints others in between."""
    assert running.stdout is not None
    while True:
        text = running.stdout.readline()
        if not text:
            raise RuntimeError(f"{running.args} ended")
        if text.startswith(start):
            return text.strip()


@contextmanager
def livetuned(folder: Path, *flags: str) -> Iterator[tuple[Set, subprocess.Popen[str]]]:
    endpoint = f"unix:{folder}/run/d.sock"
    serve = (sys.executable, "-m", "livetuned", "serve", "--state", str(folder / "state"), "--listen", endpoint)
    ports = ("--metrics", "127.0.0.1:0", "--job-ports", "23000-23009")
    with process(*serve, *ports, *flags) as daemon:
        line(daemon)
        with (
            process(sys.executable, str(HERE / "loops" / "ours.py"), LIVETUNE_ENDPOINT=endpoint) as loop,
            grpc.insecure_channel(endpoint) as channel,
        ):
            assert line(loop) == "ready"
            stub = control_pb2_grpc.ControlServiceStub(channel)

            def change(value: float) -> None:
                update = control_pb2.VariableUpdate(variable_id="x")
                update.value.float_value = value
                stub.SetVariables(control_pb2.SetVariablesRequest(job="jobs/bench", updates=[update]))

            yield change, loop


@contextmanager
def livetune_classic(folder: Path) -> Iterator[tuple[Set, subprocess.Popen[str]]]:
    with servers.livetune(folder) as server:
        host, port = server.target.rsplit(":", 1)
        yield lambda value: classic_wire.set_value(host, int(port), value), server.process


def measure(change: Set, loop: subprocess.Popen[str], rounds: int) -> dict[str, list[float]]:
    """Changes the value `rounds` times. Milliseconds until the loop saw it, and until the call returned."""
    results: dict[str, list[float]] = {"visible": [], "returned": []}
    pause = random.Random(0)
    for number in range(-WARM_UP, rounds):
        time.sleep(pause.uniform(0.001, 0.01))  # not in step with the loop
        value = float(number + WARM_UP + 1)
        begun = time.monotonic_ns()
        change(value)
        returned = time.monotonic_ns()
        _, said, seen = line(loop, "seen").split()
        assert float(said) == value
        if number >= 0:
            results["visible"].append((int(seen) - begun) / 1e6)
            results["returned"].append((returned - begun) / 1e6)
    return results


def measure_all(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measures every way, alone on the machine, in turn, in several blocks: the machine's speed drifts."""
    ways: dict[str, Callable[[Path], AbstractContextManager[tuple[Set, subprocess.Popen[str]]]]] = {
        "livetuned": livetuned,
        "livetuned, no fsync": lambda folder: livetuned(folder, "--unsafe-no-fsync"),
        f"LiveTune {CLASSIC_VERSION}": livetune_classic,
    }
    results: dict[str, dict[str, list[float]]] = {name: {"visible": [], "returned": []} for name in ways}
    for _ in range(BLOCKS):
        for name, way in ways.items():
            # On the disk of the checkout: fsync on a tmpfs proves nothing.
            with tempfile.TemporaryDirectory(dir=HERE) as folder, way(Path(folder)) as (change, loop):
                for kind, times in measure(change, loop, rounds // BLOCKS).items():
                    results[name][kind] += times
    return results


def read_costs(folder: Path) -> dict[str, dict[str, float]]:
    script = str(HERE / "loops" / "reads.py")
    endpoint = f"unix:{folder}/run/d.sock"
    serve = (sys.executable, "-m", "livetuned", "serve", "--state", str(folder / "state"), "--listen", endpoint)
    costs: dict[str, dict[str, float]] = {}
    with process(*serve, "--metrics", "127.0.0.1:0", "--job-ports", "23020-23029") as daemon:
        line(daemon)
        for python, which in ((str(CLASSIC_PYTHON), "classic"), (sys.executable, "ours")):
            answer = subprocess.run(
                [python, script, which], capture_output=True, text=True, check=True, timeout=300,
                env={**os.environ, "LIVETUNE_ENDPOINT": endpoint},
            )  # fmt: skip
            costs.update(json.loads(answer.stdout.splitlines()[-1]))
    return costs


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=int, default=1_000)
    told = flags.parse_args()
    rounds = 50 if told.quick else told.rounds
    classic_environment()
    raw = measure_all(rounds)
    with tempfile.TemporaryDirectory(dir=HERE) as scratch:
        costs = read_costs(Path(scratch))

    summary = {
        name: {
            kind: {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "mean": statistics.fmean(times)}
            for kind, times in kinds.items()
        }
        for name, kinds in raw.items()
    }
    peer = summary[f"LiveTune {CLASSIC_VERSION}"]["visible"]["p50"]
    attribute = costs["plain attribute"]["median"]
    tables = {
        "set-to-visible": [
            ["way", "seen by the loop p50", "p99", "ratio of p50 to LiveTune", "call returned p50", "p99", "durable"],
            *(
                [
                    name,
                    f"{kinds['visible']['p50']:.2f} ms",
                    f"{kinds['visible']['p99']:.2f} ms",
                    f"{kinds['visible']['p50'] / peer:.2f}",
                    f"{kinds['returned']['p50']:.2f} ms",
                    f"{kinds['returned']['p99']:.2f} ms",
                    {"livetuned": "yes, before it is seen"}.get(name, "no"),
                ]
                for name, kinds in summary.items()
            ),
        ],
        "reads": [
            ["what", "median", "min to max", "ratio to a plain attribute"],
            *(
                [
                    name,
                    f"{cost['median']:.1f} ns",
                    f"{cost['min']:.1f} to {cost['max']:.1f}",
                    f"{cost['median'] / attribute:.2f}",
                ]
                for name, cost in costs.items()
            ),
        ],
    }
    results = {"machine": machine(), "rounds": rounds, "latency_ms": summary, "reads_ns": costs}
    write_results("set_to_visible", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
