"""Limits of a call that was prepared before its launcher came: the same as of any other."""

from pathlib import Path

import pytest

from agentcgroup.client import Client, Report, Verdict
from tests.ear import Ear
from tests.running import running_daemon, wait_until

pytestmark = pytest.mark.kernel

# Its own limits as the kernel has them, then what it is told to do.
SHOW = (
    "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup);"
    " cat memory.max memory.swap.max memory.oom.group pids.max cpu.max cpu.weight /proc/self/oom_score_adj;"
)
GROW = "exec python3 -c \"b=[]\nwhile True: b.append(b'x'*(1<<20))\""
OPTIONS = ("--memory", "20M", "--memory-max", "64M", "--pids", "9", "--cpu", "0.5", "--weight", "300")


def test_limits_are_written_before_anybody_comes(tmp_path: Path) -> None:
    with running_daemon(tmp_path, unenforced="refuse") as daemon, daemon.operator() as operator:
        operator.create_session("s", memory="800M", agent_memory="100M")

        def run(command: str) -> tuple[int, str, set[str]]:
            ready = {path.rpartition("/")[2] for path in daemon.call_cgroups()}
            process = daemon.launch("s", "sh", "-c", command, options=OPTIONS, from_agent=True)
            out, _ = process.communicate(timeout=60)
            wait_until(
                lambda: not operator.calls("s") and len(daemon.call_cgroups()) == 1, what="the next to stand"
            )
            return process.returncode, out, ready

        with Ear(Client(daemon.session_dir("s"))) as ear:
            _, first, none_ready = run(SHOW)
            status, second, ready = run(SHOW)
            assert (status, none_ready) == (0, set())
            assert second == first
            assert second.split() == ["67108864", "0", "1", "9", "50000", "100000", "300", "500"]
            killed, _, _ = run(GROW)
            assert killed in (-9, 137)

            def reports_heard() -> list[Report]:
                return [message.report for message in ear.heard if message.report is not None]

            wait_until(lambda: len(reports_heard()) == 3, what="all reports")
            reports = reports_heard()
            assert {reports[1].call_id} == ready
            assert reports[2].verdict is Verdict.MEMORY_LIMIT_CALL
            # The kernel's events were listening before the process came.
            assert reports[1].usage.processes is not None and reports[1].usage.processes >= 2
