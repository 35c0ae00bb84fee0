"""The one interceptor of every gRPC server: errors become statuses, and what was begun is done in full.

So that no method repeats it: RequestError -> status with details; bytes that are no message -> INVALID; any
other exception -> INTERNAL with an incident id, in the log with its traceback, never at the caller; a caller
that goes away (cancel, deadline, crash) does not stop half-way what it has begun, while its streams end at
once.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status

from agentcgroup.daemon.api.errors import new_incident, status_of, status_of_bug
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.errors import Kind, RequestError

log = logging.getLogger("agentcgroup.api")

_Context = grpc.aio.ServicerContext[Any, Any]
# As text: it takes parameters in its type stub only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class _Undecodable:
    """Stands for a request whose bytes are no message; the guard answers it."""

    def __init__(self, error: DecodeError) -> None:
        self.error = RequestError(
            Kind.INVALID,
            f"the request is not the protobuf message that this method takes: {error}",
            "build client and daemon from the same proto/v1 files",
        )


def _careful(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    assert decode is not None, "generated handlers have a deserializer"

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Undecodable(error)

    return decoded


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler once; one guard may serve any number of servers of the same services."""

    def __init__(self, counters: Counters, prefix: str) -> None:
        """`prefix` begins the path of the methods to guard, "/agentcgroup.v1."; others are left alone."""
        self._counters: Final = counters
        self._prefix: Final = prefix
        self._tasks: Final[set[asyncio.Task[Any]]] = set()

    async def drain(self, timeout_s: float) -> bool:
        """Waits for operations whose callers are gone; False: some are still at it after `timeout_s`."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
        return not pending

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary),
                request_deserializer=_careful(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        assert handler.unary_stream is not None and inspect.isasyncgenfunction(handler.unary_stream), method
        return grpc.unary_stream_rpc_method_handler(
            self._stream(method, handler.unary_stream),
            request_deserializer=_careful(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def guarded(request: Any, context: _Context) -> Any:
            if isinstance(request, _Undecodable):
                return await self._refuse(method, request.error, context)
            work: asyncio.Task[Any] = asyncio.ensure_future(behavior(request, context))
            self._tasks.add(work)
            work.add_done_callback(self._tasks.discard)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                # The caller has gone; what it asked for goes on, and a failure of it is heard in the log.
                work.add_done_callback(lambda done: self._alone(method, done))
                raise
            except Exception as error:
                return await self._refuse(method, error, context)

        return guarded

    def _stream(self, method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def guarded(request: Any, context: _Context) -> AsyncIterator[Any]:
            if isinstance(request, _Undecodable):
                await self._refuse(method, request.error, context)
            try:
                async with contextlib.aclosing(behavior(request, context)) as replies:
                    async for reply in replies:
                        yield reply
            except Exception as error:
                await self._refuse(method, error, context)

        return guarded

    async def _refuse(self, method: str, error: Exception, context: _Context) -> None:
        status = rpc_status.to_status(self._status(method, error))
        await context.abort(status.code, status.details, status.trailing_metadata)

    def _status(self, method: str, error: BaseException) -> status_pb2.Status:
        if isinstance(error, RequestError):
            self._counters.request_error(error.kind)
            log.debug("%s: %s: %s", method, error.kind, error)
            return status_of(error)
        incident = new_incident()
        self._counters.internal_error()
        log.error("incident %s: %s failed", incident, method, exc_info=error)
        return status_of_bug(incident)

    def _alone(self, method: str, work: asyncio.Task[Any]) -> None:
        error = None if work.cancelled() else work.exception()
        if error is not None:
            self._status(method, error)
