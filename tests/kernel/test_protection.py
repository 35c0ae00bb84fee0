"""Protection between sessions in the kernel: under one tight limit everybody lives, and who must give way is the lowest."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.values import MAX
from agentcgroup.client import Client, FeedbackKind, OperatorClient, Priority, Report, Verdict
from tests.ear import Ear
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# Touches so many MiB and says so; after each line from its input so many more; ends with its input.
STEPS = """
import sys
kept = []
for more in sys.argv[1:]:
    for _ in range(int(more)):
        kept.append(bytearray(b"x") * (1 << 20))
    print(len(kept), flush=True)
    sys.stdin.readline()
"""
CONFIGURATION = """
[protection]
idle_after = "1s"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("protect")
    with running_daemon(directory, CONFIGURATION, unenforced="refuse", memory="400M") as running:
        yield running


@pytest.fixture
def sessions(operator: OperatorClient) -> Iterator[None]:
    for name, priority in (("top", Priority.HIGH), ("low", Priority.LOW)):
        operator.create_session(name, memory="390M", agent_memory="10M", priority=priority)
    yield
    for name in ("top", "low"):
        operator.remove_session(name)


@pytest.fixture
def ear(daemon: RunningDaemon, sessions: None) -> Iterator[Ear]:
    with Ear(Client(daemon.session_dir("low"))) as listening:
        yield listening


class Tool:
    """A call that allocates in steps: `go` lets it take the next, `has` waits until it has taken one."""

    def __init__(self, daemon: RunningDaemon, session: str, declared: str, *mib: int) -> None:
        directory = str(daemon.session_dir(session))
        self._process = subprocess.Popen(
            [str(LAUNCHER), "run", "--session-dir", directory, "--memory", declared, "--"]
            + [sys.executable, "-S", "-c", STEPS, *map(str, mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def has(self, mib: int) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{mib}\n"

    def end(self) -> int:
        self._process.communicate(timeout=60)
        return self._process.returncode


def heard(ear: Ear, kind: FeedbackKind) -> list[str]:
    return [message.message for message in ear.heard if message.kind is kind]


def reports(ear: Ear) -> list[Report]:
    return [message.report for message in ear.heard if message.report is not None]


def oom_kills(daemon: RunningDaemon) -> int | None:
    with Cgroup.open(daemon.root) as root:
        events = root.read(files.MEMORY_EVENTS)
    return events.oom_kill if events else None


def test_a_low_call_stands_still_while_the_high_one_takes_what_it_declared(
    daemon: RunningDaemon, operator: OperatorClient, ear: Ear
) -> None:
    kills = oom_kills(daemon)
    high = Tool(daemon, "top", "220M", 100, 100)
    high.has(100)
    (call,) = operator.calls("top")
    with Cgroup.open(daemon.root / "top" / "calls" / call.id) as cgroup:
        wait_until(lambda: cgroup.read(files.MEMORY_LOW) == 220 * MIB, what="memory.low of the call")
    for above in (daemon.root / "top" / "calls", daemon.root / "top", daemon.root):
        with Cgroup.open(above) as cgroup:
            assert cgroup.read(files.MEMORY_LOW) == 220 * MIB
    with Cgroup.open(daemon.root / "top" / "agent") as leaf:
        assert leaf.read(files.MEMORY_MIN) == 10 * MIB
    # 400 less what the high session, the agents and the margin keep leaves it about 140.
    low = Tool(daemon, "low", "50M", 40, 200)
    low.has(40)
    low.go()
    wait_until(lambda: heard(ear, FeedbackKind.FROZEN), deadline_s=60, what="the freeze")
    assert "a session of higher priority" in heard(ear, FeedbackKind.FROZEN)[0]
    high.go()
    high.has(200)
    assert high.end() == 0
    # There is room again: it thaws by itself and comes to its end.
    low.has(240)
    assert low.end() == 0
    wait_until(lambda: heard(ear, FeedbackKind.THAWED), what="being told of the thaw")
    wait_until(lambda: reports(ear), what="the report")
    assert reports(ear)[0].verdict is Verdict.OK and oom_kills(daemon) == kills


def test_only_when_nothing_else_helps_the_lowest_ends_and_no_agent(
    daemon: RunningDaemon, operator: OperatorClient, ear: Ear
) -> None:
    kills = oom_kills(daemon)
    agent = subprocess.Popen(["sleep", "600"])
    operator.place_agent("low", agent.pid)
    low = Tool(daemon, "low", "50M", 200)
    low.has(200)
    high = Tool(daemon, "top", "100M", 50, 250)
    high.has(50)
    high.go()
    high.has(300)
    assert high.end() == 0
    assert low.end() != 0
    wait_until(lambda: reports(ear), what="the report")
    assert reports(ear)[0].verdict is Verdict.PROTECTION
    assert "so that others keep their memory" in reports(ear)[0].message
    assert agent.poll() is None and oom_kills(daemon) == kills
    agent.kill()
    agent.wait()


def test_a_waiting_agent_gives_back_its_file_cache(
    daemon: RunningDaemon, operator: OperatorClient, ear: Ear
) -> None:
    code = (
        "import sys,time\nwith open(sys.argv[1], 'wb') as f: f.write(bytes(60 << 20)); f.flush(); import os; os.fsync(f)\n"
        "open(sys.argv[1], 'rb').read()\nprint('read', flush=True)\ntime.sleep(600)"
    )
    runtime = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdin.readline(); exec(sys.argv.pop(1))",
            code,
            "/var/tmp/cold",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runtime.stdin is not None and runtime.stdout is not None
    try:
        operator.place_agent("low", runtime.pid)
        runtime.stdin.write("\n")
        runtime.stdin.flush()
        assert runtime.stdout.readline() == "read\n"
        with Cgroup.open(daemon.root / "low" / "agent") as leaf:
            # The cache may be on its way out already.
            assert (leaf.read(files.MEMORY_PEAK) or 0) > 44 * MIB
            short = Tool(daemon, "low", "20M", 1)
            short.has(1)
            assert short.end() == 0

            def cache() -> int:
                stat = leaf.read(files.MEMORY_STAT)
                assert stat is not None and stat.file is not None
                return stat.file

            wait_until(lambda: cache() < 40 * MIB, deadline_s=90, what="the reclaim")
            assert leaf.read(files.MEMORY_HIGH) == MAX
        assert runtime.poll() is None
    finally:
        runtime.kill()
        runtime.wait()
