"""What a durable change costs: livetuned beside etcd, Redis and LiveTune, each with a client, in alternating rounds.

Latency of changes made one after the other, and changes a second with 64 under way. Every server is a process with its
data on the disk of the checkout; every way to change something has a client process of its own. Nobody watches.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import servers
from common import (
    CLASSIC_VERSION,
    HERE,
    arguments,
    classic_environment,
    left_out,
    machine,
    quantile,
    ratio,
    write_results,
)
from workers import Worker

WINDOW = 64
VARIABLES = 100


@dataclass
class Way:
    """One way to change something, and what was measured of it.

    Attributes:
        name: The way, for the table.
        client: What kind of client, for the table.
        key: Its name in `clients/setter.py`.
        durable: Whether the change is on disk when it is answered.
        baseline: `key` of the way of etcd with the same kind of client.
        sequential: Whether it is measured one after the other.
        flight: Whether it is measured with many under way.
        unix: Whether it goes over the Unix socket.
        times: Of each round, the nanoseconds of each change.
        rates: Of each round, changes a second with many under way.
        missing: Why it could not be measured.
    """

    name: str
    client: str
    key: str
    durable: bool
    baseline: str
    sequential: bool = True
    flight: bool = False
    unix: bool = False
    times: list[list[int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def server(self) -> str:
        """The server it talks to."""
        return self.key.split("-", 1)[0]


def ways() -> list[Way]:
    return [
        Way("livetuned SetVariables", "sync", "livetuned-sync", True, "etcd-sync"),
        Way("livetuned SetVariables, Unix socket", "sync", "livetuned-sync", True, "etcd-sync", unix=True),
        Way("etcd Put", "sync", "etcd-sync", True, "etcd-sync"),
        Way("livetuned SetVariables", "asyncio", "livetuned-aio", True, "etcd-aio", flight=True),
        Way("livetuned StreamChanges", "asyncio", "livetuned-stream", True, "etcd-aio", flight=True),
        Way("etcd Put", "asyncio", "etcd-aio", True, "etcd-aio", flight=True),
        Way("etcd Txn of all that waits", "asyncio", "etcd-txn", True, "etcd-aio", sequential=False, flight=True),
        Way("Redis SET, appendfsync always", "socket", "redis-set", True, "etcd-sync", flight=True),
        Way("Redis PUBLISH", "socket", "redis-publish", False, "etcd-sync", flight=True),
        Way(f"LiveTune {CLASSIC_VERSION}", "socket", "livetune-tcp", False, "etcd-sync"),
    ]


def start_servers(stack: ExitStack, folder: Path) -> dict[str, servers.Server]:
    """Starts what is installed, and says what is not."""
    running = {"livetuned": stack.enter_context(servers.livetuned(folder))}
    servers.declare(running["livetuned"].target, "bench", VARIABLES)
    for name, program, start in (("etcd", "etcd", servers.etcd), ("redis", "redis-server", servers.redis)):
        if servers.missing(program):
            left_out(f"{name}: {program} is not installed")
        else:
            running[name] = stack.enter_context(start(folder))
    try:
        classic_environment()
        running["livetune"] = stack.enter_context(servers.livetune(folder, "idle"))
    except (subprocess.CalledProcessError, RuntimeError) as error:
        left_out(f"LiveTune: {error}")
    return running


def connect(stack: ExitStack, measured: list[Way], running: dict[str, servers.Server]) -> dict[int, Worker]:
    """Starts a client for each way, by its place in the list; what can't be measured says why."""
    clients: dict[int, Worker] = {}
    for place, way in enumerate(measured):
        server = running.get(way.server)
        if server is None:
            way.missing = "not installed"
            continue
        client = stack.enter_context(closing(Worker("setter.py", way.key, server.unix if way.unix else server.target)))
        answer = client.read()
        if answer == "ready":
            clients[place] = client
        else:
            way.missing = str(answer)
            left_out(f"{way.name}: {answer}")
    return clients


