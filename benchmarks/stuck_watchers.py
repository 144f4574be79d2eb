"""What watchers that do not read cost the others: from the call that sets a value to the healthy watchers that get it.

Three ways, in turn, in one run: nobody beside the healthy ones; frozen watchers (SIGSTOP) beside them, whose buffers
still fill; and frozen watchers whose buffers are full, so that the daemon waits for each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from common import HERE, machine, quantile, write_results
from livetune.v1 import control_pb2, control_pb2_grpc, job_pb2, job_pb2_grpc, types_pb2

JOB = "jobs/bench"
PER_PROCESS = 10
FULL_BYTES = 6_000_000
"""What is sent to each frozen watcher to fill its buffers: gRPC takes about 4 MB."""
TEXT_BYTES = 60_000

WAYS = ("alone", "frozen", "frozen, buffers full")


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line, ended afterwards, frozen or not."""
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline()
        yield running
    finally:
        running.kill()
        running.wait(10)


def declare(target: str) -> None:
    """Leaves a job with a number and a text."""
    number = types_pb2.VariableSpec(variable_id="x", type=types_pb2.VARIABLE_TYPE_FLOAT)
    number.initial.float_value = 0.0
    text = types_pb2.VariableSpec(variable_id="text", type=types_pb2.VARIABLE_TYPE_STRING)
    text.initial.string_value = ""
    with grpc.insecure_channel(target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        registered = stub.Register(job_pb2.RegisterRequest(job=JOB, instance_id="bench", world_size=1))
        opening = job_pb2.SessionOpen(
            job=JOB, instance_id="bench", after_revision=registered.revision, job_token=registered.job_token
        )
        declaration = job_pb2.Declare(
            variables=[job_pb2.VariableDeclaration(spec=spec, current=spec.initial) for spec in (number, text)]
        )
        requests = [job_pb2.SessionRequest(open=opening), job_pb2.SessionRequest(declare=declaration)]
        for _ in zip(range(2), stub.Session(iter(requests)), strict=False):
            pass


class Healthy:
    """Watchers that read, over one connection each, and the moments at which they got each revision."""

    def __init__(self, target: str, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(number)]
        self._tasks: list[asyncio.Task[None]] = []
        self._arrived: dict[int, list[float]] = {}
        self._number = number
        self._all = asyncio.Condition()

    async def start(self) -> None:
        """Opens the watches."""
        for channel in self._channels:
            stream = control_pb2_grpc.ControlServiceStub(channel).Watch(control_pb2.WatchRequest(job=JOB))
            await stream.read()
            self._tasks.append(asyncio.create_task(self._read(stream)))

    async def _read(self, stream: grpc.aio.UnaryStreamCall[object, control_pb2.WatchResponse]) -> None:
        while True:
            response = await stream.read()
            now = time.perf_counter()
            moments = self._arrived.setdefault(response.event.revision, [])
            moments.append(now)
            if len(moments) == self._number:
                async with self._all:
                    self._all.notify_all()

    async def arrivals(self, revision: int) -> list[float]:
        """Returns when each watcher got a revision, once the last one has it."""
        async with self._all:
            await asyncio.wait_for(self._all.wait_for(lambda: len(self._arrived.get(revision, ())) == self._number), 60)
        return self._arrived.pop(revision)

    async def stop(self) -> None:
        """Ends the watches and closes the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()


async def measure(target: str, way: str, healthy: int, frozen: int, changes: int) -> list[float]:
    """Returns, for each change and each healthy watcher, the milliseconds from the call to the event."""
    watchers = Healthy(target, healthy)
    await watchers.start()
    pause = random.Random(0)
    found: list[float] = []
    with ExitStack() as stack:
        if way != "alone":
            script = str(HERE / "loops" / "watches.py")
            for _ in range(frozen // PER_PROCESS):
                client = stack.enter_context(process(sys.executable, script, target, JOB, str(PER_PROCESS)))
                client.send_signal(signal.SIGSTOP)
        async with grpc.aio.insecure_channel(target) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)

            async def change(update: control_pb2.VariableUpdate) -> list[float]:
                begun = time.perf_counter()
                answer = await stub.SetVariables(control_pb2.SetVariablesRequest(job=JOB, updates=[update]))
                arrived = await watchers.arrivals(answer.change.revision)
                return [(moment - begun) * 1e3 for moment in arrived]

            if way == "frozen, buffers full":
                for number in range(FULL_BYTES // TEXT_BYTES):
                    update = control_pb2.VariableUpdate(variable_id="text")
                    update.value.string_value = f"{number:08}" * (TEXT_BYTES // 8)
                    await change(update)
            for number in range(changes):
                await asyncio.sleep(pause.uniform(0.001, 0.005))
                update = control_pb2.VariableUpdate(variable_id="x")
                update.value.float_value = float(number)
                found += await change(update)
    await watchers.stop()
    return found


async def take_turns(target: str, told: argparse.Namespace, rounds: dict[str, list[list[float]]]) -> None:
    """Measures each way in each round."""
    for number in range(told.rounds):
        for way in WAYS:
            # A watcher that is frozen for long is let go: each round freezes its own and is over before that.
            found = await measure(target, way, told.healthy, told.frozen, told.changes)
            rounds[way].append(found)
            print(f"round {number}, {way}: p99 {quantile(found, 0.99):.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each way is measured, in turn")
    parser.add_argument("--changes", type=int, default=300, help="changes in a round")
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--frozen", type=int, default=50)
    told = parser.parse_args()
    rounds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        target = f"unix:{folder}/run/d.sock"
        serve = (sys.executable, "-m", "livetuned", "serve", "--state", str(Path(folder) / "state"), "--listen", target)
        with process(*serve, "--metrics", "127.0.0.1:0", "--job-ports", "23010-23019"):
            declare(target)
            asyncio.run(take_turns(target, told, rounds))
    p99 = {way: [quantile(found, 0.99) for found in rounds[way]] for way in WAYS}
    p50 = {way: [quantile(found, 0.5) for found in rounds[way]] for way in WAYS}
    # Round by round: what else the machine does weighs on neighbours alike.
    ratios = {way: [one / base for one, base in zip(p99[way], p99["alone"], strict=True)] for way in WAYS}
    table = [["beside the healthy watchers", "p50", "p99", "p99, min to max of rounds", "ratio of p99, min to max"]]
    table += [
        [
            "nobody" if way == "alone" else f"{told.frozen} {way}",
            f"{statistics.median(p50[way]):.2f} ms",
            f"{statistics.median(p99[way]):.2f} ms",
            f"{min(p99[way]):.2f} to {max(p99[way]):.2f} ms",
            f"{statistics.median(ratios[way]):.2f}, {min(ratios[way]):.2f} to {max(ratios[way]):.2f}",
        ]
        for way in WAYS
    ]
    results: dict[str, object] = {
        "machine": machine(),
        "told": vars(told),
        "p50_ms": p50,
        "p99_ms": p99,
        "ratios": ratios,
    }
    write_results("stuck_watchers", results, {"stuck-watchers": table})


if __name__ == "__main__":
    main()
