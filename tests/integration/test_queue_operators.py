"""What operators do to calls that wait, what they set, and what everybody hears of it."""

import asyncio
from pathlib import Path

from agentcgroup.daemon.config import QueueConfig
from agentcgroup.daemon.model import BudgetRequest, CallState, Decision, FeedbackKind, Intent, Reason
from tests.integration.harness import MIB, Daemon
from tests.integration.queueing import BIG, crowded, served, until_waiting


async def test_a_larger_budget_lets_waiting_calls_in(daemon: Daemon) -> None:
    await crowded(daemon)
    answer = daemon.controller.declare("web", BIG)
    assert answer.decision is Decision.QUEUED
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=2048 * MIB), None)
    await until_waiting(daemon, 0)
    assert daemon.controller.call("web", answer.call_id).state is CallState.DECLARED


async def test_a_drain_refuses_those_who_wait(daemon: Daemon) -> None:
    await crowded(daemon)
    answer = daemon.controller.declare("web", BIG)
    daemon.controller.drain("new kernel", None)
    call = daemon.controller.call("web", answer.call_id)
    assert call.refusal is not None and call.refusal.reason is Reason.HOST_DRAINING
    assert "new kernel" in call.refusal.message and call.refusal.suggestion
    assert not daemon.controller.calls_waiting


async def test_a_frozen_session_keeps_its_place_and_goes_on_when_thawed(daemon: Daemon) -> None:
    first = await crowded(daemon)
    answer = daemon.controller.declare("web", BIG)
    daemon.controller.freeze_session("web", "", False)
    daemon.controller.give_back("web", first)
    await asyncio.sleep(0.05)
    assert daemon.controller.calls_waiting == 1
    daemon.controller.thaw_session("web")
    await until_waiting(daemon, 0)
    assert daemon.controller.call("web", answer.call_id).state is CallState.DECLARED


async def test_what_is_declared_in_a_frozen_session_waits_until_it_is_thawed(daemon: Daemon) -> None:
    await daemon.open("web")
    daemon.controller.freeze_session("web", "a look", False)
    refused = daemon.controller.declare("web", Intent(memory_bytes=MIB), wait_ms=0)
    assert (refused.decision, refused.reason) == (Decision.REFUSED, Reason.SESSION_FROZEN)
    assert "frozen" in refused.message and "--wait" in refused.suggestion
    queued = daemon.controller.declare("web", Intent(memory_bytes=MIB))
    assert (queued.decision, queued.reason) == (Decision.QUEUED, Reason.SESSION_FROZEN)
    assert "thawed; refused when it has waited 1 min 30 s" in queued.message
    # What runs already stands still with the others.
    runs = daemon.controller.declare("web", Intent(memory_bytes=MIB), wait_ms=0, runs_already=True)
    assert runs.decision is Decision.REFUSED, "nobody passes those who wait"
    daemon.controller.thaw_session("web")
    await until_waiting(daemon, 0)
    assert daemon.controller.call("web", queued.call_id).state is CallState.DECLARED
    daemon.controller.freeze_session("web", "", False)
    runs = daemon.controller.declare("web", Intent(memory_bytes=MIB), wait_ms=0, runs_already=True)
    assert runs.decision is Decision.GRANTED


async def test_an_operator_takes_a_call_out_of_the_queue_and_says_why(daemon: Daemon) -> None:
    await crowded(daemon)
    answer = daemon.controller.declare("web", BIG)
    report = await daemon.controller.kill_call(answer.call_id, "not tonight")
    assert "the operator took the call out of the queue: not tonight" in report.message
    call = daemon.controller.call("web", answer.call_id)
    assert call.refusal is not None and "Ask the operator" in call.refusal.suggestion
    assert not daemon.controller.calls_waiting

    await daemon.open("idle")
    granted = daemon.controller.declare("idle", Intent(memory_bytes=MIB))
    report = await daemon.controller.kill_call(granted.call_id, "not tonight")
    assert "the operator took the grant back: not tonight" in report.message


async def test_the_feed_says_queued_and_then_declared(daemon: Daemon) -> None:
    first = await crowded(daemon)
    subscription = daemon.controller.feed.subscribe("web")
    answer = daemon.controller.declare("web", BIG)
    daemon.controller.give_back("web", first)
    await until_waiting(daemon, 0)
    queued, granted = await anext(subscription), await anext(subscription)
    assert (queued.kind, queued.call_id) == (FeedbackKind.QUEUED, answer.call_id)
    assert queued.answer is not None and queued.answer.queue is not None
    assert (granted.kind, granted.call_id) == (FeedbackKind.DECLARED, answer.call_id)
    assert granted.answer is not None and granted.answer.decision is Decision.GRANTED


async def test_a_full_queue_refuses_and_says_so(run_dir: Path) -> None:
    async with served(run_dir, QueueConfig(session_length=2, length=3)) as daemon:
        await crowded(daemon)
        decisions = [daemon.controller.declare("web", BIG).decision for _ in range(2)]
        assert decisions == [Decision.QUEUED, Decision.QUEUED]
        answer = daemon.controller.declare("web", BIG)
        assert (answer.decision, answer.reason) == (Decision.REFUSED, Reason.QUEUE_FULL)
        assert "2 calls of this session" in answer.message
        # What fits is no newcomer to the queue.
        assert daemon.controller.declare("web", Intent(memory_bytes=MIB)).decision is Decision.GRANTED


async def test_without_a_queue_what_does_not_fit_now_is_refused(run_dir: Path) -> None:
    async with served(run_dir, QueueConfig(enabled=False)) as daemon:
        await crowded(daemon)
        answer = daemon.controller.declare("web", BIG, wait_ms=60_000)
        assert (answer.decision, answer.reason) == (Decision.REFUSED, Reason.SESSION_MEMORY)