def measure(rounds: int, sequential: int, flight: int, warm_up: int) -> list[Way]:
    """Measures every way in every round; the order turns from round to round."""
    measured = ways()
    with ExitStack() as stack:
        # On the disk of the checkout: fsync on a tmpfs proves nothing.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=HERE)))
        clients = connect(stack, measured, start_servers(stack, folder))
        places = list(clients)
        for number in range(rounds):
            turn = number % len(places)
            for place in places[turn:] + places[:turn]:
                way, client = measured[place], clients[place]
                client.ask(f"sequential {warm_up}")
                if way.sequential:
                    way.times.append(client.ask(f"sequential {sequential}"))
                if way.flight:
                    client.ask(f"flight {warm_up * 4} {WINDOW}")
                    way.rates.append(flight / client.ask(f"flight {flight} {WINDOW}") * 1e9)
    return measured


def baseline_of(way: Way, measured: list[Way]) -> Way:
    return next(other for other in measured if other.key == way.baseline)


def latency_row(way: Way, measured: list[Way]) -> list[str]:
    durable = "yes" if way.durable else "no"
    if not way.times:
        return [way.name, way.client, durable, f"LEFT OUT: {way.missing}", "", "", ""]
    times = [time for part in way.times for time in part]
    medians = [statistics.median(part) for part in way.times]
    base = [statistics.median(part) for part in baseline_of(way, measured).times]
    return [
        way.name,
        way.client,
        durable,
        f"{statistics.median(times) / 1e6:.2f} ms",
        f"{quantile(times, 0.99) / 1e6:.2f} ms",
        f"{1e9 / statistics.fmean(times):,.0f}",
        ratio(medians, base),
    ]


def rate_row(way: Way, measured: list[Way]) -> list[str]:
    if not way.rates:
        return [way.name, way.client, f"LEFT OUT: {way.missing}", "", ""]
    base = next(other for other in measured if other.key == "etcd-aio").rates
    return [
        way.name,
        way.client,
        f"{statistics.median(way.rates):,.0f}",
        f"{min(way.rates):,.0f} to {max(way.rates):,.0f}",
        ratio(way.rates, base),
    ]


def summary(way: Way) -> dict[str, object]:
    result: dict[str, object] = {"client": way.client, "durable": way.durable, "left_out": way.missing}
    if way.times:
        times = [time for part in way.times for time in part]
        result["latency_us"] = {
            "p50": statistics.median(times) / 1e3,
            "p99": quantile(times, 0.99) / 1e3,
            "mean": statistics.fmean(times) / 1e3,
            "p50_of_rounds": [statistics.median(part) / 1e3 for part in way.times],
            "changes": len(times),
        }
    if way.rates:
        result["changes_a_second"] = way.rates
    return result


def main() -> None:
    told = arguments(__doc__)
    rounds, sequential, flight, warm_up = (2, 50, 256, 10) if told.quick else (20, 400, 2_000, 40)
    measured = measure(rounds, sequential, flight, warm_up)
    latency_head = ["what", "client", "on disk when it answers", "p50", "p99", "changes a second"]
    tables = {
        "durable-set": [
            [*latency_head, "p50 as a multiple of etcd's Put, median of rounds (min to max)"],
            *(latency_row(way, measured) for way in measured if way.sequential),
        ],
        "durable-set-throughput": [
            ["what", "client", "changes a second", "min to max", "as a multiple of etcd's Put, median of rounds"],
            *(rate_row(way, measured) for way in measured if way.flight),
        ],
    }
    about = machine() | servers.versions()
    about |= {"rounds": rounds, "sequential changes": rounds * sequential, "changes in flight": rounds * flight}
    results = {"machine": about, "ways": {f"{way.name} ({way.client})": summary(way) for way in measured}}
    write_results("durable_set", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
