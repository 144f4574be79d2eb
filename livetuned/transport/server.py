"""gRPC servers: one for people and processes, one small one on each job's port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from livetune.v1 import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, job_pb2, job_pb2_grpc
from livetuned.domain import limits
from livetuned.transport import core
from livetuned.transport.addresses import Address, AddressError, TcpAddress, UnixAddress, prepare_socket
from livetuned.transport.admin import AdminService
from livetuned.transport.control import ControlService, Service
from livetuned.transport.interceptor import ErrorInterceptor
from livetuned.transport.jobs import JobService

_NAMES = (
    control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
    job_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
)

_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

_OPTIONS: list[tuple[str, Any]] = [
    # Two programs must not share a port unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_metadata_size", limits.METADATA_BYTES),
    # A frozen or cut-off peer is noticed: a ping after 10 s of silence, given up after 3 s. The ping itself has a
    # time-out of its own that would stretch this to a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Below the client's own interval, or a client that pings is sent away.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
]


@dataclass(frozen=True, slots=True)
class _Serving:
    server: grpc.aio.Server
    servicer: health.aio.HealthServicer


class Servers:
    """Builds and stops the gRPC servers of one daemon.

    Args:
        service: The parts that the methods call.
    """

    def __init__(self, service: Service) -> None:
        core.guard()
        self._service = service
        self._serving: list[_Serving] = []
        self._sockets: list[Path] = []

    def _build(self, scope: str) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(self._service.metrics, self._service.stalls)], options=_OPTIONS
        )
        control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(self._service, scope), server)
        job_pb2_grpc.add_JobServiceServicer_to_server(JobService(self._service, scope), server)
        if not scope:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self._service.engine), server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        names = _NAMES if scope else (*_NAMES, _ADMIN)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server, servicer

    async def listen(self, addresses: list[Address]) -> list[Address]:
        """Serves everything on the addresses and returns them, with the ports that were asked for as 0 filled in.

        Raises:
            AddressError: One can't be had; then none is served.
        """
        server, servicer = self._build("")
        bound: list[Address] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                prepare_socket(address.path)
                _bind(server, str(address))
                address.path.chmod(0o600)
                self._sockets.append(address.path)
                bound.append(address)
            else:
                bound.append(TcpAddress(address.host, _bind(server, str(address))))
        await self._start(server, servicer)
        return bound

    async def listen_job(self, port: int, job: str) -> Callable[[], Awaitable[None]]:
        """Serves one job on a loopback port and returns what stops it.

        Raises:
            OSError: The port can't be had.
        """
        server, servicer = self._build(job)
        try:
            _bind(server, f"127.0.0.1:{port}")
        except AddressError as error:
            raise OSError(str(error)) from error
        serving = await self._start(server, servicer)

        async def stop() -> None:
            if serving in self._serving:  # else all are being stopped already
                self._serving.remove(serving)
                await server.stop(0.5)

        return stop

    async def _start(self, server: grpc.aio.Server, servicer: health.aio.HealthServicer) -> _Serving:
        await server.start()
        for name in ("", *_NAMES):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        serving = _Serving(server, servicer)
        self._serving.append(serving)
        return serving

    async def stop(self, grace: float) -> None:
        """Tells health checks, lets calls end for a while, then closes all servers.

        Args:
            grace: Seconds that calls under way are given.
        """
        ending, self._serving = self._serving, []
        for serving in ending:
            await serving.servicer.enter_graceful_shutdown()
        await asyncio.gather(*(serving.server.stop(grace) for serving in ending))
        for path in self._sockets:
            path.unlink(missing_ok=True)


def _bind(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressError(f"{address} can't be listened on: is it in use by another program?") from error
    if port == 0:
        raise AddressError(f"{address} can't be listened on")
    return port
