"""What a call declared and does not use is lent; when both take what they declared, the session's limit decides."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentcgroup.client import CallState, Client, Verdict
from tests.ear import Ear
from tests.running import running_daemon, wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# Takes so many MiB more for each line, and tells.
TAKE = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * (int(line) << 20))
    print("has", flush=True)
"""


def take(tool: "subprocess.Popen[str]", mib: int) -> bool:
    """False: it was killed for it."""
    assert tool.stdin is not None and tool.stdout is not None
    tool.stdin.write(f"{mib}\n")
    tool.stdin.flush()
    return tool.stdout.readline() == "has\n"


def test_what_is_lent_is_there_and_the_sessions_limit_holds_when_it_is_wanted_back(tmp_path: Path) -> None:
    with running_daemon(tmp_path, unenforced="refuse", memory="1G") as daemon, daemon.operator() as operator:
        operator.create_session("lend", memory="512M", agent_memory="64M")
        agent = subprocess.Popen(["sleep", "1000"])
        operator.place_agent("lend", agent.pid)

        def tool(memory: str) -> "subprocess.Popen[str]":
            return subprocess.Popen(
                daemon.launch_command(
                    "lend", sys.executable, "-S", "-c", TAKE, options=("--memory", memory, "--wait", "5m")
                ),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip

        with Ear(Client(daemon.session_dir("lend"))) as ear:
            lender = tool("400M")
            assert take(lender, 8)
            borrower = tool("200M")

            def states() -> list[CallState]:
                return sorted(call.state for call in operator.calls("lend"))

            wait_until(
                lambda: states() == [CallState.QUEUED, CallState.RUNNING], what="the second in the queue"
            )
            # Nothing is given back before it has settled, 15 s after its begin.
            wait_until(lambda: states() == [CallState.RUNNING] * 2, 120, what="its turn by what is lent")
            assert operator.session("lend").memory_reserved_bytes == 600 * MIB, (
                "more than the 448 MiB that there are"
            )
            assert take(borrower, 150)
            survives = take(lender, 370)
            killed, other = (borrower, lender) if survives else (lender, borrower)
            assert killed.wait(60) == -signal.SIGKILL
            other.communicate(timeout=60)
            assert other.returncode == 0
            wait_until(lambda: len([each for each in ear.heard if each.report]) == 2, what="both reports")
            verdicts = sorted(each.report.verdict for each in ear.heard if each.report)
        assert verdicts == sorted([Verdict.OK, Verdict.MEMORY_LIMIT_SESSION])
        assert agent.poll() is None, "the agent runtime outlives its tools"
        operator.remove_session("lend")
        agent.wait(30)
