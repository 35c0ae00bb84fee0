"""`agentcg session run`: whom the agent runs as, what it finds, and that the process becomes it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2, status_pb2

from agentcgroup.client.cli import identity
from agentcgroup.client.cli.session_run import project_label
from agentcgroup.client.errors import Denied, InvalidRequest
from agentcgroup.proto.v1 import agent_pb2 as agent, operator_pb2 as operator, types_pb2 as pb
from tests.unit.client.scripted_daemon import ScriptedDaemon

Run = Callable[..., subprocess.CompletedProcess[str]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    tree = tmp_path / "django"
    (tree / ".git").mkdir(parents=True)
    (tree / "tests").mkdir()
    return tree


@pytest.fixture
def run(
    operator_daemon: ScriptedDaemon,
    agent_daemon: ScriptedDaemon,
    environment: dict[str, str],
    work_tree: Path,
) -> Run:
    """Runs `agentcg session run`, in a work tree, against both sockets of a daemon that has made the session."""

    def created(request: operator.CreateSessionRequest) -> operator.CreateSessionResponse:
        session = pb.Session(
            name=request.name,
            state=pb.SESSION_STATE_OPEN,
            budget=request.budget,
            socket_dir=str(agent_daemon.socket.parent),
        )
        return operator.CreateSessionResponse(session=session)

    operator_daemon.answers |= {
        "CreateSession": created,
        "PlaceAgent": operator.PlaceAgentResponse(session=pb.Session(name="s", state=pb.SESSION_STATE_OPEN)),
        "RemoveSession": operator.RemoveSessionResponse(),
    }
    agent_daemon.answers["GetLimits"] = agent.GetLimitsResponse(
        session="s", budget=pb.Budget(memory_max_bytes=2**32), cpu_available_milli=1500
    )

    def run_agent(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "agentcgroup.client.cli", "session", "run", *words],
            env=environment | {"AGENTCGROUP_OPERATOR_SOCKET": str(operator_daemon.socket)} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=work_tree / "tests",
        )

    return run_agent


def test_the_process_that_was_placed_becomes_the_agent(
    run: Run, operator_daemon: ScriptedDaemon, agent_daemon: ScriptedDaemon
) -> None:
    told_of = ("SESSION", "MEMORY_BYTES", "CPU_MILLI", "SESSION_DIR")
    script = f"echo $$ {' '.join(f'$AGENTCGROUP_{name}' for name in told_of)}; exit 7"
    done = run("s", "--memory", "4G", "--priority", "high", "--label", "a=b", "--", "sh", "-c", script)
    pid, *told = done.stdout.split()
    assert (done.returncode, done.stderr) == (7, "")
    assert told == ["s", str(2**32), "1500", str(agent_daemon.socket.parent)]
    (placed,) = operator_daemon.requests("PlaceAgent")
    assert (placed.name, placed.process.pid) == ("s", int(pid))
    (created,) = operator_daemon.requests("CreateSession")
    assert created == operator.CreateSessionRequest(
        name="s", budget=pb.Budget(memory_max_bytes=2**32), priority=pb.PRIORITY_HIGH,
        labels={"a": "b", "project": "django"},
        owner_uid=os.getuid(), owner_gid=os.getgid(), ends_with_agent=True,
    )  # fmt: skip


def test_a_label_that_is_given_goes_before_that_of_the_work_tree(
    run: Run, operator_daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    assert run("s", "--label", "project=mine", "--", "true").returncode == 0
    (created,) = operator_daemon.requests("CreateSession")
    assert dict(created.labels) == {"project": "mine"}
    assert project_label(str(tmp_path)) == {}


def test_the_agent_finds_the_launcher_and_nothing_of_the_operators(run: Run) -> None:
    names = ("LAUNCHER", "OPERATOR_SOCKET", "SESSION_DIR", "FEEDBACK")
    told = "|".join(f"$AGENTCGROUP_{name}" for name in names)
    done = run("s", "--", "sh", "-c", f'echo "{told}|$PATH"')
    launcher, socket, session_dir, feedback, path = done.stdout.strip().split("|")
    assert feedback == f"{session_dir}/feedback.json"
    assert os.access(launcher, os.X_OK) and Path(launcher).name == "agentcg"
    assert (socket, path) == ("", os.environ["PATH"])


def test_the_agent_starts_as_any_program_does(run: Run) -> None:
    # No descriptor of gRPC's, no ignored or blocked signal of Python's.
    done = run("s", "--", "sh", "-c", "ls /proc/$$/fd; exec grep -E '^Sig(Blk|Ign)' /proc/self/status")
    *fds, _, blocked, _, ignored = done.stdout.split()
    assert fds == ["0", "1", "2"]
    assert int(blocked, 16) == 0
    # What the tests themselves were started with (nohup, make, a shell's background) is not Python's doing.
    inherited = next(line for line in Path("/proc/self/status").read_text().splitlines() if "SigIgn" in line)
    pythons = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert int(ignored, 16) & ~(int(inherited.split()[1], 16) & ~pythons) == 0


def test_a_session_can_outlive_its_agent(run: Run, operator_daemon: ScriptedDaemon) -> None:
    assert run("s", "--keep", "--", "true").returncode == 0
    assert operator_daemon.requests("CreateSession")[0].ends_with_agent is False


def test_a_signal_that_ends_the_agent_ends_the_command(run: Run) -> None:
    assert run("s", "--", "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


@needs_root
def test_the_agent_of_one_who_called_sudo_is_an_ordinary_process_of_theirs(
    run: Run, operator_daemon: ScriptedDaemon
) -> None:
    script = "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/$$/status; echo $HOME $USER $LOGNAME; cat /proc/keys"
    done = run("s", "--", "sh", "-c", script, SUDO_UID="65534", SUDO_GID="65534", USER="root", HOME="/root")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["Uid:", *["65534"] * 4]
    assert lines[1].split() == ["Gid:", *["65534"] * 4]
    assert lines[2].split() == ["Groups:", "65534"]
    assert {line.split()[1] for line in lines[3:5]} == {"0" * 16}
    assert lines[5].split() == ["/nonexistent", "nobody", "nobody"]
    (created,) = operator_daemon.requests("CreateSession")
    assert (created.owner_uid, created.owner_gid) == (65534, 65534)


@needs_root
def test_an_agent_can_be_root_only_when_that_is_asked_for(run: Run, operator_daemon: ScriptedDaemon) -> None:
    sudo = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    assert run("s", "--user", "root", "--", "id", "-u", **sudo).stdout == "0\n"
    assert (
        run("s", "--user", "65533:65532", "--", "sh", "-c", "id -u; id -G", **sudo).stdout
        == "65533\n65532\n"
    )
    created = operator_daemon.requests("CreateSession")
    assert [(each.owner_uid, each.owner_gid) for each in created] == [(0, 0), (65533, 65532)]


def test_an_agent_that_is_not_there_makes_no_session(
    run: Run, operator_daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    missing = run("s", "--json", "--", "no-such-agent")
    told = json.loads(missing.stderr)
    assert (missing.returncode, told["exit_status"]) == (127, 127)
    assert told["cause"] == "no-such-agent: command not found" and told["next_step"].startswith(
        "Write its name"
    )
    assert run("s", "--", str(plain)).returncode == 126
    assert operator_daemon.heard == []


def test_an_agent_that_the_kernel_will_not_execute_is_said_and_126(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    done = run("s", "--", str(broken))
    assert done.returncode == 126
    assert done.stderr.startswith(f"agentcg: {broken}: Exec format error\nagentcg: Name a program ")
    told = json.loads(run("s", "--json", "--", str(broken)).stderr)
    assert (told["cause"], told["exit_status"]) == (f"{broken}: Exec format error", 126)


@pytest.mark.parametrize("failing", ["PlaceAgent", "GetLimits"])
def test_a_session_whose_agent_could_not_be_placed_is_removed_again(
    run: Run, operator_daemon: ScriptedDaemon, agent_daemon: ScriptedDaemon, failing: str
) -> None:
    daemon = operator_daemon if failing == "PlaceAgent" else agent_daemon
    daemon.answers[failing] = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="not now")
    done = run("s", "--", "true")
    assert (done.returncode, done.stderr) == (5, "agentcg: not now\n")
    assert [each.name for each in operator_daemon.requests("RemoveSession")] == ["s"]


def test_a_session_of_that_name_is_left_alone(run: Run, operator_daemon: ScriptedDaemon) -> None:
    operator_daemon.answers["CreateSession"] = status_pb2.Status(
        code=code_pb2.ALREADY_EXISTS, message="s is live"
    )
    done = run("s", "--", "true")
    assert (done.returncode, done.stderr) == (4, "agentcg: s is live\n")
    assert operator_daemon.requests("RemoveSession") == []


@pytest.mark.parametrize(
    ("user", "environment", "own", "expected"),
    [
        (None, {}, 65534, (65534, 65534)),
        (None, {"SUDO_UID": "1", "SUDO_GID": "2"}, 0, (1, 2)),
        (None, {"SUDO_UID": "1", "SUDO_GID": "2"}, 65534, (65534, 65534)),
        (None, {"SUDO_UID": "x", "SUDO_GID": "2"}, 0, (0, 0)),
        ("nobody", {"SUDO_UID": "1", "SUDO_GID": "2"}, 0, (65534, 65534)),
        ("root", {"SUDO_UID": "1", "SUDO_GID": "2"}, 0, (0, 0)),
        ("4711:815", {}, 0, (4711, 815)),
        ("65534", {}, 65534, (65534, 65534)),
    ],
)
def test_the_agents_user_is_chosen(
    user: str | None, environment: dict[str, str], own: int, expected: tuple[int, int]
) -> None:
    chosen = identity.choose(user, environment, own, own)
    assert (chosen.uid, chosen.gid) == expected


@pytest.mark.parametrize(
    ("user", "own", "error"),
    [
        ("4711", 0, InvalidRequest),
        ("no-such-user", 0, InvalidRequest),
        ("a\0b", 0, InvalidRequest),
        ("4711:", 0, InvalidRequest),
        ("", 0, InvalidRequest),
        ("root", 65534, Denied),
    ],
)
def test_a_user_that_cannot_be_is_an_error(user: str, own: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        identity.choose(user, {}, own, own)


def test_the_environment_is_that_of_the_user_and_the_rest_stays() -> None:
    user = identity.Identity(65534, 65534, "nobody", "/nonexistent", "/bin/false")
    before: dict[str, Any] = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "TERM": "xterm",
        "PATH": "/bin",
    }
    assert identity.environment_of(user, before, 65534) == before
    assert identity.environment_of(user, before, 0) == before | {
        "HOME": "/nonexistent", "USER": "nobody", "LOGNAME": "nobody", "SHELL": "/bin/false",
    }  # fmt: skip
    nameless = identity.environment_of(identity.Identity(4711, 815), before, 0)
    assert (nameless["HOME"], nameless["USER"]) == ("/", "4711")
