"""What a container asks for, read from the answer of Docker's inspect call."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host.container_sockets import DIRECTORY, lend, make_directory, take_back
from agentcgroup.daemon.host.containers import (
    LABEL,
    MOUNT_POINT,
    ContainerSession,
    container_cgroup,
    read_container,
)
from agentcgroup.daemon.model import BudgetRequest, Priority

ID = "4f1c" * 16


def inspected(
    labels: dict[str, str] | None = None, host_config: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "Id": ID,
        "Name": "/Alice_1",
        "State": {"Pid": 4711},
        "Config": {"Labels": {LABEL: "alice", **(labels or {})}, "Image": "agents:latest"},
        "HostConfig": host_config or {},
        "Mounts": [],
        **more,
    }


def test_the_label_names_the_session_and_container_and_image_become_its_marks() -> None:
    container = read_container(inspected())
    assert container == ContainerSession(
        container_id=ID,
        container_name="Alice_1",
        pid=4711,
        name="alice",
        request=BudgetRequest(),
        priority=None,
        labels=(("container", "Alice_1"), ("image", "agents:latest")),
        mount_source=None,
    )


@pytest.mark.parametrize(
    ("container_name", "session"),
    [
        ("/Alice_1", "alice_1"),
        ("/web.9-x", "web.9-x"),
        ("/UPPER", "upper"),
        ("", ID[:12]),
        ("/" + "x" * 200, "x" * 63),
    ],
)
def test_without_a_value_the_session_is_named_like_the_container(container_name: str, session: str) -> None:
    assert read_container(inspected({LABEL: ""}, Name=container_name)).name == session


@pytest.mark.parametrize(
    ("labels", "request_"),
    [
        ({"agentcgroup.memory": "2G"}, BudgetRequest(memory_max_bytes=2 << 30)),
        ({"agentcgroup.memory": "2G", "agentcgroup.agent-memory": "512M"},
         BudgetRequest(memory_max_bytes=2 << 30, agent_memory_bytes=512 << 20)),
        ({"agentcgroup.cpu": "1.5"}, BudgetRequest(cpu_milli=1500)),
        ({"agentcgroup.swap": "0"}, BudgetRequest(swap_max_bytes=0)),
        ({"agentcgroup.pids": "200", "agentcgroup.calls": "8"}, BudgetRequest(pids_max=200, calls_max=8)),
        ({"agentcgroup.weight": "50"}, BudgetRequest(cpu_weight=50)),
    ],
)  # fmt: skip
def test_labels_are_the_budget(labels: dict[str, str], request_: BudgetRequest) -> None:
    assert read_container(inspected(labels)).request == request_


@pytest.mark.parametrize(
    ("host_config", "request_"),
    [
        ({"Memory": 1 << 30, "MemorySwap": 2 << 30}, BudgetRequest(memory_max_bytes=1 << 30)),
        ({"NanoCpus": 1_500_000_000}, BudgetRequest(cpu_milli=1500)),
        ({"CpuQuota": 50_000, "CpuPeriod": 0}, BudgetRequest(cpu_milli=500)),
        ({"CpuQuota": 50_000, "CpuPeriod": 200_000}, BudgetRequest(cpu_milli=250)),
        ({"PidsLimit": 100}, BudgetRequest(pids_max=100)),
        ({"Memory": 0, "NanoCpus": 0, "CpuQuota": 0, "PidsLimit": None}, BudgetRequest()),
        ({"PidsLimit": -1, "CpuQuota": -1}, BudgetRequest()),
    ],
)
def test_the_limits_of_docker_run_are_the_budget_where_no_label_is(
    host_config: dict[str, Any], request_: BudgetRequest
) -> None:
    assert read_container(inspected(host_config=host_config)).request == request_


def test_a_label_goes_before_the_limit_of_docker_run() -> None:
    container = read_container(inspected({"agentcgroup.memory": "3G"}, {"Memory": 1 << 30}))
    assert container.request.memory_max_bytes == 3 << 30


def test_a_priority_is_read() -> None:
    assert read_container(inspected({"agentcgroup.priority": "high"})).priority is Priority.HIGH


@pytest.mark.parametrize(
    ("labels", "culprit", "hint"),
    [
        ({"agentcgroup.memry": "2G"}, "agentcgroup.memry", "did you mean agentcgroup.memory?"),
        ({"agentcgroup.zzz": "1"}, "agentcgroup.zzz", "known: "),
        ({"agentcgroup.memory": "much"}, "agentcgroup.memory", "2G"),
        ({"agentcgroup.memory": "0"}, "memory_max_bytes", "leave it out"),
        ({"agentcgroup.pids": "-1"}, "agentcgroup.pids", "whole number"),
        ({"agentcgroup.pids": "²"}, "agentcgroup.pids", "whole number"),
        ({"agentcgroup.priority": "urgent"}, "agentcgroup.priority", "low, normal, high"),
        ({LABEL: "../etc"}, LABEL, "1 to 63 characters"),
        ({LABEL: "x" * 300}, LABEL, "1 to 63 characters"),
        (
            {"agentcgroup.memory": "1G", "agentcgroup.agent-memory": "2G"},
            "agent_memory_bytes",
            "make it smaller",
        ),
    ],
)
def test_a_wrong_label_is_an_error_that_names_it_and_the_next_step(
    labels: dict[str, str], culprit: str, hint: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_container(inspected(labels))
    assert caught.value.kind is Kind.INVALID
    assert caught.value.field == culprit
    assert hint in str(caught.value)


def test_labels_of_others_are_left_alone() -> None:
    assert read_container(inspected({"com.example.team": "blue", "agentcgroupish": "1"})).name == "alice"


def test_the_mount_at_the_session_directory_is_where_the_sockets_go() -> None:
    mounts = [
        {"Type": "volume", "Source": "/var/lib/docker/volumes/x", "Destination": MOUNT_POINT},
        {"Type": "bind", "Source": "/srv", "Destination": "/data"},
        {"Type": "bind", "Source": "/run/agentcgroup/containers/alice", "Destination": MOUNT_POINT + "/"},
    ]
    container = read_container(inspected(Mounts=mounts))
    assert container.mount_source == Path("/run/agentcgroup/containers/alice")


def test_a_container_that_has_ended_is_said_to_have() -> None:
    container = read_container(inspected(State={"Pid": 0}))
    with pytest.raises(RequestError, match="has ended"):
        container_cgroup(container)


def test_a_container_without_a_cgroup_of_its_own_is_refused_with_the_reason() -> None:
    container = read_container(inspected(State={"Pid": os.getpid()}))
    with pytest.raises(RequestError, match="no cgroup of its own") as caught:
        container_cgroup(container)
    assert caught.value.kind is Kind.HOST


# ---- sockets in the mounted directory


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    make_directory(tmp_path)
    return tmp_path


def session_dir(run_dir: Path, name: str = "alice") -> tuple[Path, socket.socket]:
    place = run_dir / "sessions" / name
    place.mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(place / "launch.sock"))
    listener.listen()
    (place / "no-socket").write_text("not for the container")
    return place, listener


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        return client.connect_ex(str(path)) == 0


def test_no_user_of_the_host_gets_through_the_directory_of_the_mounts(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir(mode=0o755)  # as dockerd makes it when it is there first
    make_directory(tmp_path)
    assert stat.S_IMODE((tmp_path / DIRECTORY).stat().st_mode) == 0o700


def test_lent_sockets_connect_under_their_second_name_and_nothing_else_is_lent(run_dir: Path) -> None:
    place, listener = session_dir(run_dir)
    source = run_dir / DIRECTORY / "alice"
    source.mkdir()
    lend(place, source, run_dir)
    assert [path.name for path in source.iterdir()] == ["launch.sock"]
    assert connects(source / "launch.sock")
    listener.close()


def test_the_next_daemon_s_sockets_replace_the_former_ones_in_the_same_directory(run_dir: Path) -> None:
    source = run_dir / DIRECTORY / "alice"
    source.mkdir()
    held = os.open(source, os.O_RDONLY)  # as the container's mount holds it
    place, listener = session_dir(run_dir)
    lend(place, source, run_dir)
    listener.close()
    (place / "launch.sock").unlink()
    (place / "no-socket").unlink()
    place.rmdir()
    place, listener = session_dir(run_dir)
    lend(place, source, run_dir)
    assert connects(Path(f"/proc/self/fd/{held}/launch.sock"))
    os.close(held)
    listener.close()


def test_a_link_that_a_container_puts_in_the_way_is_replaced_not_followed(
    run_dir: Path, tmp_path: Path
) -> None:
    place, listener = session_dir(run_dir)
    source = run_dir / DIRECTORY / "alice"
    source.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (source / "launch.sock").symlink_to(victim)
    lend(place, source, run_dir)
    assert victim.read_text() == "precious"
    assert (source / "launch.sock").is_socket() and not (source / "launch.sock").is_symlink()
    listener.close()


@pytest.mark.parametrize("source", ["/etc", "sessions", "containers", "containers/a/b", "containers/.."])
def test_a_mount_outside_of_the_directory_is_refused(run_dir: Path, source: str) -> None:
    place, listener = session_dir(run_dir)
    with pytest.raises(RequestError, match="mount a directory of"):
        lend(place, run_dir / source, run_dir)
    listener.close()


def test_a_mounted_directory_that_is_a_link_is_refused(run_dir: Path, tmp_path: Path) -> None:
    place, listener = session_dir(run_dir)
    (run_dir / DIRECTORY / "alice").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="cannot be opened"):
        lend(place, run_dir / DIRECTORY / "alice", run_dir)
    listener.close()


def test_taking_back_leaves_the_directory_and_what_the_container_wrote(run_dir: Path) -> None:
    place, listener = session_dir(run_dir)
    source = run_dir / DIRECTORY / "alice"
    source.mkdir()
    lend(place, source, run_dir)
    (source / "notes").write_text("the container's own")
    take_back(source)
    take_back(source)
    assert [path.name for path in source.iterdir()] == ["notes"]
    take_back(run_dir / DIRECTORY / "never-there")
    listener.close()
