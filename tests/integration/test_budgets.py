"""A budget that changes under live calls, and what it leaves of what they and those who wait were promised.

Random sequences (tests/sequences) found each of these.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import (
    Answer,
    BudgetRequest,
    CallLimits,
    CallMemory,
    CallState,
    Decision,
    Intent,
    OnExceed,
    Priority,
    Reason,
    ToolCall,
    Usage,
)
from tests.integration.harness import MIB, Daemon, until

GIB = 1024 * MIB


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path / "r")
    await daemon.start()
    yield daemon
    await daemon.stop()


def begun(daemon: Daemon, intent: Intent, parent_id: str = "") -> str:
    call_id = daemon.controller.declare("web", intent, parent_id, 0).call_id
    pid = daemon.process("web")
    daemon.controller.begin_pidfd("web", call_id, pid, os.pidfd_open(pid))
    return call_id


async def test_calls_shrink_with_their_session(daemon: Daemon) -> None:
    await daemon.open("web", GIB)
    call_id = begun(daemon, Intent(memory_bytes=100 * MIB))
    call = daemon.controller.call("web", call_id)
    assert call.limits.memory_max_bytes == 768 * MIB
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=512 * MIB), None)
    assert call.limits.memory_max_bytes == 384 * MIB, "a quarter of it is the agent's"
    assert daemon.host.calls[call_id].limits.memory_max_bytes == 384 * MIB
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=GIB), None)
    assert call.limits.memory_max_bytes == 384 * MIB, "it was answered that, and nobody asked for more"


async def test_a_session_does_not_shrink_below_what_calls_inside_calls_were_promised(daemon: Daemon) -> None:
    await daemon.open("web", GIB)
    outer = begun(daemon, Intent(memory_bytes=50 * MIB))
    assert (
        daemon.controller.declare("web", Intent(memory_bytes=400 * MIB), outer).decision is Decision.GRANTED
    )
    with pytest.raises(RequestError, match="running calls have reserved 400 MiB"):
        daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=256 * MIB), None)


async def test_a_call_does_not_shrink_below_what_calls_inside_it_were_promised(daemon: Daemon) -> None:
    await daemon.open("web", GIB)
    controller = daemon.controller
    outer = begun(daemon, Intent(memory_bytes=50 * MIB, memory_max_bytes=600 * MIB))
    inner = begun(daemon, Intent(memory_bytes=400 * MIB), outer)
    innermost = begun(daemon, Intent(memory_bytes=MIB), inner)
    refused = controller.adjust("web", outer, Intent(memory_max_bytes=399 * MIB))
    assert refused.decision is Decision.REFUSED and "--memory-max 400M" in refused.suggestion
    assert controller.call("web", outer).limits.memory_max_bytes == 600 * MIB
    written: list[str] = []
    apply = daemon.host.apply_limits

    def applied(call: ToolCall, limits: CallLimits) -> None:
        written.append(call.id)
        apply(call, limits)

    daemon.host.apply_limits = applied  # type: ignore[method-assign]
    assert controller.adjust("web", outer, Intent(memory_max_bytes=500 * MIB)).decision is Decision.GRANTED
    assert written == [innermost, inner, outer], "children shrink first"
    assert {daemon.host.calls[each].limits.memory_max_bytes for each in written} == {500 * MIB}
    written.clear()
    assert controller.adjust("web", outer, Intent(memory_max_bytes=GIB)).decision is Decision.TRIMMED
    assert written == [outer], "what is inside may reach what it was answered"


@pytest.mark.parametrize("on_exceed", [OnExceed.THROTTLE, OnExceed.EXTEND])
async def test_a_soft_limit_does_not_shrink_below_what_a_call_holds(
    daemon: Daemon, on_exceed: OnExceed
) -> None:
    await daemon.open("web", GIB)
    call_id = begun(daemon, Intent(memory_bytes=300 * MIB, memory_max_bytes=400 * MIB, on_exceed=on_exceed))
    # Page cache is no reason: it goes when it has to.
    daemon.host.calls[call_id].memory = CallMemory(290 * MIB, 150 * MIB)
    refused = daemon.controller.adjust("web", call_id, Intent(memory_bytes=100 * MIB))
    assert refused.decision is Decision.REFUSED and "--memory 155M" in refused.suggestion
    granted = daemon.controller.adjust("web", call_id, Intent(memory_bytes=155 * MIB))
    assert granted.decision is Decision.GRANTED
    assert daemon.host.calls[call_id].limits.memory_high_bytes == 155 * MIB
    daemon.host.calls[call_id].memory = CallMemory(390 * MIB, 200 * MIB)
    more = daemon.controller.adjust("web", call_id, Intent(memory_bytes=180 * MIB))
    assert more.decision is Decision.GRANTED, "to grow is never refused for what is held"


async def test_a_session_does_not_shrink_below_what_its_calls_use(daemon: Daemon) -> None:
    await daemon.open("web", GIB)
    used = Usage(memory_current_bytes=500 * MIB, memory_peak_bytes=500 * MIB)
    daemon.host.calls[begun(daemon, Intent(memory_bytes=50 * MIB))].usage = used
    with pytest.raises(RequestError, match="calls use 500 MiB: 450 MiB for them would kill one"):
        daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=600 * MIB), None)
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=700 * MIB), None)


async def test_a_call_that_never_fits_is_told_so_also_when_no_call_may_begin(daemon: Daemon) -> None:
    await daemon.open("web", GIB, calls_max=1)
    assert daemon.controller.declare("web", Intent(memory_bytes=MIB)).decision is Decision.GRANTED
    answer = daemon.controller.declare("web", Intent(memory_bytes=900 * MIB))
    assert (answer.decision, answer.reason) == (Decision.REFUSED, Reason.SESSION_MEMORY)
    assert "never fit" in answer.suggestion


async def test_who_waits_for_more_than_a_smaller_budget_has_is_refused_at_once(daemon: Daemon) -> None:
    await daemon.open("web", GIB)
    daemon.controller.declare("web", Intent(memory_bytes=300 * MIB))
    queued = daemon.controller.declare("web", Intent(memory_bytes=600 * MIB))
    assert queued.decision is Decision.QUEUED
    heard: list[Answer] = []
    daemon.controller.follow(daemon.controller.call("web", queued.call_id), heard.append)
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=512 * MIB), None)
    await until(lambda: heard)
    assert [(each.decision, each.reason) for each in heard] == [(Decision.REFUSED, Reason.SESSION_MEMORY)]
    assert not daemon.controller.calls_waiting


async def test_places_in_the_queue_are_distinct_when_one_of_them_gets_more_than_the_least(
    daemon: Daemon,
) -> None:
    """Who declared nothing is planned with the least that it could do with, and gets all that it would like."""
    await daemon.open("web", GIB)
    first = daemon.controller.declare("web", Intent(memory_bytes=768 * MIB))
    waiting = [daemon.controller.declare("web", Intent()).call_id for _ in range(5)]
    daemon.controller.give_back("web", first.call_id)
    await until(lambda: len(daemon.controller.calls("web")) < 6 and daemon.controller.calls_waiting < 5)
    calls = [daemon.controller.call("web", call_id) for call_id in waiting]
    assert [call.state for call in calls] == [CallState.DECLARED] * 3 + [CallState.QUEUED] * 2
    assert [call.queue.position for call in calls if call.queue] == [1, 2]


async def test_a_change_that_takes_nothing_away_is_no_matter_of_what_is_lent(daemon: Daemon) -> None:
    session = await daemon.open("web", GIB)
    first = begun(daemon, Intent(memory_bytes=700 * MIB))
    daemon.host.calls[first].usage = Usage(memory_current_bytes=MIB, memory_peak_bytes=MIB)
    daemon.clock.time_ns += 60 * 10**9
    assert daemon.controller.declare("web", Intent(memory_bytes=300 * MIB)).decision is Decision.GRANTED
    assert session.memory_reserved_bytes == 1000 * MIB > session.budget.calls_memory_bytes
    daemon.controller.update_session("web", BudgetRequest(), Priority.HIGH)
    assert session.priority is Priority.HIGH
    with pytest.raises(RequestError, match="running calls have reserved"):
        daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=900 * MIB), None)
