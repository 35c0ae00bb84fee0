"""The transparent door on kernels with controllers: placed, and held meanwhile where there is sched_ext."""

from collections.abc import Iterator

import pytest

from agentcgroup.bpf import features
from agentcgroup.client import HistoryEntry, OperatorClient, Verdict
from tests.running import RunningDaemon, running_daemon, wait_until
from tests.shell_agent import Agent

pytestmark = pytest.mark.kernel

MIB = 1 << 20
HAS_HOLDS = features.sched_ext().is_available
COUNT = 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    # Without sched_ext the mode is refused by the kernel, which the daemon says and goes on. An emulated machine, as the
    # guest is, takes its time.
    scheduler = '[scheduler]\nmode = "full"\ndoor_hold = "500ms"\n'
    settings = f'[bpf]\nenabled = "on"\n{scheduler}[call]\nmemory = "64M"\n'
    with running_daemon(tmp_path_factory.mktemp("door"), settings, unenforced="refuse") as running:
        yield running


@pytest.fixture
def operator(daemon: RunningDaemon) -> Iterator[OperatorClient]:
    with daemon.operator() as client:
        yield client


@pytest.fixture
def agent(
    daemon: RunningDaemon, operator: OperatorClient, request: pytest.FixtureRequest
) -> Iterator[Agent]:
    agent = Agent(daemon, operator, "all", f"t{abs(hash(request.node.name)) % 10**8}", memory="700M")
    yield agent
    agent.end()


def leaf_peak_bytes(agent: Agent) -> int:
    leaf = agent.daemon.root / agent.name / "agent"
    return int((leaf / "memory.peak").read_text())


def test_what_a_tool_needs_is_on_its_own_account_and_it_is_held_where_that_can_be(agent: Agent) -> None:
    agent.run("/bin/true; /bin/true")
    before = leaf_peak_bytes(agent)
    agent.run("dd if=/dev/zero of=/dev/null bs=64M count=8 2>/dev/null")
    grown = leaf_peak_bytes(agent) - before

    def told() -> list[HistoryEntry]:
        return [entry for entry in agent.operator.history(agent.name) if entry.intent.command[:1] == ("dd",)]

    wait_until(lambda: len(told()) == 1, what="the call of dd in the history")
    (dd,) = told()
    print(f"agent leaf grew by {grown / MIB:.2f} MiB; {dd.report.message}")
    assert dd.report.verdict is Verdict.OK
    # A hold begins at a tick that finds the tool in user mode; what it had by then is the agent's.
    assert dd.report.usage.memory_peak_bytes is not None
    assert not HAS_HOLDS or dd.report.usage.memory_peak_bytes > 32 * MIB
    assert ("was asked to hold it" in dd.report.message) == HAS_HOLDS


def test_of_short_commands_all_are_told_and_nothing_leaks(agent: Agent) -> None:
    agent.run(f"i=0; while [ $i -lt {COUNT} ]; do /bin/true; i=$((i+1)); done")

    def told() -> int:
        session = agent.operator.session(agent.name)
        return session.transparent_placed + session.transparent_missed

    wait_until(lambda: told() == COUNT, what="every exec being told")
    wait_until(lambda: agent.operator.calls(agent.name) == [], what="the end of all calls")
    session = agent.operator.session(agent.name)
    print(
        f"of {COUNT} short commands {session.transparent_placed} were placed, {session.transparent_missed} missed;"
        f" holds: {HAS_HOLDS}; {[entry.report.message for entry in agent.operator.history(agent.name)][:5]}"
    )
    assert session.memory_reserved_bytes == 0 and agent.daemon.call_cgroups() == []


def test_a_persistent_shell_yields_a_call_for_each_command(agent: Agent) -> None:
    agent.run("printf 'cd /; /bin/sleep 0.5\\n/bin/sleep 0.6 | /bin/cat\\n' | /bin/bash")
    commands = agent.commands(2)
    assert commands[0] == ("/bin/sleep", "0.5") and len(commands) == 2


def test_the_daemon_that_ends_frees_who_is_held(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = '[bpf]\nenabled = "on"\n[scheduler]\nmode = "full"\ndoor_hold = "500ms"\n'
    with (
        running_daemon(tmp_path_factory.mktemp("end"), settings, unenforced="refuse") as daemon,
        daemon.operator() as operator,
    ):
        agent = Agent(daemon, operator, "all", "ending", memory="700M")
        agent.begin("for i in 1 2 3 4 5; do /bin/true; done; echo over")
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait(30)
        assert agent.shell.stdout is not None and agent.shell.stdin is not None
        while agent.shell.stdout.readline() != "over\n":
            pass
        agent.shell.stdin.close()
        agent.shell.wait(30)
