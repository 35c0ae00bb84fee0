"""Containers of a real dockerd as sessions of the installed daemon; `docker exec` through the launcher as
calls in them.
"""

import json
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.client import HistoryEntry, OperatorClient, Session, Verdict
from tests.running import LAUNCHER, wait_until

UNIT = "agentcgroup.service"
IMAGE = "agentcgroup-test:latest"
CONTAINERS = Path("/run/agentcgroup/containers")
MIB = 1 << 20

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not Path("/run/systemd/system").is_dir() or shutil.which("dockerd") is None,
        reason="needs a host that systemd runs, with dockerd installed",
    ),
]


def run(*command: str, status: int | None = 0) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert status is None or ran.returncode == status, (
        f"{' '.join(command)}: {ran.returncode}: {ran.stdout}{ran.stderr}"
    )
    return (ran.stdout + ran.stderr).strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One of busybox alone, as there is no registry to pull from; the launcher comes by a mount."""
    run("systemctl", "start", UNIT)
    run("systemctl", "start", "docker")
    place = tmp_path_factory.mktemp("image")
    busybox = shutil.which("busybox")
    assert busybox is not None, "the guest has busybox-static"
    with tarfile.open(place / "image.tar", "w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "sleep", "cat", "tail", "ls", "true", "id"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    run("docker", "import", str(place / "image.tar"), IMAGE)
    yield IMAGE
    left = run("docker", "ps", "-aq", "--filter", "label=agentcgroup.session").split()
    if left:
        run("docker", "rm", "-f", *left)


class Container:
    """A running container with the label, sockets and launcher mounted."""

    def __init__(self, image: str, *options: str, name: str | None = None) -> None:
        self.name = name or f"t{uuid.uuid4().hex[:8]}"
        self.id = run(
            "docker", "run", "-d", "--name", self.name, "--network", "none",
            "--label", f"agentcgroup.session={self.name}",
            "-v", f"{CONTAINERS}/{self.name}:/run/agentcgroup/session:ro",
            "-v", f"{LAUNCHER}:/bin/agentcg:ro",
            *options, image, "sleep", "600",
        ).splitlines()[-1]  # fmt: skip

    def execute(self, *command: str, status: int | None = 0) -> str:
        return run("docker", "exec", self.name, *command, status=status)

    def remove(self) -> None:
        run("docker", "rm", "-f", self.name)


def session_of(container: Container) -> Session | None:
    with OperatorClient() as operator:
        for session in operator.sessions():
            if session.container_id == container.id:
                return session
    return None


def await_session(container: Container) -> Session:
    """The session, with its sockets shown in the container."""
    wait_until(lambda: session_of(container) is not None, 60, f"session of {container.name}")
    wait_until(
        lambda: (CONTAINERS / container.name / "launch.sock").is_socket(), 60, "the socket in the mount"
    )
    session = session_of(container)
    assert session is not None
    return session


def history(session: str) -> list[HistoryEntry]:
    """Its calls that have ended, the newest first."""
    with OperatorClient() as operator:
        return list(operator.history(session))


def await_history(session: str, count: int = 1) -> list[HistoryEntry]:
    wait_until(lambda: len(history(session)) >= count, 60, f"{count} calls in the history of {session}")
    return history(session)


@pytest.fixture(scope="module")
def made(image: str) -> Iterator[Container]:
    """One for all: making it and taking it away takes longer than most tests."""
    container = Container(image, "--memory", "160m", "--memory-swap", "160m")
    yield container
    container.remove()
    wait_until(lambda: session_of(container) is None, 60, "the end of the session")


@pytest.fixture
def container(made: Container) -> Container:
    await_session(made)
    return made


def test_a_labelled_container_is_a_session_on_its_own_cgroup_with_the_limits_of_docker_run(
    container: Container,
) -> None:
    session = await_session(container)
    assert session.name == container.name
    assert session.budget.memory_max_bytes == 160 * MIB
    assert session.cgroup.endswith(f"docker-{container.id}.scope")
    assert dict(session.labels) == {"container": container.name, "image": IMAGE}
    # Its own processes are the agent runtime now.
    assert container.execute("cat", "/proc/1/cgroup") == "0::/agent"


def test_docker_exec_through_the_launcher_is_a_call_in_the_container_s_session(container: Container) -> None:
    before = len(history(container.name))
    said = container.execute("agentcg", "run", "--memory", "16M", "--", "cat", "/proc/self/cgroup")
    assert said.startswith("0::/calls/c-")
    entry = await_history(container.name, before + 1)[0]
    assert entry.report.verdict is Verdict.OK
    assert f"0::/calls/{entry.report.call_id}" == said


def test_a_call_over_its_maximum_dies_alone_in_the_container(container: Container) -> None:
    before = len(history(container.name))
    container.execute(
        "agentcg", "run", "--memory", "8M", "--memory-max", "16M", "--", "tail", "/dev/zero", status=137
    )
    entry = await_history(container.name, before + 1)[0]
    assert entry.report.verdict is Verdict.MEMORY_LIMIT_CALL
    assert container.execute("cat", "/proc/1/comm") == "sleep"
    assert run(
        "docker", "inspect", "--format", "{{.State.OOMKilled}} {{.State.Running}}", container.name
    ).endswith("true")
    # Where its sockets are, for those in the container who can only read files.
    told = CONTAINERS / container.name / "feedback.txt"
    wait_until(lambda: entry.report.call_id in told.read_text(), 60, "the word about it in the container")


def test_a_container_sees_its_own_session_and_no_other(image: str, container: Container) -> None:
    other = Container(image)
    await_session(other)
    assert container.execute("ls", "/run/agentcgroup") == "session"
    there = set(container.execute("ls", "/run/agentcgroup/session").split())
    sockets, files = {"agent.sock", "launch.sock"}, {"feedback.json", "feedback.txt"}
    assert sockets <= there <= sockets | files
    before = len(history(container.name))
    other.execute("agentcg", "run", "--", "true")
    await_history(other.name)
    assert len(history(container.name)) == before
    other.remove()


def test_what_enters_a_transparent_container_is_a_call_without_the_launcher(image: str) -> None:
    container = Container(image, "--label", "agentcgroup.transparent=outside")
    await_session(container)
    container.execute("sleep", "2")
    (entry,) = await_history(container.name)
    assert entry.report.verdict is Verdict.OK and entry.intent.command == ("sleep", "2")
    assert "after its exec" in entry.report.message
    # A shell that reads its commands, as harnesses keep one for all of them: each is a call.
    subprocess.run(
        ["docker", "exec", "-i", container.name, "sh"],
        input="cd /; sleep 1\necho between; sleep 2\n",
        text=True,
        check=True,
        capture_output=True,
    )
    entries = await_history(container.name, 3)
    assert [each.intent.command for each in entries] == [("sleep", "2"), ("sleep", "1"), ("sleep", "2")]
    # Who enters the container's namespaces, and not its cgroup, comes from outside as well.
    first = run("docker", "inspect", "--format", "{{.State.Pid}}", container.name)
    subprocess.run(["nsenter", "--target", first, "--all", "sleep", "3"], check=True, capture_output=True)
    assert await_history(container.name, 4)[0].intent.command == ("sleep", "3")
    assert container.execute("cat", "/proc/1/cgroup") == "0::/agent"
    container.remove()


def test_any_user_of_the_container_may_declare_calls(container: Container) -> None:
    said = run("docker", "exec", "--user", "1000:1000", container.name, "agentcg", "run", "--", "id", "-u")
    assert said == "1000"


def test_a_restarted_container_is_a_session_again_with_sockets_in_the_same_mount(
    container: Container,
) -> None:
    first = await_session(container)
    run("docker", "restart", "-t", "0", container.name)
    wait_until(
        lambda: (now := session_of(container)) is not None and now.created_at != first.created_at,
        60, "a new session of the restarted container",
    )  # fmt: skip
    wait_until(
        lambda: container.execute("agentcg", "run", "--", "true", status=None) == "", 60, "a call in it"
    )


def test_a_restarted_daemon_finds_the_containers_that_run_and_their_mounts(container: Container) -> None:
    session = await_session(container).name
    tool = subprocess.Popen(["docker", "exec", container.name, "agentcg", "run", "--", "sleep", "600"])
    with OperatorClient() as operator:
        wait_until(lambda: operator.calls(session), 60, "the call")
        (before,) = operator.calls(session)
    run("systemctl", "restart", UNIT)
    await_session(container)
    with OperatorClient() as operator:
        wait_until(lambda: operator.calls(session), 60, "the call, taken over")
        (now,) = operator.calls(session)
        assert (now.id, now.pid, now.cgroup) == (before.id, before.pid, before.cgroup)
        assert operator.kill_call(now.id).verdict is Verdict.OPERATOR
    tool.wait(60)
    wait_until(
        lambda: container.execute("agentcg", "run", "--", "true", status=None) == "", 60, "a call in it"
    )
    assert container.execute("cat", "/proc/1/cgroup") == "0::/agent"


def test_a_restarted_dockerd_is_followed_again(image: str) -> None:
    run("systemctl", "restart", "docker")
    container = Container(image, "--label", "agentcgroup.memory=96M", "--label", "agentcgroup.priority=low")
    session = await_session(container)
    assert session.budget.memory_max_bytes == 96 * MIB
    assert str(session.priority) == "low"
    container.execute("agentcg", "run", "--", "true")
    container.remove()


def test_a_wrong_label_leaves_the_container_alone_and_is_explained_in_the_log(image: str) -> None:
    container = Container(image, "--label", "agentcgroup.memry=1G")

    def is_explained() -> bool:
        log = run("journalctl", "-u", UNIT, "-o", "json", "-n", "50")
        messages = [str(json.loads(line)["MESSAGE"]) for line in log.splitlines() if line.startswith("{")]
        return any(
            container.id[:12] in text and "did you mean agentcgroup.memory?" in text for text in messages
        )

    wait_until(is_explained, 60, "the explanation in the log")
    assert session_of(container) is None
    assert "scope/agent" not in container.execute("cat", "/proc/1/cgroup")
    container.remove()
