"""From the call that sets a value to the value seen by the training loop; and what reads and an idle safe point cost.

Three ways side by side, in turn, in one run: livetuned (durable), livetuned with the store's fsync off (what durability
costs), and LiveTune 0.0.8 through its own wire format. LiveTune lives in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from common import CLASSIC_PYTHON, HERE, classic_environment, machine, quantile, write_results
from livetune.v1 import control_pb2, control_pb2_grpc

Set = Callable[[float], None]


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


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    text = running.stdout.readline()
    if not text:
        raise RuntimeError(f"{running.args} ended")
    return text.strip()


@contextmanager
def livetuned(folder: Path, *flags: str) -> Iterator[tuple[Set, subprocess.Popen[str]]]:
    endpoint = f"unix:{folder}/run/d.sock"
    serve = (sys.executable, "-m", "livetuned", "serve", "--state", str(folder / "state"), "--listen", endpoint)
    ports = ("--metrics", "127.0.0.1:0", "--job-ports", "23000-23009")
    if folder.name == "memory":
        ports = ("--metrics", "127.0.0.1:0", "--job-ports", "23010-23019")
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
def livetune_classic() -> Iterator[tuple[Set, subprocess.Popen[str]]]:
    with process(str(CLASSIC_PYTHON), str(HERE / "loops" / "classic.py")) as loop:
        dictionary = int(line(loop).split()[1])

        def change(value: float) -> None:
            # The wire format has no framing: each send must arrive alone, so the client waits for each answer.
            with socket.create_connection(("127.0.0.1", dictionary), timeout=5) as connection:
                connection.sendall(b"request_type: dictionary_entry - x")
                port = int(connection.recv(64))
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"request_type: update_var")
                connection.recv(64)
                connection.sendall(repr(value).encode())
                connection.recv(64)

        yield change, loop


def measure(ways: dict[str, tuple[Set, subprocess.Popen[str]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """One change each way in turn, `rounds` times. Milliseconds to the value seen, and to the call's return."""
    results: dict[str, dict[str, list[float]]] = {name: {"visible": [], "returned": []} for name in ways}
    pause = random.Random(0)
    for number in range(1, rounds + 1):
        for name, (change, loop) in ways.items():
            time.sleep(pause.uniform(0.001, 0.01))  # not in step with the loop
            begun = time.monotonic_ns()
            change(float(number))
            returned = time.monotonic_ns()
            value, seen = line(loop).split()
            assert float(value) == number
            results[name]["visible"].append((int(seen) - begun) / 1e6)
            results[name]["returned"].append((returned - begun) / 1e6)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000)
    rounds = parser.parse_args().rounds
    classic_environment()
    with tempfile.TemporaryDirectory(dir=HERE) as scratch, ExitStack() as stack:
        ways = {}
        for name, folder, flags in (
            ("livetuned", "disk", ()),
            ("livetuned, no fsync", "memory", ("--unsafe-no-fsync",)),
        ):
            place = Path(scratch) / folder
            place.mkdir()
            ways[name] = (place, flags)
        running = {name: stack.enter_context(livetuned(place, *flags)) for name, (place, flags) in ways.items()}
        running["LiveTune 0.0.8"] = stack.enter_context(livetune_classic())
        raw = measure(running, rounds)
    with tempfile.TemporaryDirectory(dir=HERE) as scratch:
        costs = read_costs(Path(scratch))

    summary = {
        name: {
            kind: {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "mean": statistics.fmean(times)}
            for kind, times in kinds.items()
        }
        for name, kinds in raw.items()
    }
    peer = summary["LiveTune 0.0.8"]["visible"]["p50"]
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
    write_results(
        "set_to_visible", {"machine": machine(), "rounds": rounds, "latency_ms": summary, "reads_ns": costs}, tables
    )


if __name__ == "__main__":
    main()
