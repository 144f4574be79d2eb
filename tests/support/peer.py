"""A small JobService of a test's own, in this process: what drivers say to it, and what it makes them believe."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from livetune.v1 import job_pb2, job_pb2_grpc


class Peer(job_pb2_grpc.JobServiceServicer):
    """Answers what a test wants; keeps what it heard. Made by `peering`."""

    def __init__(self) -> None:
        self.target = ""
        self.heard: list[job_pb2.SessionRequest] = []
        self.registrations: list[job_pb2.RegisterRequest] = []
        self.say: queue.SimpleQueue[job_pb2.SessionResponse | None] = queue.SimpleQueue()
        self.refuse: grpc.StatusCode | None = None
        self.answers = True

    def Register(  # noqa: N802
        self, request: job_pb2.RegisterRequest, context: grpc.ServicerContext
    ) -> job_pb2.RegisterResponse:
        self.registrations.append(request)
        if self.refuse is not None:
            context.abort(self.refuse, "not today")
        return job_pb2.RegisterResponse(store_id="store", run=1, port=21_000, revision=1)

    def Session(  # noqa: N802
        self, requests: Iterator[job_pb2.SessionRequest], context: grpc.ServicerContext
    ) -> Iterator[job_pb2.SessionResponse]:
        say = self.say = queue.SimpleQueue()
        say.put(job_pb2.SessionResponse(opened=job_pb2.SessionOpened(store_id="store", revision=1)))
        if not context.add_callback(lambda: say.put(None)):
            return  # the other side has gone already
        threading.Thread(target=self._listen, args=(requests, say), daemon=True).start()
        while (response := say.get()) is not None:
            yield response

    def _listen(self, requests: Iterator[job_pb2.SessionRequest], say: Any) -> None:
        try:
            for request in requests:
                self.heard.append(request)
                if request.HasField("declare") and self.answers:
                    say.put(job_pb2.SessionResponse(declared=job_pb2.DeclareResult()))
                if request.HasField("end"):
                    say.put(job_pb2.SessionResponse(end_recorded=job_pb2.EndRecorded()))
        except grpc.RpcError:
            pass  # the other side has gone
        finally:
            say.put(None)

    def kinds(self) -> list[str]:
        return [request.WhichOneof("message") or "" for request in self.heard]

    def change(self, revision: int, **values: float) -> None:
        response = job_pb2.SessionResponse()
        response.change.revision = revision
        for name, value in values.items():
            response.change.assignments.add(variable_id=name).new_value.float_value = value
        self.say.put(response)


@contextmanager
def peering() -> Iterator[Peer]:
    """A peer that answers at its `target`."""
    peer = Peer()
    with futures.ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        job_pb2_grpc.add_JobServiceServicer_to_server(peer, server)
        peer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield peer
        server.stop(0).wait()
        peer.say.put(None)
