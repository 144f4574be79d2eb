"""Watches a job over connections of their own and reads what comes, until it is frozen or ended."""

import sys
import threading

import grpc

from livetune.endpoints import CHANNEL_OPTIONS
from livetune.v1 import control_pb2, control_pb2_grpc

target, job, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


def drain(stream: object) -> None:
    for _ in stream:  # type: ignore[attr-defined]
        pass


for _ in range(number):
    channel = grpc.insecure_channel(target, options=options)
    stream = control_pb2_grpc.ControlServiceStub(channel).Watch(control_pb2.WatchRequest(job=job))
    next(stream)
    threading.Thread(target=drain, args=(stream,)).start()
print("watching", flush=True)
