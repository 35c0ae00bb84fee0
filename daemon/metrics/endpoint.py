"""The scrape endpoint: GET /metrics over HTTP, at rest one listening socket and nothing else.

The snapshot is taken on the loop, where it is consistent, and rendered by one thread of its own. Scrapes
that come close together share a page: the cost to the daemon does not rise with the number of scrapers.
"""

import asyncio
import contextlib
import errno
import http
import ipaddress
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import psutil

from agentcgroup.daemon.config import Config, ConfigError
from agentcgroup.daemon.metrics.snapshot import HistorySource, Snapshot, Source, take

LOGGER: Final = logging.getLogger(__name__)

PATH: Final = "/metrics"
# A page younger than this is given again.
PAGE_AGE_S: Final = 0.25
# A client that sends no request, or does not read its answer, is dropped.
CLIENT_TIMEOUT_S: Final = 5.0
SNAPSHOT_TIMEOUT_S: Final = 5.0
REQUEST_MAX_BYTES: Final = 16 << 10
HEADERS_MAX: Final = 100
CONNECTIONS_MAX: Final = 32
# After the answer this much more of the request is read and thrown away.
LINGER_S: Final = 1.0
LINGER_READS: Final = 64

_INDEX: Final = b"<!doctype html><title>agentcgroupd</title><p><a href='/metrics'>metrics</a>\n"


@dataclass(frozen=True, slots=True)
class _Page:
    accept: str
    content_type: str
    body: bytes
    rendered_at_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class _Response:
    status: http.HTTPStatus
    content_type: str
    body: bytes


class MetricsEndpoint:
    """Serves what `source` and `history` say at config.metrics.address and port; port 0 is any free one."""

    def __init__(self, config: Config, source: Source, history: HistorySource) -> None:
        self._config: Final = config
        self._source: Final = source
        self._history: Final = history
        self._process: Final = psutil.Process()
        self._server: asyncio.Server | None = None
        self._renderer: ThreadPoolExecutor | None = None
        self._rendering: Final = asyncio.Lock()
        self._page: _Page | None = None
        self._clients: Final[dict[asyncio.Task[None], asyncio.StreamWriter]] = {}

    @property
    def port(self) -> int:
        """The port that is listened on; 0 when the endpoint is not started."""
        if self._server is None:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen. Raises ConfigError when the address cannot be had."""
        metrics = self._config.metrics
        try:
            self._server = await asyncio.start_server(
                self._serve, metrics.address, metrics.port, limit=REQUEST_MAX_BYTES
            )
        except OSError as error:
            raise ConfigError(_cannot_listen(metrics.address, metrics.port, error)) from error
        self._renderer = ThreadPoolExecutor(1, "metrics")
        shown = f"[{metrics.address}]" if ":" in metrics.address else metrics.address
        LOGGER.info("metrics: http://%s:%d%s", shown, self.port, PATH)
        if not _is_loopback(metrics.address):
            LOGGER.warning(
                "metrics: %s is no loopback address: whoever reaches port %d reads names and usage of all sessions",
                metrics.address,
                self.port,
            )

    async def stop(self) -> None:
        """Stop listening and drop the clients that are left."""
        server, self._server = self._server, None
        if server is None or self._renderer is None:
            return
        server.close()
        for writer in self._clients.values():
            writer.transport.abort()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()
        self._renderer.shutdown(wait=False, cancel_futures=True)

    # ---- one client -----------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        self._clients[client] = writer
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S + SNAPSHOT_TIMEOUT_S):
                await self._answer_one(reader, writer)
                await _linger(reader, writer)
        except (TimeoutError, ConnectionError):
            LOGGER.debug("metrics: a client went away or took too long")
        finally:
            del self._clients[client]
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_body = True
        if len(self._clients) > CONNECTIONS_MAX:
            response = _text(http.HTTPStatus.SERVICE_UNAVAILABLE, "Too many clients at once; try again.")
        else:
            try:
                async with asyncio.timeout(CLIENT_TIMEOUT_S):
                    request = _parse(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                return
            except (asyncio.LimitOverrunError, ValueError) as error:
                response = _text(
                    http.HTTPStatus.BAD_REQUEST, f"Not a request that is understood here: {error}"
                )
            else:
                response = await self._respond(request)
                with_body = request.method != "HEAD"
        head = (
            f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
            f"Content-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode("latin-1"))
        if with_body:
            writer.write(response.body)
        await writer.drain()

    async def _respond(self, request: _Request) -> _Response:
        if request.method not in ("GET", "HEAD"):
            return _text(http.HTTPStatus.METHOD_NOT_ALLOWED, f"GET {PATH} is all there is.")
        if request.path == "/":
            return _Response(http.HTTPStatus.OK, "text/html; charset=utf-8", _INDEX)
        if request.path != PATH:
            return _text(http.HTTPStatus.NOT_FOUND, f"Metrics are at {PATH}.")
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                page = await self._fresh_page(request.accept)
        except TimeoutError:
            return _text(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "agentcgroupd is too busy to be measured; try again."
            )
        except Exception:
            # A scrape must not end the daemon, and its failure must not look like a host without sessions.
            LOGGER.exception("metrics: a scrape failed")
            self._source.counters.internal_error()
            return _text(
                http.HTTPStatus.INTERNAL_SERVER_ERROR, "The scrape failed; see the log of agentcgroupd."
            )
        return _Response(http.HTTPStatus.OK, page.content_type, page.body)

    async def _fresh_page(self, accept: str) -> _Page:
        async with self._rendering:
            page = self._page
            if (
                page is not None
                and page.accept == accept
                and time.monotonic() - page.rendered_at_s < PAGE_AGE_S
            ):
                return page
            snapshot = await take(self._source, self._history, self._config.host)
            loop = asyncio.get_running_loop()
            self._page = await loop.run_in_executor(self._renderer, _render, snapshot, self._process, accept)
            return self._page


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Closing with unread bytes resets the connection, and a reset can overtake the answer (RFC 9112, section 9.6).
    if not writer.can_write_eof():
        return
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            for _ in range(LINGER_READS):
                if not await reader.read(REQUEST_MAX_BYTES):
                    return


def _render(snapshot: Snapshot, process: psutil.Process, accept: str) -> _Page:
    # Here, because prometheus-client brings servers and clients for HTTP, a tenth of the daemon's memory: a host whose
    # metrics nobody reads need not hold them.
    from agentcgroup.daemon.metrics import collector

    return _Page(accept, *collector.page(snapshot, process, accept), time.monotonic())


def _parse(head: bytes) -> _Request:
    # Raises ValueError for what is no HTTP request.
    line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, version = line.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"version {version}")
    if len(lines) > HEADERS_MAX:
        raise ValueError(f"more than {HEADERS_MAX} headers")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    return _Request(method, target.partition("?")[0], headers.get("accept", ""))


def _text(status: http.HTTPStatus, message: str) -> _Response:
    return _Response(status, "text/plain; charset=utf-8", f"{message}\n".encode())


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _cannot_listen(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"metrics: {address}:{port} is in use by another process. Set metrics.port to a free port "
            f"(`ss -ltnp 'sport = :{port}'` names the other), or metrics.enabled = false"
        )
    if error.errno == errno.EACCES:
        return f"metrics: port {port} needs privileges: set metrics.port to 1024 or more"
    return f"metrics: cannot listen on {address}:{port}: {error}. Set metrics.address to an address of this host"
