"""What gRPC's server does with a call whose method nobody registered: it is refused before its path is looked at.

grpc.aio 1.85 decodes that path as UTF-8 in the very loop that accepts calls. Bytes that are no text end the loop, and
with it the server: anybody who can connect could do that. Registered methods do not come that way, and all of ours are
registered. Versions without registered methods decode the path in the call's own task, and never ask for what is
overridden here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined] # grpc's core has no types

log = logging.getLogger(__name__)

_UNIMPLEMENTED: int = grpc.StatusCode.UNIMPLEMENTED.value[0]


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    def _make_request_call_future(self, method: bytes | None) -> Any:
        if method is not None:
            return super()._make_request_call_future(method)
        return asyncio.get_running_loop().create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        refusing: set[asyncio.Task[None]] = set()
        while True:
            task = asyncio.create_task(_refuse(await self._request_call()))
            refusing.add(task)
            task.add_done_callback(refusing.discard)


async def _refuse(call: Any) -> None:
    headers = cygrpc.SendInitialMetadataOperation((), 0)
    loop = asyncio.get_running_loop()
    try:
        await cygrpc._send_error_status_from_server(  # noqa: SLF001 - the core has no public way
            call, _UNIMPLEMENTED, "no such method", (), headers, loop
        )
    except cygrpc.ExecuteBatchError as error:
        log.debug("an unknown method was not refused, its client is gone: %s", error)


def guard() -> None:
    """Makes the servers that are built from now on refuse unknown methods so."""
    cygrpc.AioServer = _Core
