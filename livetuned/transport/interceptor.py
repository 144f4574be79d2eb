"""The outermost layer of every call: no exception and no garbage byte gets past it to the client or into a handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from livetuned.domain.errors import DomainError, Reason
from livetuned.service.metrics import Metrics
from livetuned.store.interface import StoreError
from livetuned.transport.errors import abort

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class _Malformed:
    """Stands for a message that could not be read, until it is refused in the call's own context."""


def _safely(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError, UnicodeDecodeError):
            return _Malformed()

    return read


def _checked(request: object) -> Any:
    if isinstance(request, _Malformed):
        raise DomainError(Reason.MALFORMED_MESSAGE, "the bytes sent are not a message of this method")
    return request


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps whatever a handler raises to a status, and counts the calls.

    Args:
        metrics: Where calls are counted by method and status.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handler of a call, of any of the four kinds."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        # RpcMethodHandler is a named tuple, although the stubs do not say so.
        changed: dict[str, Any] = {"request_deserializer": _safely(handler.request_deserializer or bytes)}
        if handler.unary_unary:
            changed["unary_unary"] = self._single(method, cast("Any", handler.unary_unary), streamed=False)
        elif handler.unary_stream:
            changed["unary_stream"] = self._many(method, cast("Any", handler.unary_stream), streamed=False)
        elif handler.stream_unary:
            changed["stream_unary"] = self._single(method, cast("Any", handler.stream_unary), streamed=True)
        else:
            changed["stream_stream"] = self._many(method, cast("Any", handler.stream_stream), streamed=True)
        return cast("_Handler", handler._replace(**changed))  # type: ignore[attr-defined]

    def _single(
        self, method: str, behaviour: Callable[[Any, _Context], Awaitable[Any]], *, streamed: bool
    ) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def call(request: Any, context: _Context) -> Any:
            try:
                response = await behaviour(_stream(request) if streamed else _checked(request), context)
            except Exception as error:  # noqa: BLE001 - the boundary: everything is mapped
                await self._answer(method, context, error)
            else:
                self._metrics.rpc.labels(method, "OK").inc()
                return response

        return call

    def _many(
        self, method: str, behaviour: Callable[[Any, _Context], AsyncIterator[Any]], *, streamed: bool
    ) -> Callable[[Any, _Context], AsyncIterator[Any]]:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(_stream(request) if streamed else _checked(request), context):
                    yield response
            except asyncio.CancelledError:
                self._metrics.rpc.labels(method, "CANCELLED").inc()
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: everything is mapped
                await self._answer(method, context, error)
            else:
                self._metrics.rpc.labels(method, "OK").inc()

        return call

    async def _answer(self, method: str, context: _Context, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            self._metrics.rpc.labels(method, str(context.code())).inc()
            raise error
        if isinstance(error, DomainError):
            self._metrics.rpc.labels(method, error.reason.name).inc()
            await abort(context, error)
        log.error("%s failed", method, exc_info=error)
        self._metrics.rpc.labels(method, "INTERNAL").inc()
        # What went wrong is the log's, not the client's, business.
        what = "the daemon's store can't be read" if isinstance(error, StoreError) else "internal error"
        await context.abort(grpc.StatusCode.INTERNAL, f"{what}; the daemon's log has the details")


async def _stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
