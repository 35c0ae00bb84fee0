"""The transparent door on kernels with controllers: placed, and held meanwhile where there is sched_ext."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from agentcgroup.client import Call, OperatorClient
from tests.running import RunningDaemon, running_daemon, wait_until
from tests.shell_agent import Agent

pytestmark = pytest.mark.kernel

MIB = 1 << 20
HAS_HOLDS = features.sched_ext().is_available
TOOL_MIB = 64
TRIES = 10
MOST_BEFORE_BYTES = 1_000_000
COUNT = 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    # Without sched_ext the mode is refused by the kernel, which the daemon says and goes on. An emulated machine, as the
    # guest is, takes its time.
    scheduler = '[scheduler]\nmode = "full"\ndoor_hold = "500ms"\n'
    settings = f'[bpf]\nenabled = "on"\n{scheduler}[call]\nmemory = "128M"\n'
    with running_daemon(tmp_path_factory.mktemp("door"), settings, unenforced="refuse") as running:
        yield running


@pytest.fixture
def agent(
    daemon: RunningDaemon, operator: OperatorClient, request: pytest.FixtureRequest
) -> Iterator[Agent]:
    agent = Agent(daemon, operator, "all", f"t{abs(hash(request.node.name)) % 10**8}", memory="700M")
    yield agent
    agent.end()


def placed(agent: Agent) -> Call:
    """The only call, when its placement is known."""
    (call,) = agent.calls()
    assert call.placement_delay_ms is not None
    return call


def take(agent: Agent, fifo: Path) -> tuple[Call, int]:
    """A tool that takes all its memory before it can do anything; the call, and what the agent's own memory rose by.

    `dd` fills its buffer, then waits for somebody who reads.
    """
    peak = os.open(agent.daemon.root / agent.name / "agent" / "memory.peak", os.O_RDWR)
    reader = os.open(fifo, os.O_RDWR)
    try:
        # Since 6.12: of this descriptor alone.
        os.write(peak, b"reset")
        before = int(os.pread(peak, 64, 0))
        agent.begin(f"dd if=/dev/zero bs={TOOL_MIB}M count=1 status=none > {fifo}")
        call = placed(agent)
        os.read(reader, 1)
        grown = int(os.pread(peak, 64, 0)) - before
        os.kill(call.pid, signal.SIGKILL)
        agent.calls(0)
        return call, grown
    finally:
        os.close(reader)
        os.close(peak)


def test_what_a_tool_needs_is_on_its_own_account(agent: Agent, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    agent.run("/bin/true")
    # A hold is bounded; where the daemon was slower than that, the daemon says so, and a later tool will do. So it will
    # where the agent itself took memory meanwhile.
    for _ in range(TRIES if HAS_HOLDS else 1):
        call, grown = take(agent, fifo)
        print(
            f"placed after {call.placement_delay_ms} ms, held from {call.held_after_us} us on, until then:"
            f" {call.was_held}; the agent's memory rose by {grown / MIB:.2f} MiB"
        )
        if call.was_held and grown < MOST_BEFORE_BYTES:
            break
    assert call.was_held == HAS_HOLDS
    assert (call.held_after_us is not None) == HAS_HOLDS
    # Not one instruction of the tool has run before.
    assert grown < MOST_BEFORE_BYTES or not HAS_HOLDS


def test_whatever_way_a_tool_comes_it_is_a_call_of_its_own(agent: Agent, tmp_path: Path) -> None:
    # Each tool waits at a gate until it has been seen, however slow this machine is.
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def seen() -> tuple[str, ...]:
        call = placed(agent)
        gate.write_text("go\n")
        wait_until(lambda: call.id not in [each.id for each in agent.operator.calls(agent.name)])
        return call.intent.command

    python = f"import subprocess; subprocess.run(['/bin/cat', '{gate}'])"
    ways = {
        "bash": f"bash -lc 'read line < {gate}; :'",
        "zsh": f"zsh -c 'read line < {gate}; :'",
        "sh": f"sh -c 'read line < {gate}; :'",
        sys.executable: f'{sys.executable} -c "{python}"',
    }
    for name, command in ways.items():
        agent.begin(command)
        assert seen()[0] == name
    agent.begin(f"printf 'cd /; /bin/cat {gate}\\n/bin/sort {gate}\\n' | /bin/bash")
    assert seen() == ("/bin/cat", str(gate))
    assert seen() == ("/bin/sort", str(gate))
    enter = ["nsenter", "--target", str(agent.pid), "--all", "--join-cgroup", "/bin/cat", str(gate)]
    with subprocess.Popen(enter) as entered:
        assert seen() == ("/bin/cat", str(gate))
        assert entered.wait(60) == 0
    agent.run(":")
    assert agent.operator.session(agent.name).calls_ended == len(ways) + 3


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
        assert agent.process.stdout is not None and agent.process.stdin is not None
        while agent.process.stdout.readline() != "over\n":
            pass
        agent.process.stdin.close()
        agent.process.wait(30)
