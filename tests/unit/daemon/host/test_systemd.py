"""Speaking to the service manager: a real datagram socket plays systemd."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.daemon.host.systemd import Notifier, ready, watchdog_interval_s


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


def environment_of(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


async def heard(manager: socket.socket) -> list[str]:
    return (await asyncio.to_thread(manager.recv, 4096)).decode().split("\n")


async def test_readiness_and_stopping_frame_the_context(manager: socket.socket) -> None:
    with ready(asyncio.get_running_loop(), lambda: "2 sessions", environment_of(manager)):
        assert await heard(manager) == ["READY=1", "STATUS=2 sessions"]
    assert await heard(manager) == ["STOPPING=1"]


async def test_the_watchdog_hears_from_the_loop_until_the_context_ends(manager: socket.socket) -> None:
    environment = environment_of(manager, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid()))
    with ready(asyncio.get_running_loop(), environment=environment):
        assert await heard(manager) == ["READY=1"]
        for _ in range(3):
            assert await heard(manager) == ["WATCHDOG=1"]
    while (last := await heard(manager)) == ["WATCHDOG=1"]:
        pass
    assert last == ["STOPPING=1"]
    await asyncio.sleep(0.05)
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


async def test_without_systemd_nothing_happens() -> None:
    with ready(asyncio.get_running_loop(), environment={"WATCHDOG_USEC": "1000"}) as notifier:
        assert notifier.status("nobody hears this") is False


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0agentcgroup-test-{os.getpid()}")
        assert Notifier(f"@agentcgroup-test-{os.getpid()}").send(READY="1")
        assert listener.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_is_logged_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Notifier(str(tmp_path / "nobody")).send(READY="1") is False
    assert "READY" in caplog.text


def test_an_address_of_an_unknown_kind_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    assert Notifier("vsock:2:1234").send(READY="1") is False
    assert "vsock:2:1234" in caplog.text


def test_a_status_is_one_short_line(manager: socket.socket) -> None:
    assert Notifier(manager.getsockname()).status("a\nb" + "c" * 1000)
    text = manager.recv(4096).decode()
    assert text.startswith("STATUS=a b") and "\n" not in text and len(text) < 300


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_served_at_half_its_time_and_only_by_the_process_it_watches(
    environment: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environment) == interval_s
