"""The transparent door of a real daemon: tools that come without launcher or wrapper become calls, later than a hold would.

There is no scheduler that holds them here, so a tool that is to be placed lives for a moment.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from agentcgroup.client import Client, InvalidRequest, OperatorClient, Verdict
from agentcgroup.client.errors import ClientError
from tests.ear import Ear
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until
from tests.shell_agent import Agent, cgroup_of

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root"),
    pytest.mark.skipif(
        not features.tracing().is_available, reason=f"no tracing programs here: {features.tracing().detail}"
    ),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), '[bpf]\nenabled = "on"\n') as running:
        yield running


@pytest.fixture
def agent(
    daemon: RunningDaemon, operator: OperatorClient, request: pytest.FixtureRequest
) -> Iterator[Agent]:
    agent = Agent(
        daemon, operator, getattr(request, "param", "all"), f"t{abs(hash(request.node.name)) % 10**8}"
    )
    yield agent
    agent.end()


def test_a_command_of_the_agent_is_a_call_without_having_asked(agent: Agent) -> None:
    agent.begin("/bin/sleep 30; echo over")
    (call,) = agent.calls()
    assert call.intent.command == ("/bin/sleep", "30")
    assert call.placement_delay_ms is not None and not call.was_held
    assert cgroup_of(call.pid).endswith(f"/{agent.name}/calls/{call.id}")
    assert cgroup_of(agent.pid).endswith(f"/{agent.name}/agent")
    os.kill(call.pid, signal.SIGTERM)
    (entry,) = agent.ended()
    assert (entry.report.verdict, entry.report.signal) == (Verdict.SIGNAL, signal.SIGTERM)
    assert "ms after its exec" in entry.report.message
    assert agent.operator.session(agent.name).transparent_placed == 1


def test_the_exit_status_is_the_tools_own(agent: Agent) -> None:
    agent.run("/bin/sh -c '/bin/sleep 0.3; exit 7'")
    (entry,) = agent.ended()
    assert (entry.report.verdict, entry.report.exit_code) == (Verdict.EXIT_CODE, 7)
    assert entry.report.leftover_processes == 0


@pytest.mark.parametrize(
    "command",
    [
        "bash -lc 'sleep 0.4; :'",
        "sh -c 'sleep 0.4; :'",
        "zsh -c 'sleep 0.4; :'",
        f'{sys.executable} -c \'import subprocess; subprocess.run(["sleep", "0.4"])\'',
    ],
)
def test_what_a_command_executes_stays_in_its_call(agent: Agent, command: str) -> None:
    if shutil.which(command.split()[0]) is None:
        # What counts is that it is a shell which was given its command.
        command = f"exec -a {command.split()[0]} dash {command.partition(' ')[2]}"
        agent.run(f"({command})")
    else:
        agent.run(command)
    (entry,) = agent.ended()
    assert "sleep" in entry.intent.command[2]
    assert agent.operator.session(agent.name).calls_ended == 1


def test_a_subprocess_of_an_agent_in_python_is_a_call(agent: Agent) -> None:
    code = "import subprocess; subprocess.run(['/bin/sleep', '0.4'])"
    # What replaces the agent runtime in place is the agent runtime.
    agent.begin(f'exec {sys.executable} -c "{code}"')
    assert agent.commands() == [("/bin/sleep", "0.4")]


def test_a_shell_that_reads_its_commands_yields_a_call_for_each_and_none_for_builtins(agent: Agent) -> None:
    agent.run("printf 'cd /; echo here; /bin/sleep 0.3\\n/bin/sleep 0.4\\n' | /bin/bash")
    assert agent.commands(2) == [("/bin/sleep", "0.3"), ("/bin/sleep", "0.4")]
    assert agent.operator.session(agent.name).calls_ended == 2


@pytest.mark.parametrize("job_control", ["set +m", "set -m"])
def test_a_pipeline_is_one_call_with_the_status_of_its_last_process(agent: Agent, job_control: str) -> None:
    agent.run(
        f"{job_control}; /bin/sh -c 'sleep 0.6; echo x' | /bin/cat | /bin/sh -c 'cat; sleep 0.3; exit 5'"
    )
    (entry,) = agent.ended()
    assert (entry.report.verdict, entry.report.exit_code) == (Verdict.EXIT_CODE, 5)
    assert entry.report.leftover_processes == 0
    session = agent.operator.session(agent.name)
    assert (session.calls_ended, session.transparent_placed) == (1, 3)


def test_two_commands_at_once_are_two_calls(agent: Agent) -> None:
    agent.begin("/bin/sleep 20 & /bin/sleep 21 & wait")
    assert sorted(call.intent.command for call in agent.calls(2)) == [
        ("/bin/sleep", "20"),
        ("/bin/sleep", "21"),
    ]


@pytest.mark.parametrize("agent", ["all,exclude=sleep"], indirect=True)
def test_an_excluded_command_stays_with_the_agent_and_its_own_are_looked_at(agent: Agent) -> None:
    agent.run("/bin/sleep 0.3; cp /bin/bash /tmp/acg-sleep-$$; rm /tmp/acg-sleep-$$")
    agent.run("/usr/bin/env -i /bin/sleep 0.3")
    agent.run("/usr/bin/timeout 10 /bin/sleep 0.3")
    # env became sleep in place; timeout is a call and sleep nested in it.
    assert ("/usr/bin/timeout", "10", "/bin/sleep", "0.3") in agent.commands()
    assert ("/bin/sleep", "0.3") not in agent.commands()


@pytest.mark.parametrize("agent", ["outside"], indirect=True)
def test_what_enters_from_outside_is_a_call(agent: Agent) -> None:
    agent.run("/bin/sleep 0.2")
    leaf = agent.daemon.root / agent.name / "agent"
    entered = subprocess.Popen(
        ["sh", "-c", f"echo $$ > {leaf}/cgroup.procs; exec /bin/sleep 30"], stdout=subprocess.DEVNULL
    )
    (call,) = agent.calls()
    assert call.pid == entered.pid and call.intent.command == ("/bin/sleep", "30")
    entered.kill()
    assert entered.wait(30) == -signal.SIGKILL
    assert agent.commands() == [("/bin/sleep", "30")]


@pytest.mark.parametrize("agent", ["outside"], indirect=True)
def test_what_enters_a_containers_namespaces_and_not_its_cgroup_is_a_call(agent: Agent) -> None:
    # What replaces the runtime in place is the runtime; a container's is there before its session.
    agent.begin("exec unshare --mount bash")
    agent.run(":")
    agent.operator.update_session(agent.name, transparent="all")
    entering = ["nsenter", "--target", str(agent.pid), "--mount"]
    own = cgroup_of(os.getpid())
    subprocess.run(["sh", "-c", "sleep 0.2"], check=True, timeout=30)
    with subprocess.Popen([*entering, "sh", "-c", "sleep 30; :"]) as entered:
        (call,) = agent.calls()
        assert call.pid == entered.pid and call.intent.command == ("sh", "-c", "sleep 30; :")
        assert cgroup_of(call.pid).endswith(call.id) and cgroup_of(os.getpid()) == own
        agent.operator.kill_call(call.id)
        assert entered.wait(30) == -signal.SIGKILL
    # A shell that reads its commands stays where it is, and each of them is a call.
    subprocess.run([*entering, "sh"], input="sleep 0.3\n", text=True, check=True, timeout=30)
    assert agent.commands(2)[1] == ("sleep", "0.3")
    agent.operator.update_session(agent.name, transparent="agent")
    subprocess.run([*entering, "sleep", "0.3"], check=True, timeout=30)
    assert agent.operator.session(agent.name).calls_ended == 2


def test_what_the_process_had_forked_comes_along(agent: Agent) -> None:
    # A shell with a child of its own that becomes another program in place.
    agent.begin("(/bin/true & exec -a first bash -c 'exec sleep 30') & wait")
    (call,) = agent.calls()
    assert cgroup_of(call.pid).endswith(call.id)


def test_what_was_too_short_is_counted_and_leaves_nothing(agent: Agent) -> None:
    agent.run("i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i+1)); done")
    wait_until(
        lambda: (s := agent.operator.session(agent.name)).transparent_placed + s.transparent_missed == 60,
        what="sixty execs",
    )
    wait_until(lambda: agent.operator.calls(agent.name) == [], what="the end of all calls")
    session = agent.operator.session(agent.name)
    assert len(list(agent.operator.history(agent.name))) == session.transparent_placed
    assert session.memory_reserved_bytes == 0
    assert agent.daemon.call_cgroups() == []


def test_the_launcher_needs_no_transparent_door(agent: Agent) -> None:
    said = agent.run(
        f"{LAUNCHER} run --session-dir {agent.daemon.session_dir(agent.name)} -- cat /proc/self/cgroup"
    )
    assert said.count("/c-") == 1
    (entry,) = agent.ended()
    assert "after its exec" not in entry.report.message
    assert agent.operator.session(agent.name).transparent_placed == 0


def test_a_refused_command_runs_on_and_the_agent_is_told(agent: Agent) -> None:
    agent.operator.update_session(agent.name, calls=1)
    agent.begin("/bin/sleep 20 &")
    agent.calls()
    with Ear(Client(agent.daemon.session_dir(agent.name))) as ear:
        agent.begin("/bin/sh -c 'sleep 0.5; echo still' > /dev/null")
        told = ear.wait(lambda message: "without limits of its own" in message.message, what="the word")
    assert "sleep 0.5" in told.message
    agent.run(":")
    assert len(agent.operator.calls(agent.name)) == 1
    assert list(agent.operator.history(agent.name)) == []


def test_the_door_can_be_opened_and_closed_later(agent: Agent) -> None:
    assert str(agent.operator.update_session(agent.name, transparent="off").transparent) == "off"
    agent.run("/bin/sleep 0.3")
    changed = agent.operator.update_session(agent.name, transparent="agent,exclude=git")
    assert str(changed.transparent) == "agent,exclude=git"
    agent.run("/bin/sleep 0.4")
    assert agent.commands() == [("/bin/sleep", "0.4")]


def test_a_wrong_rule_is_refused_before_anything_is_made(operator: OperatorClient) -> None:
    with pytest.raises(InvalidRequest, match="none of off, agent, outside, all"):
        operator.create_session("wrong", transparent="sometimes")


def test_two_hundred_execs_a_second_lose_no_event(agent: Agent) -> None:
    began = time.monotonic()
    agent.run("i=0; while [ $i -lt 400 ]; do /bin/true; i=$((i+1)); done")
    print(f"400 execs in {time.monotonic() - began:.1f} s")

    def told() -> int:
        session = agent.operator.session(agent.name)
        return session.transparent_placed + session.transparent_missed

    wait_until(lambda: told() == 400, what="every exec being told")
    print(agent.operator.session(agent.name))


def test_where_there_are_no_kernel_events_a_door_is_refused_with_the_reason(tmp_path: Path) -> None:
    with running_daemon(tmp_path, '[bpf]\nenabled = "off"\n') as daemon, daemon.operator() as operator:
        with pytest.raises(ClientError, match="no kernel events"):
            operator.create_session("plain", transparent="all")
        operator.create_session("plain")
        assert str(operator.session("plain").transparent) == "off"
