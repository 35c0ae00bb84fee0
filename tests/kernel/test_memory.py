"""The memory program where the kernel charges memory: usage, growth, time over the soft limit."""

from collections.abc import Iterator

import pytest

from agentcgroup.bpf.memory import Breach, GuardNumbers, MemoryProgram
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from tests.growing import MIB, Tool

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def program() -> Iterator[MemoryProgram]:
    program = MemoryProgram()
    yield program
    assert program.lost() == {"depth": 0, "breaches": 0, "missed": 0}
    program.close()


@pytest.fixture
def session() -> Iterator[Cgroup]:
    with scratch_cgroup("memory", deadline_s=30) as cgroup:
        yield cgroup


def test_growth_is_seen_in_the_call_and_in_everything_around_it_batch_by_batch(
    program: MemoryProgram, session: Cgroup
) -> None:
    with session.create_child("call") as call, session.create_child("other") as other:
        for cgroup in (session, call, other):
            program.open_account(cgroup.id)
        tool = Tool(call, 48)
        growth = program.growth()
        current = call.read(files.MEMORY_CURRENT)
        account = program._accounts.get(session.id)
        tool.end()
    assert other.id not in growth
    for cgroup in (session, call):
        assert 48 * MIB <= growth[cgroup.id].usage_bytes < 80 * MIB
        assert growth[cgroup.id].peak_rate_bytes_per_s > MIB
    # A batch at most is charged ahead of what is used, on each CPU.
    assert current is not None and abs(growth[call.id].usage_bytes - current) < 2 * MIB
    assert account is not None
    # 64 pages a batch, or more in a huge page.
    assert 24 <= account.batches <= 2 * 80 * MIB // (64 * 4096)


def test_time_over_the_declared_need_is_added_up(program: MemoryProgram, session: Cgroup) -> None:
    with session.create_child("call") as call:
        program.open_account(call.id, soft_limit_bytes=16 * MIB)
        tool = Tool(call, 24)
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
    assert program.growth_of(session.id) is None
    assert program.close_account(session.id) is None


def test_growing_into_what_another_session_was_promised_is_told_whether_anybody_can_be_held_or_not(
    session: Cgroup,
) -> None:
    told: list[Breach] = []
    program = MemoryProgram(on_breach=told.append)
    session.write(files.MEMORY_MAX, 160 * MIB)
    with session.create_child("high") as high, session.create_child("low") as low:
        low.enable_controllers(frozenset({"memory"}))
        with low.create_child("call") as call:
            for cgroup in (session, high, low, call):
                program.open_account(cgroup.id)
            program.guard(high.id, 2, 120 * MIB)
            program.guard(low.id, 0, 0)
            program.set_numbers(GuardNumbers(session.id, margin_bytes=8 * MIB, active_ns=600_000_000_000))
            first = Tool(call, 24)
            program.drain()
            # Nobody has claims who was never charged.
            assert not told
            active, second = Tool(high, 8), Tool(call, 24)
            program.drain()
            growth = program.growth_of(call.id)
            for tool in (first, second, active):
                tool.end()
            call_id, low_id, high_id = call.id, low.id, high.id
    assert growth is not None and growth.holds == 0
    assert [(one.call_id, one.session_id, one.for_session_id) for one in told[:1]] == [
        (call_id, low_id, high_id)
    ]
    assert told[0].missing_bytes > 0 and told[0].rate_bytes_per_s > 0
    # Without a scheduler of ours nobody is asked to be held.
    assert told[0].hold_ns == 0 and program.figures().asked == 0
    program.close()
