"""One change to many watchers: from the call that makes it until the last of them has it. livetuned beside etcd.

The watchers of every kind are held by two client processes with grpc.aio; the changes of the kinds alternate, one at a
time, so that noise hits all alike. Both are measured twice: a stream for each watcher, as independent programs have,
and all watches of a process over one stream, as etcd's own client does it and as `WatchMany` allows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc

import servers
from common import HERE, arguments, left_out, machine, quantile, ratio, write_results
from etcd import rpc_pb2, rpc_pb2_grpc
from livetune.v1 import control_pb2, control_pb2_grpc
from workers import Worker

PROCESSES = 2
WARM_UP = 3


@dataclass
class Kind:
    """One kind of watch, and what was measured of it, in milliseconds for each change.

    Attributes:
        name: For the table.
        key: Its name in `clients/watcher.py`.
        workers: The processes that hold its watches.
        last: Until the last watcher had the change.
        median: Until half of the watchers had it.
        returned: Until the call that made the change came back.
        missing: Why it could not be measured.
    """

    name: str
    key: str
    workers: list[Worker] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    median: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    missing: str = ""


def kinds() -> list[Kind]:
    return [
        Kind("livetuned Watch, a stream each", "livetuned"),
        Kind("livetuned WatchMany, one stream a process", "livetuned-multiplexed"),
        Kind("etcd Watch, a stream each", "etcd"),
        Kind("etcd Watch, one stream a process", "etcd-multiplexed"),
    ]


def setter(stack: ExitStack, key: str, server: servers.Server) -> Callable[[int], None]:
    """Returns the call that makes a change, with a client of the same kind for every server."""
    channel = stack.enter_context(grpc.insecure_channel(server.target, servers.CHANNEL_OPTIONS))
    if not key.startswith("livetuned"):
        kv = rpc_pb2_grpc.KVStub(channel)
        return lambda number: kv.Put(rpc_pb2.PutRequest(key=b"bench/v0", value=b"%d" % number), timeout=60)
    control = control_pb2_grpc.ControlServiceStub(channel)

    def set_variable(number: int) -> None:
        request = control_pb2.SetVariablesRequest(job="jobs/bench")
        request.updates.add(variable_id="v0").value.float_value = number
        control.SetVariables(request, timeout=60)

    return set_variable


def open_watches(stack: ExitStack, kind: Kind, server: servers.Server | None, watchers: int) -> None:
    """Opens the watches in several processes, or notes why not."""
    if server is None:
        kind.missing = "not installed"
        return
    share = watchers // PROCESSES
    kind.workers = [
        stack.enter_context(closing(Worker("watcher.py", kind.key, server.target, str(share))))
        for _ in range(PROCESSES)
    ]
    answers = [worker.read() for worker in kind.workers]
    refusals = [answer for answer in answers if answer != "ready"]
    if refusals:
        kind.workers = []
        kind.missing = str(refusals[0])
        left_out(f"{kind.name}, {watchers} watchers: {refusals[0]}")


def measure(watchers: int, changes: int) -> list[Kind]:
    """Makes the changes of all kinds in turn and returns what was measured."""
    measured = kinds()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=HERE)))
        running = {}
        # A daemon for each kind, and a member: one change must not reach the watches of both.
        for key in ("livetuned", "livetuned-multiplexed"):
            (folder / key).mkdir()
            running[key] = stack.enter_context(servers.livetuned(folder / key))
            servers.declare(running[key].target, "bench", 1)
        if servers.missing("etcd"):
            left_out("etcd is not installed")
        else:
            for key in ("etcd", "etcd-multiplexed"):
                (folder / key).mkdir()
                running[key] = stack.enter_context(servers.etcd(folder / key))
        change = {key: setter(stack, key, server) for key, server in running.items()}
        for kind in measured:
            open_watches(stack, kind, running.get(kind.key), watchers)
        for number in range(-WARM_UP, changes):
            for kind in measured:
                if kind.workers:
                    one_change(kind, change[kind.key], number + WARM_UP + 1, keep=number >= 0)
    return measured


def one_change(kind: Kind, change: Callable[[int], None], number: int, *, keep: bool) -> None:
    begun = time.monotonic_ns()
    change(number)
    returned = time.monotonic_ns()
    seen = sorted(at for worker in kind.workers for at in worker.read())
    if keep:
        kind.last.append((seen[-1] - begun) / 1e6)
        kind.median.append((seen[len(seen) // 2] - begun) / 1e6)
        kind.returned.append((returned - begun) / 1e6)


def row(watchers: int, kind: Kind, base: Kind) -> list[str]:
    if not kind.last:
        return [f"{watchers:,}", kind.name, f"LEFT OUT: {kind.missing}", "", "", "", ""]
    return [
        f"{watchers:,}",
        kind.name,
        f"{statistics.median(kind.last):.1f} ms",
        f"{max(kind.last):.1f} ms",
        f"{statistics.median(kind.median):.1f} ms",
        f"{statistics.median(kind.returned):.1f} ms",
        ratio(kind.last, base.last),
    ]


def main() -> None:
    told = arguments(__doc__)
    sizes, changes = ((10, 50), 5) if told.quick else ((100, 1_000, 5_000), 30)
    servers.raise_file_limit()
    by_size = {watchers: measure(watchers, changes) for watchers in sizes}
    last_head = "last as a multiple of etcd's with a stream each, median of changes (min to max)"
    tables = {
        "fan-out": [
            ["watchers", "what", "last has it, p50", "worst", "half have it, p50", "call returned, p50", last_head],
            *(row(watchers, kind, measured[2]) for watchers, measured in by_size.items() for kind in measured),
        ]
    }
    results = {
        "machine": machine() | servers.versions() | {"changes for each size": changes, "client processes": PROCESSES},
        "milliseconds": {
            str(watchers): {
                kind.name: {
                    "last": kind.last,
                    "half": kind.median,
                    "returned": kind.returned,
                    "last_p99": quantile(kind.last, 0.99) if kind.last else None,
                    "left_out": kind.missing,
                }
                for kind in measured
            }
            for watchers, measured in by_size.items()
        },
    }
    write_results("fan_out", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
