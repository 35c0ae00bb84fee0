"""What the client's tests share: the launcher built from this tree, and a session directory to point it at."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agentcgroup.client.cli.__main__ import carry_out
from tests.unit.client.scripted_daemon import AGENT_SERVICE, OPERATOR_SERVICE, ScriptedDaemon
from tests.unit.client.scripted_door import ScriptedDoor, Step

LAUNCHER_SOURCES = Path(__file__).resolve().parents[3] / "client" / "launcher"

RunLauncher = Callable[..., subprocess.CompletedProcess[str]]
Cli = Callable[..., tuple[int, str, str]]
Door = Callable[[Sequence[Step]], ScriptedDoor]


@pytest.fixture(scope="session")
def sanitized_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the launcher and the probe of its parser, built with the sanitizers: every test that runs them is
    also a test for memory errors and undefined behaviour."""
    directory = tmp_path_factory.mktemp("sanitized")
    subprocess.run(
        ["make", "-s", "-C", str(LAUNCHER_SOURCES), "sanitized", f"OUT={directory}", "VERSION=9.8.7"],
        check=True,
        timeout=100,
    )
    return directory


@pytest.fixture(scope="session")
def launcher(sanitized_dir: Path) -> Path:
    return sanitized_dir / "agentcg"


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's environment without what would point a client anywhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AGENTCGROUP_")}


@pytest.fixture
def run(launcher: Path, tmp_path: Path, environment: dict[str, str]) -> RunLauncher:
    """`agentcg run ...` against the door in tmp_path; `variables` are added to its environment."""

    def run_launcher(
        *words: str | bytes, variables: dict[str, str] | None = None, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [launcher, "run", *words],
            env=environment | {"AGENTCGROUP_SESSION_DIR": str(tmp_path)} | (variables or {}),
            capture_output=True,
            text=True,
            input=input,
            check=False,
            timeout=60,
        )

    return run_launcher


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """Makes a door in tmp_path; to be used as a context manager."""
    return lambda steps: ScriptedDoor(tmp_path, steps)


@pytest.fixture
def agent_daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    """A session's agent.sock in tmp_path, which so is a session directory."""
    with ScriptedDaemon(tmp_path / "agent.sock", AGENT_SERVICE) as daemon:
        yield daemon


@pytest.fixture
def operator_daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "operator.sock", OPERATOR_SERVICE) as daemon:
        yield daemon


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, operator_daemon: ScriptedDaemon) -> ScriptedDaemon:
    """The operator's daemon, and no session around this process."""
    monkeypatch.delenv("AGENTCGROUP_SESSION_DIR", raising=False)
    monkeypatch.setenv("AGENTCGROUP_OPERATOR_SOCKET", str(operator_daemon.socket))
    monkeypatch.setattr("agentcgroup.client.places.DEFAULT_SESSION_DIR", "/nonexistent")
    return operator_daemon


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, agent_daemon: ScriptedDaemon) -> ScriptedDaemon:
    """The agent's daemon, and its session around this process."""
    monkeypatch.setenv("AGENTCGROUP_SESSION_DIR", str(agent_daemon.socket.parent))
    return agent_daemon


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Carries out a command; its exit status, standard output and standard error."""

    def carry_out_and_capture(*words: str) -> tuple[int, str, str]:
        try:
            status = carry_out([*words])
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
        output, errors = capsys.readouterr()
        return status, output, errors

    return carry_out_and_capture
