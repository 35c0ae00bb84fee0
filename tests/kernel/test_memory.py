"""The memory program where the kernel charges memory: usage, growth, time over the soft limit."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentcgroup.bpf.memory import MemoryProgram
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# Touches so many MiB, a page at a time, says so, and keeps them until its stdin ends.
TOUCH = (
    "import sys; b=bytearray(int(sys.argv[1])<<20)\nfor i in range(0,len(b),4096): b[i]=1\n"
    "print('touched', flush=True); sys.stdin.read()"
)


@pytest.fixture
def program() -> Iterator[MemoryProgram]:
    program = MemoryProgram()
    yield program
    assert program.lost() == {"depth": 0, "missed": 0}
    program.close()


@pytest.fixture
def session() -> Iterator[Cgroup]:
    with scratch_cgroup("memory", deadline_s=30) as cgroup:
        yield cgroup


class Tool:
    """A process that has touched so many MiB in `cgroup` and keeps them until `end`."""

    def __init__(self, cgroup: Cgroup, mib: int) -> None:
        script = f'echo $$ > {cgroup.path}/cgroup.procs; exec {sys.executable} -c "$@"'
        command = ["sh", "-c", script, "sh", TOUCH, str(mib)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"touched\n"

    def end(self) -> None:
        self._process.communicate(timeout=60)


def test_growth_is_seen_in_the_call_and_in_everything_around_it(
    program: MemoryProgram, session: Cgroup
) -> None:
    with session.create_child("call") as call, session.create_child("other") as other:
        for cgroup in (session, call, other):
            program.open_account(cgroup.id)
        tool = Tool(call, 48)
        growth = program.growth()
        current = call.read(files.MEMORY_CURRENT)
        tool.end()
    assert other.id not in growth
    for cgroup in (session, call):
        assert 48 * MIB <= growth[cgroup.id].usage_bytes < 80 * MIB
        assert growth[cgroup.id].peak_rate_bytes_per_s > MIB
    # A batch at most is charged ahead of what is used, on each CPU.
    assert current is not None and abs(growth[call.id].usage_bytes - current) < 2 * MIB


def test_one_batch_is_one_run_of_the_program(program: MemoryProgram, session: Cgroup) -> None:
    program.open_account(session.id)
    with session.create_child("call") as call:
        tool = Tool(call, 48)
        account = program._accounts.get(session.id)
        tool.end()
    assert account is not None
    # 64 pages a batch, or more in a huge page.
    assert 24 <= account.batches <= 2 * 80 * MIB // (64 * 4096)


def test_time_over_the_declared_need_is_added_up(program: MemoryProgram, session: Cgroup) -> None:
    with session.create_child("call") as call:
        program.open_account(call.id, soft_limit_bytes=24 * MIB)
        tool = Tool(call, 48)
        over = program.growth()[call.id]
        later = program.growth()[call.id]
        tool.end()
        # What is freed is seen at the next charge.
        Tool(call, 1).end()
        final = program.close_account(call.id)
    assert over.is_over_soft and over.breaches == 1
    assert 0 < over.over_soft_ns < later.over_soft_ns
    assert final is not None and not final.is_over_soft
    assert final.over_soft_ns >= later.over_soft_ns and final.breaches == 1


def test_memory_high_is_the_soft_limit_where_it_is_set(program: MemoryProgram, session: Cgroup) -> None:
    with session.create_child("call") as call:
        program.open_account(call.id, soft_limit_bytes=MIB)
        call.write(files.MEMORY_HIGH, 500 * MIB)
        tool = Tool(call, 16)
        growth = program.growth()[call.id]
        tool.end()
    assert growth.breaches == 0 and not growth.is_over_soft


def test_a_rate_fades_while_nothing_is_charged(program: MemoryProgram, session: Cgroup) -> None:
    program.open_account(session.id)
    with session.create_child("call") as call:
        tool = Tool(call, 16)
        grown = program.growth()[session.id]
        while program.growth()[session.id].rate_bytes_per_s > grown.peak_rate_bytes_per_s // 8:
            pass
        assert program.growth()[session.id].peak_rate_bytes_per_s == grown.peak_rate_bytes_per_s
        tool.end()


def test_a_closed_account_is_gone(program: MemoryProgram, session: Cgroup) -> None:
    program.open_account(session.id)
    assert program.close_account(session.id) is not None
    assert program.growth() == {}
    assert program.close_account(session.id) is None
