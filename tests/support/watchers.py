"""A program that watches, over connections of their own, and may stop reading: a client that is alive and stuck.

Arguments: target, job, number of watches, and ``read`` or ``stuck``. Says ``watching`` when all have begun; a stuck one
reads nothing more until a line comes on its standard input. At the end of the input (a reading one), or once all watches
have ended (a stuck one), it writes one line of JSON for each watch: the revisions seen, and the status it ended with.
"""

from __future__ import annotations

import json
import sys
import threading

import grpc

from livetune.endpoints import CHANNEL_OPTIONS
from livetune.status import refusal_of
from livetune.v1 import control_pb2, control_pb2_grpc

target, job, number, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 2**22)]


class Watch:
    def __init__(self) -> None:
        self._channel = grpc.insecure_channel(target, options=options)
        stub = control_pb2_grpc.ControlServiceStub(self._channel)
        self._stream = stub.Watch(control_pb2.WatchRequest(job=job))
        self._revisions: list[int] = []
        self._status = self._reason = ""
        first = next(self._stream)
        self._start = first.bookmark.revision
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        try:
            for response in self._stream:
                if response.HasField("event"):
                    self._revisions.append(response.event.revision)
        except grpc.RpcError as error:
            self._status = error.code().name
            self._reason = refusal_of(error).reason

    def result(self) -> str:
        return json.dumps(
            {"start": self._start, "revisions": self._revisions, "status": self._status, "reason": self._reason}
        )


watches = [Watch() for _ in range(number)]
if how == "read":
    for watch in watches:
        watch.thread.start()
sys.stdout.write("watching\n")
sys.stdout.flush()
sys.stdin.readline()
if how == "stuck":
    for watch in watches:
        watch.thread.start()
    for watch in watches:
        watch.thread.join()
for watch in watches:
    sys.stdout.write(watch.result() + "\n")
sys.stdout.flush()
