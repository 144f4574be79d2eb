"""Watches what a daemon holds while it works for long: memory and descriptors, and how they grow with what it has done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psutil

from livetune.v1 import control_pb2, control_pb2_grpc
from support.daemon import Daemon

IN_FLIGHT = 512
PER_MESSAGE = 64
WATCHES_PER_CHANNEL = 50


@dataclass
class Samples:
    """What a process held, by how much it had done."""

    process: psutil.Process
    done: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def take(self, done: int) -> None:
        self.done.append(done)
        self.memory.append(self.process.memory_info().rss)
        self.descriptors.append(self.process.num_fds())

    def bytes_each(self) -> float:
        """Returns how the memory grows with each thing done, by least squares, in bytes. The first third is warming up."""
        return slope(self.done[len(self.done) // 3 :], self.memory[len(self.memory) // 3 :])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the slope of the line that fits the points best."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - middle_x) ** 2 for one in x)
    return sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True)) / spread


def change_often(daemon: Daemon, job: str, changes: int, samples: Samples, steps: int) -> None:
    """Makes changes over one stream, many in flight, and takes samples meanwhile."""
    room = threading.Semaphore(IN_FLIGHT)
    answered = 0

    def requests() -> Iterator[control_pb2.StreamChangesRequest]:
        for start in range(0, changes, PER_MESSAGE):
            message = control_pb2.StreamChangesRequest()
            for tag in range(start, min(start + PER_MESSAGE, changes)):
                room.acquire()
                change = message.changes.add(tag=tag)
                change.set.job = f"jobs/{job}"
                change.set.updates.add(variable_id="x").value.float_value = float(tag)
            yield message

    last_revision = 0
    with daemon.control() as control:
        for response in control.StreamChanges(requests()):
            for answer in response.answers:
                assert not answer.HasField("error"), answer.error
                assert answer.change.revision > last_revision  # one job's changes are answered in order
                last_revision = answer.change.revision
                room.release()
                answered += 1
                if answered * steps // changes > (answered - 1) * steps // changes:
                    samples.take(answered)
    assert changes == answered


def watch_often(daemon: Daemon, job: str, cycles: int, samples: Samples, steps: int, threads: int = 4) -> None:
    """Opens and closes watches, many over each of ever new connections, and takes samples meanwhile."""
    with daemon.control() as control:
        after = control.GetJob(control_pb2.GetJobRequest(name=f"jobs/{job}")).job.revision - 1
    todo = deque(range(1, cycles + 1))
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while todo and not failed:
                with daemon.channel() as channel:
                    stub = control_pb2_grpc.ControlServiceStub(channel)
                    for _ in range(WATCHES_PER_CHANNEL):
                        try:
                            number = todo.popleft()
                        except IndexError:
                            return
                        _watch(stub, job, after)
                        if number * steps // cycles > (number - 1) * steps // cycles:
                            samples.take(number)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is seen
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]


def _watch(stub: control_pb2_grpc.ControlServiceStub, job: str, after: int) -> None:
    stream = stub.Watch(control_pb2.WatchRequest(job=f"jobs/{job}", after_revision=after))
    next(stream)
    next(stream)  # the first event: its cursor has read, and waits for more
    stream.cancel()
