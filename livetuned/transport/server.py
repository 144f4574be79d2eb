"""gRPC servers: one for people and processes, one small one on each job's port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
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

log = logging.getLogger(__name__)

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


_AGAIN_SECONDS = 0.2
"""How long after a complaint it is looked whether a server ended, and between attempts to start one, in seconds."""


_GRPC_LOGGER = "grpc._cython.cygrpc"
"""Where gRPC says that it could not decode what a client sent, with the bytes."""


@dataclass(slots=True)
class _Serving:
    server: grpc.aio.Server
    servicer: health.aio.HealthServicer
    target: str
    """Where it answers."""
    again: Callable[[], Awaitable[tuple[grpc.aio.Server, health.aio.HealthServicer]]]
    """Makes it anew."""


class _Complaints(logging.Filter):
    """Keeps strangers' bytes out of the log, and tells that there were some."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def filter(self, record: logging.LogRecord) -> bool:
        self._tell()
        return False


async def _start(server: grpc.aio.Server, servicer: health.aio.HealthServicer) -> None:
    await server.start()
    for name in ("", *_NAMES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


async def _listens(target: str) -> bool:
    """Tells whether somebody accepts connections.

    By a plain socket: a gRPC channel of this very process to a server of it that is just ending takes the process down.
    """
    try:
        if target.startswith("unix:"):
            _, writer = await asyncio.open_unix_connection(target.removeprefix("unix:"))
        else:
            host, _, port = target.rpartition(":")
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        return False
    writer.close()
    return True


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
        self._complaints = _Complaints(self._suspect)
        self._suspected = False
        self._checking: asyncio.Future[None] | None = None

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
        bound, server, servicer = await self._listen(addresses)
        self._sockets = [address.path for address in bound if isinstance(address, UnixAddress)]

        async def again() -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
            return (await self._listen(bound))[1:]

        self._serving.append(_Serving(server, servicer, str(bound[0]), again))
        logging.getLogger(_GRPC_LOGGER).addFilter(self._complaints)
        return bound

    async def _listen(
        self, addresses: list[Address]
    ) -> tuple[list[Address], grpc.aio.Server, health.aio.HealthServicer]:
        server, servicer = self._build("")
        bound: list[Address] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                prepare_socket(address.path)
                _bind(server, str(address))
                address.path.chmod(0o600)
                bound.append(address)
            else:
                bound.append(TcpAddress(address.host, _bind(server, str(address))))
        await _start(server, servicer)
        return bound, server, servicer

    async def listen_job(self, port: int, job: str) -> Callable[[], Awaitable[None]]:
        """Serves one job on a loopback port and returns what stops it.

        Raises:
            OSError: The port can't be had.
        """

        async def serve() -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
            server, servicer = self._build(job)
            try:
                _bind(server, target)
            except AddressError as error:
                raise OSError(str(error)) from error
            await _start(server, servicer)
            return server, servicer

        target = f"127.0.0.1:{port}"
        serving = _Serving(*await serve(), target, serve)
        self._serving.append(serving)

        async def stop() -> None:
            self._serving.remove(serving)
            await serving.server.stop(0.5)

        return stop

    def _suspect(self) -> None:
        """Looks whether every server still listens, soon: gRPC complained of something that a client sent."""
        self._suspected = True
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(self._check())

    async def _check(self) -> None:
        # gRPC 1.85 decodes the path of a call in the loop that accepts calls: one that is no text ends that loop, the
        # server answers nobody any more, and any program that can connect can send one.
        while self._suspected:
            self._suspected = False
            await asyncio.sleep(_AGAIN_SECONDS)  # until what is ending has ended
            for serving in list(self._serving):
                if await _listens(serving.target):
                    continue
                log.error("the gRPC server at %s was ended by what a client sent; it is started again", serving.target)
                with suppress(UnicodeDecodeError):  # what ended it
                    await serving.server.stop(None)
                try:
                    serving.server, serving.servicer = await serving.again()
                except (OSError, AddressError) as error:
                    log.critical("the gRPC server at %s can't be started again yet: %s", serving.target, error)
                    self._suspected = True

    async def stop(self, grace: float) -> None:
        """Tells health checks, lets calls end for a while, then closes all servers.

        Args:
            grace: Seconds that calls under way are given.
        """
        logging.getLogger(_GRPC_LOGGER).removeFilter(self._complaints)
        if self._checking is not None:
            self._checking.cancel()
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
