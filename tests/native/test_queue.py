"""The queue with the real daemon and the real launcher."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from agentcgroup.client import CallState, Client, OperatorClient
from tests.running import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("queue")) as running:
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    """In a session whose calls may use 512 MiB together."""
    with daemon.operator() as operator:
        operator.create_session("q", memory=768 * MIB, agent_memory=256 * MIB)
        with Client(daemon.session_dir("q")) as client:
            yield client
        operator.remove_session("q")


def queued(client: Client) -> list[str]:
    return [call.id for call in client.tree() if call.state is CallState.QUEUED]


def launch(daemon: RunningDaemon, *command: str, wait: str = "1m") -> "subprocess.Popen[str]":
    return daemon.launch("q", *command, options=("--memory", "400M", "--wait", wait))


def test_launches_that_do_not_fit_together_run_one_after_the_other(
    daemon: RunningDaemon, client: Client
) -> None:
    tools = [launch(daemon, "sh", "-c", "sleep 0.2; echo ran") for _ in range(4)]
    for tool in tools:
        out, err = tool.communicate(timeout=60)
        assert (tool.returncode, out) == (0, "ran\n"), err
    assert queued(client) == []


def test_serial_launches_are_never_refused_for_the_one_that_is_ending(
    daemon: RunningDaemon, client: Client
) -> None:
    for _ in range(10):
        tool = launch(daemon, "true")
        assert tool.wait(60) == 0, tool.communicate()[1]


def test_a_launcher_that_is_killed_while_it_waits_leaves_the_queue(
    daemon: RunningDaemon, client: Client
) -> None:
    holder = launch(daemon, "sleep", "60")
    wait_until(lambda: len(client.tree()) == 1, what="the first call")
    waiting = launch(daemon, "touch", "/nonexistent/never")
    wait_until(lambda: len(queued(client)) == 1, what="the second in the queue")
    waiting.send_signal(signal.SIGKILL)
    waiting.wait(30)
    wait_until(lambda: queued(client) == [], what="an empty queue")
    holder.kill()
    holder.wait(30)
    wait_until(lambda: client.tree() == [], what="no call")


def test_without_a_wait_and_after_it_the_launcher_is_refused(daemon: RunningDaemon, client: Client) -> None:
    holder = launch(daemon, "sleep", "60")
    wait_until(lambda: len(client.tree()) == 1, what="the first call")
    for wait, words in (("0", "112M"), ("100ms", "It waited 100 ms")):
        refused = launch(daemon, "true", wait=wait)
        _, err = refused.communicate(timeout=60)
        assert refused.returncode == 120
        assert words in err
    holder.kill()
    holder.wait(30)


def test_the_end_of_the_session_ends_its_queue(daemon: RunningDaemon) -> None:
    with daemon.operator() as operator, Client(daemon.session_dir("q")) as client:
        operator.create_session("q", memory=768 * MIB, agent_memory=256 * MIB)
        tools = [launch(daemon, "sleep", "60")]
        wait_until(lambda: len(client.tree()) == 1, what="the first call")
        tools += [launch(daemon, "sleep", "60") for _ in range(3)]
        wait_until(lambda: len(queued(client)) == 3, what="three in the queue")
        operator.remove_session("q")
        for tool in tools[1:]:
            _, err = tool.communicate(timeout=60)
            assert tool.returncode == 120
            assert "session is being removed" in err
        assert tools[0].wait(60) == -signal.SIGKILL
        assert is_empty(operator)


def is_empty(operator: OperatorClient) -> bool:
    return operator.calls() == [] and operator.host().calls_live == 0
