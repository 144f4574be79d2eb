"""A watcher of a real daemon that writes down all it receives, breaks off now and then, and resumes where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc

from livetune.v1 import control_pb2, types_pb2
from support.watch_validators import Bookmark, Broken, Event, Opened, Snapshot, Stream

CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
)
"""Back soon after a restart of the daemon."""

_LAST_SECONDS = 20.0
_REFUSALS = 3
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)


def event_of(change: types_pb2.Change, store_id: str = "") -> Event:
    """Returns a change as the validators see it."""
    parts = [
        f"{item.variable_id}: {item.old_value.float_value} -> {item.new_value.float_value}"
        for item in change.assignments
    ]
    return Event(change.revision, change.job.removeprefix("jobs/"), tuple(parts), store_id)


@dataclass(frozen=True, slots=True)
class Habits:
    """What a watcher does to itself."""

    breaks: float = 0.02
    """How probable it is that it breaks off after an item."""
    slow: float = 0.0
    """How long it may take over an item, in seconds; every tenth time it does."""


class Watcher:
    """Watches changes from a revision on, over restarts of the daemon. Other events move its position and are left out.

    Args:
        name: How violations call it.
        job: The job that it watches, ``""`` for all.
        after: Where it begins.
        up: Set while the daemon runs.
        random: When it breaks off, and for how long it sleeps.
        habits: How often.
        events: What all watchers received, each event once: thousands of them by twenty watchers are many.
    """

    def __init__(
        self,
        name: str,
        job: str,
        after: int,
        up: asyncio.Event,
        random: Random,
        habits: Habits,
        events: dict[Event, Event],
    ) -> None:
        self.stream = Stream(name, job)
        self._position = self._came = after
        self._store_id = ""
        self._up = up
        self._random = random
        self._habits = habits
        self._events = events
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, control: Any) -> None:
        """Begins to watch, by an asynchronous stub."""
        self._task = asyncio.create_task(self._run(control))

    async def finish(self, truth: Sequence[Event]) -> None:
        """Waits until the last change of the scope came, and ends. If it does not come within 20 s, that is a violation."""
        last = max((event.revision for event in self.stream.of_scope(truth)), default=0)
        try:
            await asyncio.wait_for(self._until(last), _LAST_SECONDS)
        except asyncio.TimeoutError:
            self.stream.items.append(Broken(f"revision {last} did not come within {_LAST_SECONDS} s", refused=True))
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _until(self, revision: int) -> None:
        while self._came < revision:
            self._moved.clear()
            await self._moved.wait()

    async def _run(self, control: Any) -> None:
        refusals = 0
        while refusals < _REFUSALS:
            await self._up.wait()
            self.stream.items.append(Opened(self._position, self._store_id))
            request = control_pb2.WatchRequest(
                job=f"jobs/{self.stream.job}" if self.stream.job else "",
                after_revision=self._position,
                store_id=self._store_id,
            )
            call = control.Watch(request, wait_for_ready=True)
            try:
                await self._receive(call)
                self.stream.items.append(Broken("by itself"))
            except grpc.RpcError as error:
                refused = error.code() not in _BROKEN
                refusals += refused
                self.stream.items.append(Broken(f"{error.code().name}: {error.details()}", refused))
            finally:
                call.cancel()

    async def _receive(self, call: Any) -> None:
        snapshot = False
        async for response in call:
            self._store_id = response.store_id
            kind = response.WhichOneof("item")
            if kind == "event":
                self._position = response.event.revision
                if response.event.WhichOneof("kind") == "change":
                    event = event_of(response.event.change, response.store_id)
                    self.stream.items.append(self._events.setdefault(event, event))
                    self._came = max(self._came, response.event.revision)
                    self._moved.set()
            elif kind == "snapshot_begin":
                snapshot = True
            elif kind == "bookmark":
                made = Snapshot if snapshot else Bookmark
                self.stream.items.append(made(response.bookmark.revision, response.store_id))
                self._position, snapshot = response.bookmark.revision, False
            if not snapshot and self._random.random() < self._habits.breaks:
                return
            if self._habits.slow and self._random.random() < 0.1:
                await asyncio.sleep(self._random.uniform(0, self._habits.slow))
