"""Protection between sessions, through the real controller, on a small model of memory."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcgroup.daemon.config import Config, DaemonConfig, HostConfig, ProtectionConfig
from agentcgroup.daemon.controller import queue, rooms
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import (
    BudgetRequest,
    CallState,
    Decision,
    FeedbackKind,
    FreezeCause,
    Growth,
    Intent,
    KillReason,
    Level,
    Priority,
    ToolCall,
    Usage,
    Verdict,
)
from agentcgroup.proto.words import Action
from tests.fake_memory import FakeUse
from tests.fakes import FakeHost
from tests.integration.harness import Daemon, until

MIB = 1 << 20
CAPACITY = 1100 * MIB


class World:
    """A daemon whose looks come when the test says, 50 ms of the model's time apart."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.controller = daemon.controller
        self.memory = daemon.host.memory
        self.feed = daemon.controller.feed.subscribe(None)

    async def session(self, name: str, priority: Priority) -> None:
        request = BudgetRequest(memory_max_bytes=CAPACITY, agent_memory_bytes=16 * MIB)
        await self.controller.open_session(name, request, priority=priority)

    def call(
        self, session: str, *, declared: int | None = None, wants: int = 0, rate: int = 400, has: int = 0
    ) -> ToolCall:
        intent = Intent(memory_bytes=declared * MIB if declared else None)
        answer = self.controller.declare(session, intent)
        assert answer.limits is not None, answer.message
        pid = self.daemon.process(session)
        call = self.controller.begin_pidfd(session, answer.call_id, pid, os.pidfd_open(pid))
        self.memory.uses[call.id] = FakeUse(has * MIB, wants * MIB, rate * MIB)
        return call

    def look(self) -> None:
        self.controller._look_around()

    async def run(self, ms: int) -> None:
        for _ in range(ms // 50):
            await asyncio.sleep(0)  # What has been killed dies.
            self.memory.advance(50)
            self.daemon.clock.time_ns += 50_000_000
            self.look()

    def said(self, kind: FeedbackKind, call: ToolCall) -> list[str]:
        return [each.message for each in self.feed._queue if each.kind is kind and each.call_id == call.id]

    def decided(self, call: ToolCall) -> list[Action]:
        log = self.daemon.history.noted
        wanted = (Action.SLOWED, Action.FROZEN, Action.RELEASED, Action.KILLED)
        return [each.action for each in log if each.call_id == call.id and each.action in wanted]


@pytest.fixture
async def world(run_dir: Path) -> AsyncIterator[World]:
    config = Config(
        daemon=DaemonConfig(run_dir=str(run_dir)),
        host=HostConfig(memory=CAPACITY),
        protection=ProtectionConfig(idle_reclaim="off"),
    )
    daemon = Daemon(run_dir, config, FakeHost(CAPACITY))
    daemon.host.memory.capacity_bytes = CAPACITY
    await daemon.start()
    try:
        yield World(daemon)
    finally:
        await daemon.stop()


async def test_a_low_call_is_slowed_then_frozen_then_let_go_and_everybody_lives(world: World) -> None:
    for name, priority in (("top", Priority.HIGH), ("low", Priority.LOW)):
        await world.session(name, priority)
    high = world.call("top", declared=500, wants=400, has=400)
    low = world.call("low", declared=100, wants=700, has=300)
    await world.run(800)
    assert world.decided(low) == [Action.SLOWED, Action.FROZEN]
    assert world.daemon.host.calls[low.id].frozen and low.frozen_by == {FreezeCause.PROTECTION}
    (words,) = world.said(FeedbackKind.FROZEN, low)
    assert "a session of higher priority" in words and "top" not in words and "at most 30 s" in words

    # The high call comes to what it declared; there was room for it.
    world.memory.uses[high.id].wanted_bytes = 500 * MIB
    await world.run(500)
    assert world.memory.uses[high.id].bytes == 500 * MIB and not world.decided(high)

    # It gives memory back: the low one goes on and ends where it wanted to.
    world.memory.uses[high.id].bytes = world.memory.uses[high.id].wanted_bytes = 10 * MIB
    await world.controller.kill_call(high.id, "done")
    await world.run(3000)
    assert low.state is CallState.RUNNING and not low.frozen_by
    assert world.memory.uses[low.id].bytes == 700 * MIB
    assert not world.memory.victims
    assert world.decided(low)[-1] is Action.RELEASED and world.said(FeedbackKind.THAWED, low)
    assert world.controller.counters.protections[Action.FROZEN] >= 1


async def test_whoever_waits_is_looked_after_while_memory_is_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look again every so often, each by a timer of its own: what a call does not use is lent in time."""
    monkeypatch.setattr(queue, "LOOK_EVERY_MS", 10)
    monkeypatch.setattr(rooms, "MEASURE_EVERY_S", 0.0)
    for name in ("a", "b"):
        await world.session(name, Priority.NORMAL)
    first = world.call("a", declared=900)
    answer = world.controller.declare("b", Intent(memory_bytes=300 * MIB), wait_ms=600_000)
    assert answer.decision is Decision.QUEUED
    world.look()
    world.daemon.host.calls[first.id].usage = Usage(
        memory_current_bytes=20 * MIB, memory_peak_bytes=30 * MIB
    )
    world.daemon.clock.time_ns += 20_000_000_000
    waiting = world.controller.call("b", answer.call_id)
    await until(lambda: waiting.state is not CallState.QUEUED)
    assert waiting.state is CallState.DECLARED


async def test_a_daemon_at_rest_reads_nothing_and_marks_hold_the_sum(world: World) -> None:
    for name in ("a", "b"):
        await world.session(name, Priority.NORMAL)
        world.call(name, wants=100, has=100)
    await world.run(2500)
    assert not world.controller._is_armed(Timer.PROTECTION_LOOK, "")
    reads = world.memory.reads
    await asyncio.sleep(0.2)
    assert world.memory.reads == reads
    marks = [mark for mark in world.memory.marks.values() if mark is not None]
    assert len(marks) == 2 and sum(marks) < CAPACITY


async def test_crossing_a_mark_moves_it_while_there_is_room(world: World) -> None:
    await world.session("a", Priority.NORMAL)
    await world.session("b", Priority.NORMAL)
    world.call("a", wants=100, has=100)
    grower = world.call("b", wants=700, has=0)
    world.look()
    before = world.memory.marks["b"]
    await world.run(3000)
    after = world.memory.marks["b"]
    assert before is not None and after is not None and after > before
    assert world.memory.uses[grower.id].bytes == 700 * MIB
    assert not world.decided(grower) and not world.memory.victims


async def test_sessions_that_fit_together_are_not_looked_at(world: World) -> None:
    request = BudgetRequest(memory_max_bytes=500 * MIB, agent_memory_bytes=16 * MIB)
    for name in ("a", "b"):
        await world.controller.open_session(name, request)
        world.call(name, wants=400)
    await world.run(2000)
    # The mark before the session's own limit, which nobody has reached.
    assert world.memory.marks == {"a": 484 * MIB * 15 // 16, "b": 484 * MIB * 15 // 16}
    assert world.memory.reads == 0


async def test_the_operators_freeze_is_not_undone(world: World) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    world.call("top", declared=500, wants=400, has=400)
    low = world.call("low", declared=100, wants=700, has=300)
    await world.run(800)
    world.controller.freeze_call(low.id, "a look")
    for call in list(world.controller.session("top").calls.values()):
        await world.controller.kill_call(call.id, "")
    await world.run(1000)
    assert low.frozen_by >= {FreezeCause.OPERATOR} and world.daemon.host.calls[low.id].frozen
    world.controller.thaw_call(low.id)
    await world.run(1000)
    assert low.state is CallState.RUNNING


async def test_what_nothing_else_helps_against_ends_the_lowest(world: World) -> None:
    for name, priority in (("top", Priority.HIGH), ("mid", Priority.NORMAL), ("low", Priority.LOW)):
        await world.session(name, priority)
    high = world.call("top", declared=100, wants=100, has=100)
    middle = world.call("mid", declared=100, wants=450, has=450)
    low = world.call("low", declared=100, wants=450, has=450)
    await world.run(500)
    world.memory.uses[high.id] = FakeUse(100 * MIB, 500 * MIB, 400 * MIB)
    await world.run(1000)
    assert low.kill_reason is KillReason.PROTECTION and middle.kill_reason is None
    await world.controller._until_ended(low)
    assert low.report is not None and low.report.verdict is Verdict.PROTECTION
    assert "so that others keep their memory" in low.report.message and "--memory" in low.report.advice
    await world.run(2000)
    assert world.memory.uses[high.id].bytes == 500 * MIB and not world.memory.victims


async def test_calls_of_high_priority_keep_their_promise_in_reclaim(world: World) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    high = world.call("top", declared=300, wants=100)
    world.call("low", wants=100)
    world.look()
    assert world.memory.lows["top"] == ((high.id, 300 * MIB),) and "low" not in world.memory.lows
    assert world.memory.watched == {"top"}


async def test_who_would_be_ended_for_the_last_of_the_memory_is_warned_before(world: World) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    resting = world.call("low", declared=100, wants=400, has=400)
    small = world.call("low", declared=100, wants=20, has=20)
    grower = world.call("top", declared=100, wants=900, rate=200)
    await world.run(5000)
    assert world.decided(resting)[-1:] == [Action.KILLED]
    (warning,) = world.said(FeedbackKind.WARNING, resting)
    assert "All sessions of this host" in warning and "would be the one" in warning
    order = [each.action for each in world.daemon.history.noted if each.call_id == resting.id]
    assert order.index(Action.WARNED) < order.index(Action.KILLED)
    assert world.said(FeedbackKind.WARNING, grower), "and so is who takes it"
    assert not world.said(FeedbackKind.WARNING, small)


async def test_a_budget_that_shrinks_until_all_fit_lets_everybody_go(world: World) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    world.call("top", declared=500, wants=400, has=400)
    low = world.call("low", declared=100, wants=700, has=300)
    await world.run(800)
    assert low.frozen_by
    for call in list(world.controller.session("top").calls.values()):
        await world.controller.kill_call(call.id, "")
    await world.controller.remove_session("top", "")
    world.look()
    assert low.state is CallState.RUNNING and world.controller.session("low").memory_mark_bytes is None
    assert world.said(FeedbackKind.THAWED, low)


async def test_levels_say_how_bad_it_is(world: World) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    world.call("top", declared=500, wants=400, has=400)
    low = world.call("low", declared=100, wants=700, has=300)
    await world.run(800)
    levels = [each.level for each in world.feed._queue if each.call_id == low.id]
    assert levels[-2:] == [Level.TIGHT, Level.CRITICAL]


# ---- idle agents


@pytest.fixture
async def idle(run_dir: Path) -> AsyncIterator[World]:
    config = Config(
        daemon=DaemonConfig(run_dir=str(run_dir)),
        host=HostConfig(memory=CAPACITY),
        protection=ProtectionConfig(idle_after=1000),
    )
    daemon = Daemon(run_dir, config, FakeHost(CAPACITY))
    daemon.host.memory.capacity_bytes = CAPACITY
    await daemon.start()
    try:
        yield World(daemon)
    finally:
        await daemon.stop()


async def _next_idle_look(world: World, ms: int) -> None:
    """Lets the armed look at the waiting agent happen now, with `ms` of the model's time passed."""
    world.daemon.clock.time_ns += ms * 1_000_000
    timer = world.controller._timers.pop((Timer.IDLE, "waiting"))
    timer._run()
    timer.cancel()
    await world.controller.settle()


async def test_a_waiting_agent_gives_back_until_it_misses_something(idle: World) -> None:
    idle.memory.agents["waiting"] = 256 * MIB
    await idle.session("waiting", Priority.NORMAL)
    await idle.session("other", Priority.NORMAL)
    call = idle.call("waiting")
    assert not idle.controller._is_armed(Timer.IDLE, "waiting"), "not while a call runs"
    await idle.controller.kill_call(call.id, "")
    await _next_idle_look(idle, 500)
    await _next_idle_look(idle, 500)
    await _next_idle_look(idle, 2000)
    assert idle.memory.agents["waiting"] == (256 - 32 - 28) * MIB
    idle.memory.stalls_us["waiting"] = 100_000
    await _next_idle_look(idle, 2000)
    assert idle.memory.agents["waiting"] == (256 - 32 - 28) * MIB
    assert not idle.controller._is_armed(Timer.IDLE, "waiting")
    (event,) = [each for each in idle.daemon.history.noted if each.action is Action.RECLAIMED]
    assert dict(event.inputs)["freed_bytes"] == 60 * MIB
    assert idle.controller.counters.idle_reclaimed_bytes == 60 * MIB


async def test_a_call_that_begins_ends_the_giving_back(idle: World) -> None:
    idle.memory.agents["waiting"] = 256 * MIB
    await idle.session("other", Priority.NORMAL)
    await idle.session("waiting", Priority.NORMAL)
    await _next_idle_look(idle, 500)
    await _next_idle_look(idle, 500)
    idle.call("waiting")
    assert not idle.controller._is_armed(Timer.IDLE, "waiting")
    assert idle.memory.agents["waiting"] == 224 * MIB


async def test_a_mark_is_no_trap_for_calls_that_begin(world: World) -> None:
    for name in ("a", "b"):
        await world.session(name, Priority.NORMAL)
    world.call("a", declared=700, wants=100, has=100)
    world.controller.declare("b", Intent(memory_bytes=600 * MIB))
    world.look()
    assert world.memory.marks["a"] is not None
    assert world.memory.marks.get("b") is None, (
        "it waits for its turn: its first page would cross a mark at nothing"
    )

    # Who has been let in may take what it was promised before anybody looks.
    world.call("b", declared=100, wants=50, has=50)
    await asyncio.sleep(0)
    world.look()
    before = world.memory.marks["b"]
    world.call("b", declared=200)
    await asyncio.sleep(0)
    after = world.memory.marks["b"]
    assert before is not None and after is not None and after - before == 200 * MIB


async def test_who_begins_in_the_room_of_one_that_ended_changes_nothing(world: World) -> None:
    for name in ("a", "b"):
        await world.session(name, Priority.NORMAL)
    world.call("a", declared=700, wants=100, has=100)
    first = world.call("b", declared=200, wants=200, has=200)
    await asyncio.sleep(0)
    world.look()
    mark = world.memory.marks["b"]
    await world.controller.kill_call(first.id, "")
    await world.controller.settle()
    reads = world.memory.reads
    world.call("b", declared=150)
    await asyncio.sleep(0)
    assert mark is not None and world.memory.marks["b"] == mark, "its session's headroom is large enough"
    await asyncio.sleep(0.05)
    assert world.memory.reads == reads, "nobody looks at once"
    assert world.controller._is_armed(Timer.PROTECTION_LOOK, "")


@pytest.mark.parametrize("woken", [False, True])
async def test_the_kernels_word_counts_after_a_lull_or_when_it_wakes_us(world: World, woken: bool) -> None:
    await world.session("top", Priority.HIGH)
    await world.session("low", Priority.LOW)
    world.call("top", declared=500, wants=400, has=400)
    low = world.call("low", declared=100, wants=300, has=300)
    await world.run(60_000)
    before = world.decided(low)
    # A burst of which the last minute says nothing.
    growth = Growth(300 * MIB, 2_000 * MIB, 2_000 * MIB, over_soft_us=0, is_over_soft=False, breaches=1)
    world.daemon.host.call_growth[low.id] = growth
    world.look()
    assert world.decided(low) == before, "its own reads say that it stands still"
    if woken:
        world.controller._rested_at_s = 0
        world.controller.memory_mark_crossed("low")
    else:
        world.daemon.clock.time_ns += 1_000_000_000
        world.look()
    assert world.decided(low) == [*before, Action.SLOWED]
    # It has stopped since: what the kernel remembers of it is nothing to freeze it for.
    await world.run(300)
    assert Action.FROZEN not in world.decided(low)
