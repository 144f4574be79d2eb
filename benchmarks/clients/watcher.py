"""A client process that holds many watches: `watcher.py WAY TARGET COUNT`.

Prints "ready" when all of them are watching, and after each change, as soon as every watch has it, a line of JSON with
the monotonic time at which each received it, in nanoseconds. The same program whatever is watched.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent))

from etcd import rpc_pb2, rpc_pb2_grpc
from livetune.v1 import control_pb2, control_pb2_grpc
from servers import CHANNEL_OPTIONS, raise_file_limit

STREAMS_PER_CHANNEL = 250
"""Servers and clients bound how many streams one HTTP/2 connection carries."""

OPENING = 64
"""Watches that are opened at once."""


class Tally:
    """Counts who has the change, and tells when all do."""

    def __init__(self, watches: int) -> None:
        self._watches = watches
        self._times: list[int] = []
        self._watching = 0

    def watching(self) -> None:
        """One watch more is open."""
        self._watching += 1
        if self._watching == self._watches:
            say("ready")

    def received(self) -> None:
        """One watch more has the change. There is one change at a time: the next comes when everybody has this one."""
        self._times.append(time.monotonic_ns())
        if len(self._times) == self._watches:
            times, self._times = self._times, []
            say(times)


class Watches(ABC):
    """One kind of watch stream."""

    def __init__(self, target: str, tally: Tally) -> None:
        self.target = target
        self.tally = tally

    def channels(self, watches: int) -> list[grpc.aio.Channel]:
        """Returns enough connections for so many streams."""
        return [
            grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS) for _ in range(-(-watches // STREAMS_PER_CHANNEL))
        ]

    @abstractmethod
    async def follow(self, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        """Watches over a stream of its own, until it is cut. Sets `opened` when the server says that it watches."""

    async def run(self, watches: int) -> None:
        """Opens the watches and follows them until they are cut."""
        room = asyncio.Semaphore(OPENING)
        channels = self.channels(watches)

        async def one(number: int) -> None:
            opened = asyncio.Event()
            async with room:
                task = asyncio.create_task(self.follow(channels[number % len(channels)], opened))
                waiting = asyncio.create_task(opened.wait())
                await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            self.tally.watching()
            await task

        await asyncio.gather(*(one(number) for number in range(watches)))


class LivetunedWatches(Watches):
    """`Watch` of one job."""

    async def follow(self, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        async for message in stub.Watch(control_pb2.WatchRequest(job="jobs/bench")):
            if message.WhichOneof("item") == "event":
                self.tally.received()
            else:
                opened.set()


class LivetunedMultiplexed(Watches):
    """All watches of the process over one stream: `WatchMany`."""

    async def follow(self, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        raise NotImplementedError("one stream carries them all")

    async def run(self, watches: int) -> None:
        (channel,) = self.channels(1)
        stub = control_pb2_grpc.ControlServiceStub(channel)
        watch = control_pb2.WatchRequest(job="jobs/bench")
        begins = [
            control_pb2.WatchManyRequest(begin=control_pb2.WatchBegin(watch_id=number, watch=watch))
            for number in range(watches)
        ]
        async for message in stub.WatchMany(held_open(*begins)):
            event = message.response.WhichOneof("item") == "event"
            for _ in message.watch_ids:
                self.tally.received() if event else self.tally.watching()


async def held_open(*requests: Any) -> AsyncIterator[Any]:
    """Sends the requests and keeps the stream open: a watch ends when its client has closed its half."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


def create(key: bytes) -> rpc_pb2.WatchRequest:
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key))


class EtcdWatches(Watches):
    """A stream for each watch of one key."""

    async def follow(self, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        stub: Any = rpc_pb2_grpc.WatchStub(channel)
        async for message in stub.Watch(held_open(create(b"bench/v0"))):
            if message.events:
                self.tally.received()
            elif message.created:
                opened.set()


class EtcdMultiplexed(EtcdWatches):
    """All watches of the process over one stream, as etcd's own client does."""

    async def run(self, watches: int) -> None:
        (channel,) = self.channels(1)
        stub: Any = rpc_pb2_grpc.WatchStub(channel)
        async for message in stub.Watch(held_open(*(create(b"bench/v0") for _ in range(watches)))):
            if message.events:
                self.tally.received()
            elif message.created:
                self.tally.watching()


KINDS: dict[str, type[Watches]] = {
    "livetuned": LivetunedWatches,
    "livetuned-multiplexed": LivetunedMultiplexed,
    "etcd": EtcdWatches,
    "etcd-multiplexed": EtcdMultiplexed,
}


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    kind, target, count = sys.argv[1:]
    raise_file_limit()
    watches = KINDS[kind](target, Tally(int(count)))
    try:
        await watches.run(int(count))
    except grpc.RpcError as error:
        say({"refused": f"{error.code().name}: {error.details()}"})


asyncio.run(main())
