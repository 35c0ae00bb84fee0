"""A gRPC channel on a Unix socket that carries out operations and turns failures into ClientErrors; sync and async."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, Final, TypeVar
from urllib.parse import quote

import grpc

from agentcgroup.client.errors import from_rpc_error
from agentcgroup.client.operations import Operation, Page
from agentcgroup.client.places import check_socket_path

Result = TypeVar("Result")

# A call's end waits until its last process is gone, so this is more than a round trip.
DEFAULT_TIMEOUT_S: Final = 30.0

_OPTIONS: Final = (
    # A daemon that was restarted is found again within a second; gRPC's own pause grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also what a connection may take until the daemon says its first word.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A new client connects anew: else it would share the connection, and the pause after a failed one, with an older
    # client of the same socket, behind which another session may stand by now.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Limits are asked for where the limits are: no name service, no balancing, no repeating behind the caller's back.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
)


def _target(socket_path: str) -> str:
    # A target is a URI: what is no plain path in one is escaped.
    return f"unix:{quote(check_socket_path(socket_path))}"


class SyncChannel:
    """Blocking; safe to use from several threads."""

    def __init__(self, socket_path: str, stub: Callable[[grpc.Channel], Any], timeout_s: float) -> None:
        self.socket_path = socket_path
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(_target(socket_path), options=_OPTIONS)
        self._stub = stub(self._channel)

    def perform(self, operation: Operation[Result]) -> Result:
        """Carries out a unary operation. Raises ClientError."""
        try:
            response = getattr(self._stub, operation.method)(operation.request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.socket_path) from None
        return operation.read(response)

    def pages(self, page_at: Callable[[str], Operation[Page[Result]]]) -> Iterator[Result]:
        """The items of all pages, asked for as they are needed; `page_at` has the page behind a token."""
        token: str | None = ""
        while token is not None:
            page = self.perform(page_at(token))
            yield from page.items
            token = page.next_token or None

    def stream(self, operation: Operation[Result]) -> Generator[Result, None, None]:
        """The responses of a streaming operation as they come, without a time limit. Raises ClientError."""
        responses = getattr(self._stub, operation.method)(operation.request)
        try:
            for response in responses:
                yield operation.read(response)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.socket_path) from None
        finally:
            responses.cancel()

    def close(self) -> None:
        self._channel.close()


class AsyncChannel:
    """For one asyncio loop, the one it is first used on."""

    def __init__(self, socket_path: str, stub: Callable[[Any], Any], timeout_s: float) -> None:
        self.socket_path = socket_path
        self._target = _target(socket_path)
        self._timeout_s = timeout_s
        self._make_stub = stub
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    def _method(self, name: str) -> Any:
        # Made late, because grpc.aio binds a channel to the loop that runs when it is made.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
            self._stub = self._make_stub(self._channel)
        return getattr(self._stub, name)

    async def perform(self, operation: Operation[Result]) -> Result:
        """Carries out a unary operation. Raises ClientError."""
        try:
            response = await self._method(operation.method)(operation.request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            # Asking the kernel why is a connect on a Unix socket: short, but it may block on a full backlog.
            raise await asyncio.to_thread(from_rpc_error, error, self.socket_path) from None
        return operation.read(response)

    async def pages(self, page_at: Callable[[str], Operation[Page[Result]]]) -> AsyncIterator[Result]:
        """The items of all pages, asked for as they are needed; `page_at` has the page behind a token."""
        token: str | None = ""
        while token is not None:
            page = await self.perform(page_at(token))
            for item in page.items:
                yield item
            token = page.next_token or None

    async def stream(self, operation: Operation[Result]) -> AsyncGenerator[Result, None]:
        """The responses of a streaming operation as they come, without a time limit. Raises ClientError."""
        responses = self._method(operation.method)(operation.request)
        try:
            async for response in responses:
                yield operation.read(response)
        except grpc.aio.AioRpcError as error:
            raise await asyncio.to_thread(from_rpc_error, error, self.socket_path) from None
        finally:
            responses.cancel()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
