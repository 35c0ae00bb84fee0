"""`agentcg run` while it has no answer: in the queue, or where no daemon gives one. It is the sanitizers' build."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentcgroup.proto.launch import MOST_BYTES, Reply, Request, Status
from tests.unit.client.conftest import Door, RunLauncher
from tests.unit.client.scripted_door import ScriptedDoor, Step

GRANTED = Reply(Status.GRANTED, call_id="c1")


def test_a_queued_tool_says_where_it_stands_when_that_takes_longer_than_a_moment(
    door: Door, run: RunLauncher
) -> None:
    stands = threading.Event()
    steps: list[Step] = [
        Reply(Status.QUEUED, message="place 3"), Reply(Status.QUEUED, message="place 2"),
        # Well over the moment; and the answer's time limit, over long before, must not count while the call is queued.
        threading.Timer(4, stands.set).start, stands.wait, Reply(Status.QUEUED, message="place 1"), GRANTED,
    ]  # fmt: skip
    with door(steps):
        done = run("--answer-timeout", "50ms", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr == "agentcg: place 2\nagentcg: place 1\n"


def test_a_queue_that_is_over_in_a_moment_is_not_worth_a_line(door: Door, run: RunLauncher) -> None:
    with door([Reply(Status.QUEUED, message="place 1"), GRANTED]):
        done = run("--", "echo", "ran")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_somebody_at_a_terminal_is_told_at_once(
    door: Door, launcher: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    with door([Reply(Status.QUEUED, message="place 2"), Reply(Status.QUEUED, message="place 1"), GRANTED]):
        subprocess.run(
            [launcher, "run", "--", "true"],
            env=environment | {"AGENTCGROUP_SESSION_DIR": str(tmp_path)},
            stderr=theirs,
            check=True,
            timeout=60,
        )
    os.close(theirs)
    told = b""
    with contextlib.suppress(
        OSError
    ):  # EIO: everything is read that was written before the other side closed
        while part := os.read(ours, 4096):
            told += part
    assert told.split(b"\r\n")[:2] == [b"agentcg: place 2", b"agentcg: place 1"]
    os.close(ours)


def test_a_queued_tool_can_still_be_refused(door: Door, run: RunLauncher) -> None:
    with door(
        [Reply(Status.QUEUED, message="place 1"), Reply(Status.REFUSED, message="waited 5 min for nothing")]
    ):
        done = run("--", "true")
    assert (done.returncode, done.stderr) == (120, "agentcg: waited 5 min for nothing\n")


def test_how_long_to_wait_is_the_daemons_to_read(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]) as at:
        assert run("--memory", "1G", "--wait", "5m", "--", "true").returncode == 0
    assert at.heard[0].request == Request({"memory": "1G"}, arguments=("true",), wait="5m")


@pytest.mark.parametrize(
    ("steps", "cause"),
    [
        ([], "closed the connection without an answer"),
        ([Reply(Status.QUEUED, message="place 1")], "closed the connection without an answer"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "cut off"),
        ([b"agentcgroup-launch/2\0status=granted\0"], "different releases"),
        ([b"agentcgroup-launch/1\0status=granted\0call=c1"], "cut off"),
        ([b"agentcgroup-launch/1\0status=perhaps\0"], "status that this launcher does not know"),
        ([b"agentcgroup-launch/1\0call=c1\0"], "no status"),
        ([b"agentcgroup-launch/1\0nonsense\0status=granted\0"], "without '='"),
        ([b"agentcgroup-launch/1\0status=granted\0env=PATH\0"], "variable without a name"),
        ([b"agentcgroup-launch/1\0" + b"x=" + b"y" * (MOST_BYTES + 5) + b"\0status=granted\0"], "longer than"),
    ],
)  # fmt: skip
def test_a_daemon_that_gives_no_answer_is_like_none(
    door: Door, run: RunLauncher, steps: Sequence[Step], cause: str
) -> None:
    with door(steps):
        closed = run("--if-unreachable", "refuse", "--", "echo", "ran")
        opened = run("--if-unreachable", "run", "--", "echo", "ran")
    assert (closed.returncode, closed.stdout) == (121, "")
    assert (opened.returncode, opened.stdout) == (0, "ran\n")
    assert cause in closed.stderr and cause in opened.stderr


def test_without_a_daemon_the_tool_is_refused_by_default_and_run_when_asked(
    run: RunLauncher, tmp_path: Path
) -> None:
    default, by_option = run("--", "echo", "ran"), run("--if-unreachable=run", "--", "echo", "ran")
    by_variable = run("--", "echo", "ran", variables={"AGENTCGROUP_IF_UNREACHABLE": "run"})
    overruled = run(
        "--if-unreachable", "refuse", "--", "echo", "ran", variables={"AGENTCGROUP_IF_UNREACHABLE": "run"}
    )
    assert [each.returncode for each in (default, by_option, by_variable, overruled)] == [121, 0, 0, 121]
    assert [each.stdout for each in (default, by_option, by_variable, overruled)] == [
        "",
        "ran\n",
        "ran\n",
        "",
    ]
    assert f"{tmp_path}/launch.sock: No such file or directory" in default.stderr
    assert "running without limits" in by_option.stderr
    assert len(by_option.stderr.splitlines()) == len(by_variable.stderr.splitlines()) == 1


def test_a_daemon_that_says_nothing_is_waited_for_no_longer_than_told(door: Door, run: RunLauncher) -> None:
    # The door holds the connection open until the launcher has given up; it would wait for a minute otherwise.
    gone = threading.Event()
    with door([lambda: gone.wait(60)]):
        done = run("--answer-timeout", "100ms", "--", "true")
        gone.set()
    assert done.returncode == 121
    assert "did not answer in time" in done.stderr


def test_a_socket_that_nobody_listens_at_is_tried_again_until_the_next_daemon_does(
    launcher: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    socket_path, elsewhere = tmp_path / "launch.sock", tmp_path / "new"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
        gone.bind(str(socket_path))
    elsewhere.mkdir()
    asking = subprocess.Popen(
        [launcher, "run", "--", "echo", "ran"],
        env=environment | {"AGENTCGROUP_SESSION_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with ScriptedDoor(elsewhere, [Reply(Status.GRANTED)]) as next_door:
        (elsewhere / "launch.sock").rename(socket_path)
        assert asking.communicate(timeout=60)[0] == "ran\n"
    assert [heard.pid for heard in next_door.heard] == [asking.pid]


def test_a_place_in_the_queue_that_went_with_its_daemon_is_asked_for_anew_a_few_times(
    door: Door, run: RunLauncher
) -> None:
    with door([Reply(Status.QUEUED)]) as crashing:
        done = run("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (121, "")
    assert len(crashing.heard) == 4


def test_a_backlog_that_is_full_is_waited_for_no_longer_than_told(run: RunLauncher, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
    ):
        listener.bind(str(tmp_path / "launch.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "launch.sock"))
        done = run("--", "true", variables={"AGENTCGROUP_ANSWER_TIMEOUT": "100ms"})
    assert done.returncode == 121
    assert "did not accept the connection in time" in done.stderr
