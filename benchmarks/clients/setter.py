"""A client process that changes values in one way and times it: `setter.py WAY TARGET`.

Told by lines on stdin, answers each with a line of JSON on stdout: `sequential N` with the nanoseconds of each of N
changes made one after the other; `flight N WINDOW` with the nanoseconds that N changes took, WINDOW of them under way.
A process for each way: so that the threads of one client library are no load on another.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent))

import classic_wire
from etcd import rpc_pb2, rpc_pb2_grpc
from livetune.v1 import control_pb2, control_pb2_grpc
from servers import CHANNEL_OPTIONS

JOB = "jobs/bench"
UNSUPPORTED = "UNIMPLEMENTED"


PID = os.getpid()


def fill(request: control_pb2.SetVariablesRequest, number: int, slot: int) -> None:
    """Writes a change of one of the 100 variables, with a request id as ltctl sends: a retry would be harmless."""
    request.job = JOB
    request.request_id = f"{PID}-{number}"
    item = request.updates.add()
    item.variable_id = f"v{slot}"
    item.value.float_value = number * 1e-6


def update(number: int, slot: int) -> control_pb2.SetVariablesRequest:
    """The change in a message of its own."""
    request = control_pb2.SetVariablesRequest()
    fill(request, number, slot)
    return request


def put(number: int, slot: int) -> rpc_pb2.PutRequest:
    """The same as a key of etcd."""
    return rpc_pb2.PutRequest(key=b"bench/v%d" % slot, value=b"%r" % (number * 1e-6))


class Way(ABC):
    """One way to change a value. The asynchronous ones implement `change`, the others `change_now`."""

    def __init__(self, target: str) -> None:
        self.target = target

    @abstractmethod
    async def open(self) -> None:
        """Connects."""

    @abstractmethod
    async def change(self, number: int, slot: int) -> None:
        """Changes variable number `slot`, and returns when the server says that it is done."""

    async def change_alone(self, number: int, slot: int) -> None:
        """As `change`, while nothing else is under way."""
        await self.change(number, slot)

    async def sequential(self, numbers: range) -> list[int]:
        """Returns the nanoseconds of each change, made one after the other."""
        times = []
        for number in numbers:
            begun = time.perf_counter_ns()
            await self.change_alone(number, number % 64)
            times.append(time.perf_counter_ns() - begun)
        return times

    async def flight(self, numbers: range, window: int) -> int:
        """Returns the nanoseconds that the changes took, `window` of them under way."""
        left = iter(numbers)

        async def worker(slot: int) -> None:
            for number in left:
                await self.change(number, slot)

        begun = time.perf_counter_ns()
        await asyncio.gather(*(worker(slot) for slot in range(window)))
        return time.perf_counter_ns() - begun


class SyncWay(Way):
    """A way that blocks its thread, as a script does."""

    @abstractmethod
    def change_now(self, number: int, slot: int) -> None:
        """Changes variable number `slot`, and returns when the server says that it is done."""

    async def change(self, number: int, slot: int) -> None:
        self.change_now(number, slot)

    async def sequential(self, numbers: range) -> list[int]:
        times = []
        for number in numbers:
            begun = time.perf_counter_ns()
            self.change_now(number, number % 64)
            times.append(time.perf_counter_ns() - begun)
        return times


class LivetunedSync(SyncWay):
    """`SetVariables` with the synchronous client."""

    async def open(self) -> None:
        self._stub = control_pb2_grpc.ControlServiceStub(grpc.insecure_channel(self.target, CHANNEL_OPTIONS))

    def change_now(self, number: int, slot: int) -> None:
        self._stub.SetVariables(update(number, slot))


class EtcdSync(SyncWay):
    """`Put` with the synchronous client."""

    async def open(self) -> None:
        self._stub = rpc_pb2_grpc.KVStub(grpc.insecure_channel(self.target, CHANNEL_OPTIONS))

    def change_now(self, number: int, slot: int) -> None:
        self._stub.Put(put(number, slot))


class LivetunedAio(Way):
    """`SetVariables` with the asyncio client."""

    async def open(self) -> None:
        self._stub = control_pb2_grpc.ControlServiceStub(grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS))

    async def change(self, number: int, slot: int) -> None:
        await self._stub.SetVariables(update(number, slot))


class EtcdAio(Way):
    """`Put` with the asyncio client."""

    async def open(self) -> None:
        self._stub = rpc_pb2_grpc.KVStub(grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS))

    async def change(self, number: int, slot: int) -> None:
        await self._stub.Put(put(number, slot))


class Batched(Way):
    """A client that sends together what waits. Nothing is held back: what comes while it sends goes with the next."""

    async def open(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._bell = asyncio.Event()
        self._sender = asyncio.create_task(self._send_all())

    async def change(self, number: int, slot: int) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, slot, answer))
        self._bell.set()
        await answer

    async def _send_all(self) -> None:
        batch: list[tuple[int, int, asyncio.Future[None]]] = []
        try:
            while True:
                await self._bell.wait()
                self._bell.clear()
                batch, self._waiting = self._waiting, []
                await self.send(batch)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            for _, _, answer in batch + self._waiting:
                if not answer.done():
                    answer.set_exception(error)

    @abstractmethod
    async def send(self, batch: list[tuple[int, int, asyncio.Future[None]]]) -> None:
        """Sends the changes; their futures are done when they are answered."""


class LivetunedStream(Batched):
    """`StreamChanges`: one stream, a message for all that waits, answers by tag.

    Changes made one after the other have a stream of their own, on which each is written and its answer read.
    """

    async def open(self) -> None:
        await super().open()
        stub = control_pb2_grpc.ControlServiceStub(grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS))
        self._one_by_one: Any = stub.StreamChanges()
        self._stream: Any = stub.StreamChanges()
        self._tag = 0
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._reader = asyncio.create_task(self._receive())

    async def change_alone(self, number: int, slot: int) -> None:
        message = control_pb2.StreamChangesRequest()
        change = message.changes.add()
        change.tag = number
        fill(change.set, number, slot)
        await self._one_by_one.write(message)
        (answer,) = (await self._one_by_one.read()).answers
        if answer.tag != number or answer.HasField("error"):
            raise RuntimeError(f"change {number} is answered by {answer}")

    async def send(self, batch: list[tuple[int, int, asyncio.Future[None]]]) -> None:
        message = control_pb2.StreamChangesRequest()
        for number, slot, answer in batch:
            self._tag += 1
            self._answers[self._tag] = answer
            change = message.changes.add()
            change.tag = self._tag
            fill(change.set, number, slot)
        await self._stream.write(message)

    async def _receive(self) -> None:
        try:
            async for message in self._stream:
                for item in message.answers:
                    answer = self._answers.pop(item.tag)
                    if item.HasField("error"):
                        answer.set_exception(RuntimeError(item.error.message))
                    else:
                        answer.set_result(None)
            raise RuntimeError("the stream ended")
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)


class EtcdTransactions(Batched):
    """What waits as one `Txn`, etcd's way to batch: all or nothing and one revision, not changes of their own."""

    async def open(self) -> None:
        await super().open()
        self._stub = rpc_pb2_grpc.KVStub(grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS))

    async def send(self, batch: list[tuple[int, int, asyncio.Future[None]]]) -> None:
        operations = [rpc_pb2.RequestOp(request_put=put(number, slot)) for number, slot, _ in batch]
        await self._stub.Txn(rpc_pb2.TxnRequest(success=operations))
        for _, _, answer in batch:
            answer.set_result(None)


