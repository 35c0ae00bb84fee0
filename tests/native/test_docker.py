"""The follower with the real Docker SDK, real cgroups and processes; only dockerd itself is a small
stand-in.

The stand-in speaks the few calls of the Docker API that the follower makes, over a Unix socket. A real
dockerd is followed in tests/e2e.
"""

import asyncio
import contextlib
import http.server
import json
import logging
import os
import queue
import secrets
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.daemon.config import Config, DaemonConfig, DockerConfig
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host.docker import DockerFollower, is_asleep
from agentcgroup.daemon.model import Budget, BudgetRequest, Labels, Priority, Session, TransparentRule
from tests.running import wait_until

BUDGET = Budget(1 << 30, 1 << 28, 0, None, 100, 100, 8)


def has_cgroup2() -> bool:
    try:
        mount = find_mount()
    except CgroupError:
        return False
    return os.access(mount.path, os.W_OK) and not mount.is_read_only


pytestmark = pytest.mark.skipif(not has_cgroup2(), reason="needs root and a writable cgroup2 mount")


class Dockerd(socketserver.ThreadingUnixStreamServer):
    """Containers, and an event stream a client; JSON as Docker's API gives it."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Answers)
        self.containers: dict[str, dict[str, Any]] = {}
        self.streams: list[queue.Queue[dict[str, Any] | None]] = []

    def emit(self, action: str, container_id: str) -> None:
        for stream in self.streams:
            stream.put(
                {"Type": "container", "Action": action, "Actor": {"ID": container_id, "Attributes": {}}}
            )

    def stop(self) -> None:
        for stream in self.streams:
            stream.put(None)
        self.shutdown()
        self.server_close()
        Path(str(self.server_address)).unlink()


class Answers(http.server.BaseHTTPRequestHandler):
    server: Dockerd
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.split("/")
        if name[-1] == "version":
            self.reply({"ApiVersion": "1.45", "MinAPIVersion": "1.24", "Version": "26.1"})
        elif name[-1] == "events":
            self.stream()
        elif name[-2:] == ["containers", "json"]:
            self.reply([{"Id": each} for each in self.server.containers])
        elif (found := self.server.containers.get(name[-2])) is not None:
            self.reply(found)
        else:
            self.reply({"message": f"no such container: {path}"}, 404)

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.server.streams.append(events)
        while (event := events.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.close_connection = True


@dataclass
class Sessions:
    """Keeps what it is asked to adopt; a name is taken until it is freed."""

    socket_root: Path
    adopted: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    taken: set[str] = field(default_factory=set)
    refusals: int = 0
    shown: list[tuple[str, Path]] = field(default_factory=list)

    def show_feedback(self, session: str, directory: Path) -> None:
        self.shown.append((session, directory))

    def sessions(self) -> list[Session]:
        return []

    async def adopt_session(
        self,
        name: str,
        request: BudgetRequest,
        *,
        cgroup_path: str,
        container_id: str,
        priority: Priority | None = None,
        owner_uid: int = 0,
        owner_gid: int = 0,
        labels: Labels = (),
        transparent: TransparentRule | None = None,
    ) -> Session:
        async with self.changed:
            if name in self.taken:
                self.refusals += 1
                self.changed.notify_all()
                raise RequestError(Kind.EXISTS, f"there is a session {name!r} already")
            self.taken.add(name)
            place = self.socket_root / name
            place.mkdir(exist_ok=True)
            self.adopted[container_id] = {
                "name": name,
                "cgroup": cgroup_path,
                "request": request,
                "labels": labels,
            }
            self.changed.notify_all()
        return Session(name, BUDGET, priority or Priority.NORMAL, owner_uid, owner_gid, 0, str(place))

    async def until(self, condition: Any) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(condition), 20)


@dataclass
class Container:
    id: str
    cgroup: Cgroup
    process: subprocess.Popen[bytes]

    def inspected(self, name: str, **labels: str) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Name": f"/{name}",
            "State": {"Pid": self.process.pid},
            "Config": {"Labels": {"agentcgroup.session": name, **labels}, "Image": "test"},
            "HostConfig": {},
            "Mounts": [],
        }


@pytest.fixture
def container() -> Iterator[Container]:
    container_id = secrets.token_hex(32)
    with Cgroup.open(find_mount().path) as top:
        cgroup = top.create_child(f"docker-{container_id}.scope")
    process = subprocess.Popen(["sleep", "600"])
    cgroup.place(process.pid)
    yield Container(container_id, cgroup, process)
    process.kill()
    process.wait()
    cgroup.remove_tree(5)


@pytest.fixture
def dockerd(tmp_path: Path) -> Iterator[Dockerd]:
    server = serve(tmp_path)
    yield server
    with contextlib.suppress(OSError):
        server.stop()


def serve(directory: Path) -> Dockerd:
    server = Dockerd(directory / "docker.sock")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def config_of(directory: Path) -> Config:
    return Config(
        daemon=DaemonConfig(run_dir=str(directory)),
        docker=DockerConfig(socket=str(directory / "docker.sock")),
    )


async def test_running_containers_and_those_that_start_later_become_sessions_on_their_own_cgroup(
    tmp_path: Path, dockerd: Dockerd, container: Container
) -> None:
    dockerd.containers[container.id] = container.inspected("alice", **{"agentcgroup.memory": "2G"})
    sessions = Sessions(tmp_path)
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await sessions.until(lambda: container.id in sessions.adopted)
    assert sessions.adopted[container.id]["cgroup"] == f"/docker-{container.id}.scope"
    assert sessions.adopted[container.id]["request"] == BudgetRequest(memory_max_bytes=2 << 30)

    second = dict(dockerd.containers[container.id], Id="b" * 64)
    dockerd.containers["b" * 64] = second
    dockerd.emit(
        "start", "b" * 64
    )  # its process is in the other container's cgroup: refused, and nothing breaks
    third = container.inspected("carol")
    dockerd.emit("die", container.id)
    sessions.taken.clear()
    dockerd.containers[container.id] = third
    sessions.adopted.clear()
    dockerd.emit("start", container.id)
    await sessions.until(lambda: container.id in sessions.adopted)
    assert sessions.adopted[container.id]["name"] == "carol"
    assert "b" * 64 not in sessions.adopted
    await follower.stop()


async def test_a_container_that_was_adopted_before_is_found_by_its_scope_not_by_its_agent_leaf(
    tmp_path: Path, dockerd: Dockerd, container: Container
) -> None:
    agent = container.cgroup.create_child("agent")
    agent.place(container.process.pid)
    dockerd.containers[container.id] = container.inspected("alice")
    sessions = Sessions(tmp_path)
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await sessions.until(lambda: container.id in sessions.adopted)
    assert sessions.adopted[container.id]["cgroup"] == f"/docker-{container.id}.scope"
    await follower.stop()


async def test_a_name_that_is_still_taken_is_waited_for(
    tmp_path: Path, dockerd: Dockerd, container: Container
) -> None:
    sessions = Sessions(tmp_path, taken={"alice"})
    dockerd.containers[container.id] = container.inspected("alice")
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await sessions.until(lambda: sessions.refusals == 1)
    sessions.taken.clear()
    await sessions.until(lambda: container.id in sessions.adopted)
    await follower.stop()


async def test_a_wrong_label_is_logged_and_the_next_container_is_served(
    tmp_path: Path, dockerd: Dockerd, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    dockerd.containers["a" * 64] = dict(
        container.inspected("bad", **{"agentcgroup.memory": "lots"}), Id="a" * 64
    )
    dockerd.containers[container.id] = container.inspected("alice")
    sessions = Sessions(tmp_path)
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await sessions.until(lambda: container.id in sessions.adopted)
    await follower.stop()
    assert list(sessions.adopted) == [container.id]
    assert "agentcgroup.memory" in caplog.text


async def test_a_dockerd_that_goes_away_and_comes_back_is_followed_again(
    tmp_path: Path, dockerd: Dockerd, container: Container
) -> None:
    sessions = Sessions(tmp_path)
    dockerd.containers[container.id] = container.inspected("alice")
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await sessions.until(lambda: container.id in sessions.adopted)
    dockerd.stop()
    sessions.adopted.clear()
    sessions.taken.clear()
    again = serve(tmp_path)
    again.containers[container.id] = container.inspected("alice")
    other = dict(container.inspected("never"), Id="c" * 64)
    again.containers["c" * 64] = other
    # The one known before is not adopted twice while it runs; a restarted dockerd tells nothing new about
    # it.
    await asyncio.to_thread(wait_until, lambda: again.streams)
    assert sessions.adopted == {}
    again.emit("die", container.id)
    again.emit("start", container.id)
    await sessions.until(lambda: container.id in sessions.adopted)
    await follower.stop()
    again.stop()


async def test_without_dockerd_there_is_one_line_in_the_log_and_stopping_is_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sessions = Sessions(tmp_path)
    follower = DockerFollower(config_of(tmp_path), sessions, sessions.show_feedback)
    await follower.start()
    await asyncio.to_thread(wait_until, lambda: "no dockerd" in caplog.text)
    await asyncio.wait_for(follower.stop(), 5)
    assert caplog.text.count("no dockerd") == 1


def test_a_socket_that_nobody_or_a_live_server_listens_on_is_not_asleep(
    tmp_path: Path, dockerd: Dockerd
) -> None:
    assert not is_asleep(str(tmp_path / "docker.sock"))
    assert not is_asleep(str(tmp_path / "absent.sock"))
