"""Time to ready and memory with a long history: 100 jobs of 1,000 variables, a million changes. livetuned beside etcd.

etcd holds as many keys and as many puts, 100 to a transaction. Ready is the daemon's own ready line, printed when it
serves, and etcd's /health, which is true when it answers linearizable reads. Cold: the page cache was dropped before.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import run

import grpc

import servers
from common import HERE, arguments, left_out, machine, ratio, write_results
from etcd import rpc_pb2, rpc_pb2_grpc
from history import build

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PUTS_PER_TRANSACTION = 100
TRANSACTIONS_IN_FLIGHT = 16


@dataclass
class Starts:
    """One way of starting a server, and what was measured.

    Attributes:
        name: The server, for the table.
        caches: Whether the page cache holds its files: "warm" or "cold".
        start: Starts it.
        stored: What its files take, in bytes.
        seconds: Of each start, until it was ready.
        resident: Of each start, what it had in memory when it was ready, in bytes, mapped files included.
        anonymous: The same without mapped files.
    """

    name: str
    caches: str
    start: Callable[[], AbstractContextManager[servers.Server]]
    stored: int
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)


def drop_caches() -> None:
    run(["sync"], check=True, timeout=120)
    DROP_CACHES.write_text("3\n")


def can_drop_caches() -> bool:
    try:
        drop_caches()
    except OSError as error:
        left_out(f"cold starts: the page cache can't be dropped ({error.strerror})")
        return False
    return True


def memory(pid: int) -> dict[str, int]:
    """Returns what a process has in memory, in bytes."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(value.split()[0]) * 1_024 for name, value in lines if name in ("VmRSS", "RssAnon")}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def fill(target: str, jobs: int, variables: int, changes: int) -> None:
    """Puts every key once and then as many changes into etcd."""
    async with grpc.aio.insecure_channel(target) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        keys = [b"jobs/job-%03d/variables/v%d" % (job, number) for number in range(variables) for job in range(jobs)]
        firsts = iter(range(0, len(keys) + changes, PUTS_PER_TRANSACTION))

        async def worker() -> None:
            for first in firsts:
                numbers = range(first, min(first + PUTS_PER_TRANSACTION, len(keys) + changes))
                puts = [rpc_pb2.PutRequest(key=keys[one % len(keys)], value=b"%r" % (one * 1e-3)) for one in numbers]
                await kv.Txn(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts]))

        await asyncio.gather(*(worker() for _ in range(TRANSACTIONS_IN_FLIGHT)))
        answer = await kv.Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True))
        assert len(keys) == answer.count


def measure(folder: Path, starts: int, shape: tuple[int, int, int], *, cold: bool) -> list[Starts]:
    stored = build(folder / "state", *shape)
    kinds: list[tuple[str, Callable[[], AbstractContextManager[servers.Server]], int]] = [
        ("livetuned", lambda: servers.livetuned(folder), stored)
    ]
    if servers.missing("etcd"):
        left_out("etcd is not installed")
    else:
        with servers.etcd(folder) as server:
            asyncio.run(fill(server.target, *shape))
        kinds.append(("etcd", lambda: servers.etcd(folder), size(folder / "etcd")))
    caches = ("warm", "cold") if cold and can_drop_caches() else ("warm",)
    measured = [Starts(name, cache, start, stored) for cache in caches for name, start, stored in kinds]
    for _, start, _ in kinds:
        with start():  # warms the cache, and lets the server finish what its last end left to do
            pass
    for way in (way for cache in caches for _ in range(starts) for way in measured if way.caches == cache):
        if way.caches == "cold":
            drop_caches()
        with way.start() as server:
            used = memory(server.process.pid)
        way.seconds.append(server.seconds)
        way.resident.append(used["VmRSS"])
        way.anonymous.append(used["RssAnon"])
    return measured


def row(way: Starts, measured: list[Starts]) -> list[str]:
    base = next((other for other in measured if (other.name, other.caches) == ("etcd", way.caches)), None)
    return [
        way.name,
        way.caches,
        f"{statistics.median(way.seconds):.2f} s",
        f"{min(way.seconds):.2f} to {max(way.seconds):.2f}",
        ratio(way.seconds, base.seconds) if base else "-",
        f"{statistics.median(way.resident) / 1e6:.0f} MB",
        f"{statistics.median(way.anonymous) / 1e6:.0f} MB",
        f"{way.stored / 1e6:.0f} MB",
    ]


def main() -> None:
    told = arguments(__doc__)
    starts, shape = (2, (4, 50, 2_000)) if told.quick else (5, (100, 1_000, 1_000_000))
    # On the disk of the checkout: a tmpfs has no cold start.
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        # Dropping the page cache slows down everybody on the machine: not for a quick look.
        measured = measure(Path(folder), starts, shape, cold=not told.quick)
    head = ["server", "page cache", "ready after", "min to max", "as a multiple of etcd", "resident", "of it anonymous"]
    rows = [row(way, measured) for way in measured]
    if servers.missing("etcd"):
        rows.append(["etcd", "LEFT OUT: not installed", "", "", "", "", "", ""])
    tables = {"start-up": [[*head, "files"], *rows]}
    jobs, variables, changes = shape
    about = machine() | servers.versions()
    about |= {"jobs": jobs, "variables of each": variables, "changes": changes, "starts": starts}
    results: dict[str, object] = {"machine": about}
    results["starts"] = [
        {
            "server": way.name,
            "page_cache": way.caches,
            "seconds": way.seconds,
            "resident_bytes": way.resident,
            "anonymous_bytes": way.anonymous,
            "stored_bytes": way.stored,
        }
        for way in measured
    ]
    write_results("start_up", results, tables, write=not told.no_write)


if __name__ == "__main__":
    main()