class Redis(SyncWay):
    """One connection and Redis's own protocol; with several under way they are pipelined."""

    command = b"SET"

    async def open(self) -> None:
        host, port = self.target.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _command(self, number: int, slot: int) -> bytes:
        words = (self.command, b"bench/v%d" % slot, b"%r" % (number * 1e-6))
        return b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def _read(self, answers: int) -> None:
        # Every answer to the two commands is one line, +OK or :0.
        data = b""
        while data.count(b"\r\n") < answers:
            data += self._socket.recv(65_536)
        if b"-" in data:
            raise RuntimeError(data.decode())

    def change_now(self, number: int, slot: int) -> None:
        self._socket.sendall(self._command(number, slot))
        self._read(1)

    async def flight(self, numbers: range, window: int) -> int:
        begun = time.perf_counter_ns()
        for first in range(numbers.start, numbers.stop, window):
            chunk = range(first, min(first + window, numbers.stop))
            self._socket.sendall(b"".join(self._command(number, number % window) for number in chunk))
            self._read(len(chunk))
        return time.perf_counter_ns() - begun


class RedisPublish(Redis):
    """PUBLISH to a channel nobody listens to: nothing is stored."""

    command = b"PUBLISH"


class LiveTune(SyncWay):
    """LiveTune's own wire format: two connections for each change."""

    async def open(self) -> None:
        host, port = self.target.rsplit(":", 1)
        self._dictionary = (host, int(port))

    def change_now(self, number: int, slot: int) -> None:
        del slot  # it has one variable
        classic_wire.set_value(*self._dictionary, number * 1e-6)


WAYS: dict[str, type[Way]] = {
    "livetuned-sync": LivetunedSync,
    "livetuned-aio": LivetunedAio,
    "livetuned-stream": LivetunedStream,
    "etcd-sync": EtcdSync,
    "etcd-aio": EtcdAio,
    "etcd-txn": EtcdTransactions,
    "redis-set": Redis,
    "redis-publish": RedisPublish,
    "livetune-tcp": LiveTune,
}


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    name, target = sys.argv[1:]
    way = WAYS[name](target)
    await way.open()
    number = 1
    try:
        await way.change(0, 0)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        say(UNSUPPORTED)
        return
    say("ready")
    # Nothing else happens while it waits for a line: reading it may block the loop, but not while answers are due.
    for line in sys.stdin:
        what, *arguments = line.split()
        count = int(arguments[0])
        numbers = range(number, number + count)
        number += count
        if what == "sequential":
            say(await way.sequential(numbers))
        else:
            say(await way.flight(numbers, int(arguments[1])))


asyncio.run(main())
