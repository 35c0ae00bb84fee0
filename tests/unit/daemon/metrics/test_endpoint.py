"""The endpoint over real HTTP: pages, content types, bad clients, a busy port."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from agentcgroup.daemon.config import Config, ConfigError, MetricsConfig
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.metrics import endpoint as module
from agentcgroup.daemon.metrics.endpoint import MetricsEndpoint
from agentcgroup.daemon.model import BudgetRequest, HostStatus
from tests.unit.daemon.metrics.hosts import FixedHistory, FullHost, make_controller

CONFIG = Config(metrics=MetricsConfig(port=0))


@pytest.fixture
def controller() -> Controller:
    return make_controller(FullHost())


@pytest.fixture
async def served(controller: Controller) -> AsyncIterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(CONFIG, controller, FixedHistory())
    await endpoint.start()
    yield endpoint
    await endpoint.stop()


async def ask(endpoint: MetricsEndpoint, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(request)
    writer.write_eof()
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


async def get(endpoint: MetricsEndpoint, path: str = "/metrics", accept: str = "*/*") -> tuple[str, str]:
    answer = await ask(endpoint, f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert f"Content-Length: {len(body.encode())}" in head
    return head, body


async def test_a_page_has_every_session(served: MetricsEndpoint, controller: Controller) -> None:
    await controller.open_session("alpha", BudgetRequest(memory_max_bytes=1 << 30))
    head, body = await get(served)
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert 'agentcgroup_session_memory_current_bytes{session="alpha"} 1000.0' in body


async def test_openmetrics_is_given_to_whom_asks_for_it(served: MetricsEndpoint) -> None:
    head, body = await get(served, accept="application/openmetrics-text; version=1.0.0")
    assert "application/openmetrics-text" in head
    families = {row.name: row for row in text_string_to_metric_families(body)}  # type: ignore[no-untyped-call]
    assert families["agentcgroup_daemon_cpu_seconds"].unit == "seconds"


async def test_head_has_the_length_and_no_body(served: MetricsEndpoint) -> None:
    answer = await ask(served, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 0" not in head
    assert body == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET /metrics?name[]=x HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", 400),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 400),
    ],
)
async def test_each_request_gets_an_answer_that_fits_it(
    served: MetricsEndpoint, request_bytes: bytes, status: int
) -> None:
    answer = await ask(served, request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert (await get(served))[0].startswith("HTTP/1.1 200 ")


async def test_a_silent_client_is_dropped_and_keeps_nobody_waiting(
    served: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /metrics HT")
    assert (await get(served))[0].startswith("HTTP/1.1 200 ")
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()


async def test_clients_beyond_the_bound_are_told_to_come_back(
    served: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
    answer = await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    for _, writer in idle:
        writer.close()


async def test_scrapes_that_come_together_cost_one_snapshot(
    served: MetricsEndpoint, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_AGE_S", 60.0)
    taken: list[HostStatus] = []
    plain = controller.host

    def host() -> HostStatus:
        taken.append(plain())
        return taken[-1]

    monkeypatch.setattr(controller, "host", host)
    pages = await asyncio.gather(*(get(served) for _ in range(20)))
    assert len({body for _, body in pages}) == 1
    assert len(taken) == 1


async def test_a_scrape_that_fails_is_an_error_and_not_an_empty_host(
    served: MetricsEndpoint, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> HostStatus:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(controller, "host", broken)
        head, body = await get(served)
    assert head.startswith("HTTP/1.1 500 ")
    assert "see the log" in body
    assert "agentcgroup_internal_errors_total 1.0" in (await get(served))[1]


async def test_a_daemon_that_cannot_be_measured_in_time_says_so(
    served: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow(*arguments: object) -> None:
        release.wait(60)

    monkeypatch.setattr(module, "SNAPSHOT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "_render", slow)
    head, _ = await get(served)
    release.set()
    assert head.startswith("HTTP/1.1 503 ")


async def test_a_port_in_use_is_an_error_with_the_next_step(controller: Controller) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        endpoint = MetricsEndpoint(Config(metrics=MetricsConfig(port=port)), controller, FixedHistory())
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use.*metrics.port"):
            await endpoint.start()
        await endpoint.stop()
        assert endpoint.port == 0


async def test_an_address_of_another_host_is_an_error_with_the_next_step(controller: Controller) -> None:
    config = Config(metrics=MetricsConfig(address="192.0.2.1", port=0))
    with pytest.raises(ConfigError, match=r"metrics\.address"):
        await MetricsEndpoint(config, controller, FixedHistory()).start()


async def test_stop_gives_the_port_back_and_drops_who_is_left(controller: Controller) -> None:
    endpoint = MetricsEndpoint(CONFIG, controller, FixedHistory())
    await endpoint.start()
    port = endpoint.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await get(endpoint)
    await endpoint.stop()
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()
    again = MetricsEndpoint(Config(metrics=MetricsConfig(port=port)), controller, FixedHistory())
    await again.start()
    await again.stop()


async def test_nothing_runs_before_the_first_scrape(controller: Controller) -> None:
    before = threading.active_count()
    endpoint = MetricsEndpoint(CONFIG, controller, FixedHistory())
    await endpoint.start()
    assert threading.active_count() <= before
    await endpoint.stop()


async def test_ipv6_is_an_address_too(controller: Controller) -> None:
    endpoint = MetricsEndpoint(
        Config(metrics=MetricsConfig(address="::1", port=0)), controller, FixedHistory()
    )
    try:
        await endpoint.start()
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    reader, writer = await asyncio.open_connection("::1", endpoint.port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await endpoint.stop()
