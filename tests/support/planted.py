"""The daemon with something planted in it, named by the first argument: see `PLANTS`. The rest is the daemon's own."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from livetuned.domain import limits
from livetuned.domain.records import Draft, Record


def stall_seconds(value: str) -> None:
    """A stream that nobody reads is given up after so long: the test need not wait half a minute."""
    limits.WATCH_STALL_SECONDS = float(value)


def tick_seconds(value: str) -> None:
    """Retention looks so often: the test need not wait a minute."""
    from livetuned.service import retention

    retention.TICK_SECONDS = float(value)


def wall_clock(_: str) -> None:
    """Leases and ages are counted by the wall clock."""
    from livetuned.service import clock

    clock.monotonic = time.time


def no_ping_timeout(_: str) -> None:
    """Keepalive without the time-out of its own that a ping has: a frozen peer is held for more than a minute."""
    from livetuned.transport import server

    server._OPTIONS[:] = [option for option in server._OPTIONS if option[0] != "grpc.http2.ping_timeout_ms"]


def queue_per_watcher(_: str) -> None:
    """Every watcher has a queue of messages of its own, without a limit: what is not read is kept."""
    from livetuned.transport import control

    watch = control.watch

    async def queued(*arguments: Any) -> AsyncIterator[Any]:
        waiting: asyncio.Queue[Any] = asyncio.Queue()

        async def fill() -> None:
            async for message in watch(*arguments):
                waiting.put_nowait(bytes(bytearray(message)) if isinstance(message, bytes) else message)

        filling = asyncio.create_task(fill())
        try:
            while True:
                yield await waiting.get()
        finally:
            filling.cancel()

    control.watch = queued


def acknowledge_when_full(_: str) -> None:
    """What had no room on the disk is acknowledged all the same."""
    from livetuned.store.interface import StoreFullError
    from livetuned.store.sqlite import SqliteStore

    append = SqliteStore._append

    def careless(self: SqliteStore, drafts: Sequence[Draft]) -> list[Record]:
        try:
            return append(self, drafts)
        except StoreFullError:
            sys.stderr.write("acknowledged without room\n")
            records = [
                Record(self._written + number, draft.time_us, draft.job, draft.payload)
                for number, draft in enumerate(drafts, 1)
            ]
            self._written = records[-1].revision
            return records

    SqliteStore._append = careless  # type: ignore[method-assign]


def ignore_failed_commits(_: str) -> None:
    """A commit that failed is taken for one that did not."""
    from livetuned.store.sqlite import SqliteStore

    def ignore(self: SqliteStore, error: Exception) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    SqliteStore._roll_back = ignore  # type: ignore[assignment]


def descriptors_per_change(value: str) -> None:
    """Each commit opens so many files: where no descriptor is left, changes fail.

    More than one: gRPC gives a connection up that it could not serve, and tries again after a second; until then one
    descriptor is free in a process that has none.
    """
    from contextlib import ExitStack

    from livetuned.store.sqlite import SqliteStore

    append = SqliteStore._append

    def opening(self: SqliteStore, drafts: Sequence[Draft]) -> list[Record]:
        with ExitStack() as files:
            for _ in range(int(value)):
                files.enter_context(self._path.open("rb"))
            return append(self, drafts)

    SqliteStore._append = opening  # type: ignore[method-assign]


def bare_handler(_: str) -> None:
    """A handler that looks up what is not there, and nothing between it and the client."""
    from livetuned.transport import interceptor
    from livetuned.transport.control import ControlService

    async def undo(self: ControlService, request: Any, context: Any) -> Any:
        return {}[request.revision]

    async def bare(self: object, continuation: Any, details: Any) -> Any:
        return await continuation(details)

    ControlService.UndoChange = undo  # type: ignore[method-assign]
    interceptor.ErrorInterceptor.intercept_service = bare  # type: ignore[method-assign]


def leaky_hub(value: str) -> None:
    """The hub keeps every cursor that it ever gave, each with as many bytes as it may hold of a page of records."""
    from livetuned.service.hub import Hub

    cursor = Hub.cursor
    kept: list[object] = []

    def leaking(self: Hub, *arguments: Any, **options: Any) -> Any:
        given = cursor(self, *arguments, **options)
        kept.append((given, bytes(int(value))))
        return given

    Hub.cursor = leaking  # type: ignore[method-assign]


def shared_store(_: str) -> None:
    """The store's file is opened without holding it: two daemons may have it at once."""
    import sqlite3

    class Sharing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("locking_mode = EXCLUSIVE", "locking_mode = NORMAL"), *parameters)

    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **options: connect(*arguments, **{**options, "factory": Sharing})


PLANTS: dict[str, Callable[[str], None]] = {
    "stall_seconds": stall_seconds,
    "tick_seconds": tick_seconds,
    "wall_clock": wall_clock,
    "no_ping_timeout": no_ping_timeout,
    "queue_per_watcher": queue_per_watcher,
    "acknowledge_when_full": acknowledge_when_full,
    "leaky_hub": leaky_hub,
    "shared_store": shared_store,
    "bare_handler": bare_handler,
    "descriptors_per_change": descriptors_per_change,
    "ignore_failed_commits": ignore_failed_commits,
}

if __name__ == "__main__":
    for plant in sys.argv.pop(1).split(","):
        name, _, value = plant.partition("=")
        PLANTS[name](value)
    from livetuned.daemon.cli import main

    main(prog_name="livetuned")
