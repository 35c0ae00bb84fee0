"""CPUs go and come back under the scheduler."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler
from bench.spinning import SPIN, end, usage_us
from tests.running import wait_until

pytestmark = pytest.mark.kernel

# Forks, waits and is woken all the time.
NAP = ("/bin/sh", "-c", "while :; do sleep 0.01; done")
CPU1 = Path("/sys/devices/system/cpu/cpu1/online")


@pytest.fixture
def second_cpu() -> Iterator[Path]:
    yield CPU1
    CPU1.write_text("1")


def test_a_cpu_goes_and_comes_back(ground: Path, scheduler: CpuScheduler, second_cpu: Path) -> None:
    leaf = ground / "leaf"
    leaf.mkdir()
    children = [subprocess.Popen(words) for words in (SPIN, SPIN, SPIN, NAP, NAP, NAP)]
    for child in children:
        (leaf / "cgroup.procs").write_text(str(child.pid))
    os.sched_setaffinity(children[0].pid, {1})
    os.sched_setaffinity(children[3].pid, {1})
    for _ in range(3):
        second_cpu.write_text("0")
        # Whoever was bound to it goes on where the kernel lets it.
        before = usage_us(leaf)
        wait_until(lambda before=before: usage_us(leaf) - before > 200_000, deadline_s=60)
        second_cpu.write_text("1")
        before = usage_us(leaf)
        wait_until(lambda before=before: usage_us(leaf) - before > 200_000, deadline_s=60)
    for child in children:
        assert child.poll() is None
    end(children)
