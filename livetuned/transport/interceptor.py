"""The outermost layer of every call: no exception and no garbage byte gets past it to the client or into a handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from livetuned.domain.errors import DomainError, Reason
from livetuned.service import clock
from livetuned.service.metrics import Metrics
from livetuned.store.interface import StoreDamagedError
from livetuned.transport.errors import INTERNAL_WORDS, abort
from livetuned.transport.stalls import Stalls

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


def _bytes_or(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Lets a handler give a message that is written already: one that goes to many clients is written once."""

    def write(message: Any) -> bytes:
        return message if isinstance(message, bytes) else serialize(message)

    return write


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps whatever a handler raises to a status, counts the calls, and gives up streams that nobody reads.

    Args:
        metrics: Where calls are counted by method and status.
        stalls: Who finds streams that nobody reads.
    """

    def __init__(self, metrics: Metrics, stalls: Stalls) -> None:
        self._metrics = metrics
        self._stalls = stalls

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
        changed: dict[str, Any] = {
            "request_deserializer": _safely(handler.request_deserializer or bytes),
            "response_serializer": _bytes_or(handler.response_serializer or bytes),
        }
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
        self,
        method: str,
        behaviour: Callable[[Any, _Context], AsyncGenerator[Any, None] | Awaitable[None]],
        *,
        streamed: bool,
    ) -> Callable[[Any, _Context], Awaitable[None]]:
        async def call(request: Any, context: _Context) -> None:
            stream = self._stalls.enter()
            try:
                responses = behaviour(_stream(request) if streamed else _checked(request), context)
                if not isinstance(responses, AsyncGenerator):  # gRPC's own health service writes by itself
                    await responses
                    return
                async with aclosing(responses):
                    async for response in responses:
                        stream.since = clock.monotonic()
                        await context.write(response)
                        stream.since = 0.0
            except asyncio.CancelledError:
                if not stream.stalled:
                    self._metrics.rpc.labels(method, "CANCELLED").inc()
                    raise
                self._metrics.rpc.labels(method, Reason.WATCH_TOO_SLOW.name).inc()
                log.warning("%s: a client did not read for %g s: its stream is closed", method, self._stalls.seconds)
                await abort(context, _too_slow())
            except Exception as error:  # noqa: BLE001 - the boundary: everything is mapped
                await self._answer(method, context, error)
            else:
                self._metrics.rpc.labels(method, "OK").inc()
            finally:
                self._stalls.leave(stream)

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
        if isinstance(error, StoreDamagedError):
            await context.abort(grpc.StatusCode.DATA_LOSS, "the daemon's store is damaged where this was to be read")
        await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_WORDS)


def _too_slow() -> DomainError:
    return DomainError(
        Reason.WATCH_TOO_SLOW, "nothing was read of this stream for too long: resume after what you received last"
    )


async def _stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
