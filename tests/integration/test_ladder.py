"""The ladder of a call as an agent meets it: on its stream, by its requests, with real deadlines and a fake machine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentcgroup.daemon.config import CallConfig, Config, DaemonConfig
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    Action,
    BudgetRequest,
    CallState,
    ExitStatus,
    FreezeCause,
    Growth,
    OomCounters,
    Rung,
)
from agentcgroup.proto.v1 import agent_pb2 as pb, types_pb2 as t
from tests.integration.harness import DEADLINE_S, MIB, Daemon, until


@pytest.fixture
async def daemon(run_dir: object) -> AsyncIterator[Daemon]:
    """With limits of tenths of seconds, so that deadlines come while a test waits."""
    config = Config(
        daemon=DaemonConfig(run_dir=str(run_dir)), call=CallConfig(throttle_limit=300, freeze_limit=300)
    )
    served = Daemon(run_dir, config)  # type: ignore[arg-type]
    await served.start()
    await served.open("web", memory=1256 * MIB)
    try:
        yield served
    finally:
        await served.stop()


class Stream:
    """What one agent hears, collected while it acts."""

    def __init__(self, daemon: Daemon) -> None:
        self._call = daemon.agent("web").WatchFeedback(pb.WatchFeedbackRequest())
        self.heard: list[t.Feedback] = []

    async def until(self, kind: int) -> t.Feedback:
        """The next message of `kind`; earlier ones are in `heard`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                response: Any = await self._call.read()
                self.heard.append(response.feedback)
                if response.feedback.kind == kind:
                    return self.heard[-1]


async def begin(daemon: Daemon, **intent: object) -> str:
    request = pb.BeginCallRequest(
        intent=t.Intent(command=["make", "-j8"], **intent),  # type: ignore[arg-type]
        process=t.ProcessRef(pid=daemon.process("web")),
    )
    begun = await daemon.agent("web").BeginCall(request)
    await until(lambda: daemon.host.calls[begun.call.id].is_watched)
    return begun.call.id


def decisions(daemon: Daemon, call_id: str) -> list[Action]:
    return [event.action for event in daemon.history.noted if event.call_id == call_id]


async def hello(daemon: Daemon) -> Stream:
    stream = Stream(daemon)
    await stream.until(t.FEEDBACK_KIND_HELLO)
    return stream


async def test_a_stop_call_is_warned_before_its_limit_and_then_left_alone(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=64 * MIB, memory_max_bytes=160 * MIB)
    machine = daemon.host.calls[call_id]
    assert machine.high_bytes == 150 * MIB
    daemon.host.use_memory(call_id, 151 * MIB)
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert warning.level == t.LEVEL_TIGHT
    assert "151 MiB" in warning.message and "160 MiB" in warning.message
    assert f"agentcg call set {call_id} --memory-max 320M" in warning.advice and "-j1" in warning.advice
    assert warning.ladder.rung == t.RUNG_WARNED and warning.ladder.memory_to_ask_bytes == 320 * MIB
    assert warning.limits.memory_max_bytes == 160 * MIB and warning.usage.memory_current_bytes == 151 * MIB
    shown = (await daemon.agent("web").GetCall(pb.GetCallRequest(call_id=call_id))).call
    assert shown.ladder == warning.ladder, "whoever looks finds what was told"
    (event,) = [each for each in daemon.history.noted if each.action is Action.WARNED]
    assert event.id == warning.ladder.event_id and dict(event.inputs)["memory_held_bytes"] == 151 * MIB
    assert machine.high_bytes is None, "it is not slowed down on its way"


async def test_a_throttled_call_is_stopped_at_its_deadline_and_told_what_to_declare(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=500 * MIB,
        on_exceed=t.ON_EXCEED_THROTTLE, throttle_limit_ms=200,
    )  # fmt: skip
    daemon.host.use_memory(call_id, 120 * MIB)
    told = await stream.until(t.FEEDBACK_KIND_THROTTLED)
    assert told.level == t.LEVEL_CRITICAL and told.ladder.rung == t.RUNG_THROTTLED
    assert told.ladder.HasField("deadline_at") and told.ladder.memory_to_ask_bytes == 200 * MIB
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict == t.VERDICT_THROTTLE_LIMIT
    assert ended.ladder.memory_to_ask_bytes == 200 * MIB and "--memory 200M" in ended.advice
    assert [each.kind for each in stream.heard].count(t.FEEDBACK_KIND_THROTTLED) == 1
    assert decisions(daemon, call_id)[-3:] == [Action.THROTTLED, Action.KILLED, Action.ENDED]


async def test_a_throttled_call_that_releases_memory_goes_on(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=500 * MIB, on_exceed=t.ON_EXCEED_THROTTLE
    )
    daemon.host.use_memory(call_id, 120 * MIB)
    await stream.until(t.FEEDBACK_KIND_THROTTLED)
    daemon.host.use_memory(call_id, 50 * MIB)
    assert (await stream.until(t.FEEDBACK_KIND_RELEASED)).ladder.rung == t.RUNG_CALM
    shown = await daemon.agent("web").GetCall(pb.GetCallRequest(call_id=call_id))
    assert not shown.call.HasField("ladder")
    assert daemon.controller.call("web", call_id).state is CallState.RUNNING


async def test_a_throttled_call_that_is_given_more_goes_on(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=500 * MIB,
        on_exceed=t.ON_EXCEED_THROTTLE, throttle_limit_ms=60_000,
    )  # fmt: skip
    daemon.host.use_memory(call_id, 120 * MIB)
    await stream.until(t.FEEDBACK_KIND_THROTTLED)
    wanted = pb.AdjustCallRequest(call_id=call_id, intent=t.Intent(memory_bytes=200 * MIB))
    assert (await daemon.agent("web").AdjustCall(wanted)).answer.decision == t.DECISION_GRANTED
    await stream.until(t.FEEDBACK_KIND_RELEASED)
    assert daemon.host.calls[call_id].high_bytes == 200 * MIB


async def test_a_call_is_extended_while_there_is_room_and_the_budget_holds(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=2000 * MIB, on_exceed=t.ON_EXCEED_EXTEND
    )
    call = daemon.controller.call("web", call_id)
    for held in range(100, 990, 30):
        daemon.host.use_memory(call_id, held * MIB)
        await until(lambda held=held: call.limits.memory_bytes > held * MIB * 95 // 100)  # type: ignore[misc]
        session = daemon.controller.session("web")
        assert session.memory_reserved_bytes == call.limits.memory_bytes <= session.budget.calls_memory_bytes
    assert call.state is CallState.RUNNING
    told = await stream.until(t.FEEDBACK_KIND_ADJUSTED)
    assert told.ladder.memory_to_ask_bytes == told.limits.memory_bytes
    assert [each.kind for each in stream.heard].count(t.FEEDBACK_KIND_ADJUSTED) == 1, (
        "once, not at every step"
    )


async def test_without_room_a_call_is_clamped_frozen_and_goes_on_when_another_ends(daemon: Daemon) -> None:
    stream = await hello(daemon)
    other = await begin(daemon, memory_bytes=900 * MIB)
    call_id = await begin(daemon, memory_bytes=100 * MIB, on_exceed=t.ON_EXCEED_EXTEND)
    call, machine = daemon.controller.call("web", call_id), daemon.host.calls[call_id]
    daemon.host.use_memory(call_id, 101 * MIB)
    clamped = await stream.until(t.FEEDBACK_KIND_THROTTLED)
    assert clamped.ladder.rung == t.RUNG_CLAMPED
    frozen = await stream.until(t.FEEDBACK_KIND_FROZEN)
    assert frozen.ladder.rung == t.RUNG_FROZEN and frozen.ladder.HasField("deadline_at")
    assert machine.frozen and call.frozen_by == {FreezeCause.LADDER}
    await daemon.agent("web").FinishCall(pb.FinishCallRequest(call_id=other, exit_code=0))
    await stream.until(t.FEEDBACK_KIND_ADJUSTED)
    await until(lambda: not machine.frozen)
    assert call.state is CallState.RUNNING and daemon.controller.rung(call) is Rung.CALM


async def test_a_frozen_call_for_which_no_room_comes_is_stopped(daemon: Daemon) -> None:
    stream = await hello(daemon)
    other = await begin(daemon, memory_bytes=900 * MIB)
    call_id = await begin(daemon, memory_bytes=100 * MIB, on_exceed=t.ON_EXCEED_EXTEND)
    daemon.host.use_memory(call_id, 101 * MIB)
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.call_id == call_id and ended.report.verdict == t.VERDICT_THROTTLE_LIMIT
    assert "no room came while it was frozen" in ended.message
    assert decisions(daemon, call_id)[-4:] == [Action.CLAMPED, Action.FROZEN, Action.KILLED, Action.ENDED]
    assert daemon.controller.call("web", other).state is CallState.RUNNING, "exactly that call"


async def test_what_an_operator_holds_is_not_stopped_by_its_own_deadline_meanwhile(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=500 * MIB,
        on_exceed=t.ON_EXCEED_THROTTLE, throttle_limit_ms=1000,
    )  # fmt: skip
    daemon.host.use_memory(call_id, 120 * MIB)
    await stream.until(t.FEEDBACK_KIND_THROTTLED)
    daemon.controller.freeze_call(call_id, "a look")
    await asyncio.sleep(1.1)
    assert daemon.controller.call("web", call_id).state is CallState.FROZEN
    daemon.controller.thaw_call(call_id)
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict == t.VERDICT_THROTTLE_LIMIT


async def test_a_call_that_cannot_be_listened_to_is_looked_at(daemon: Daemon) -> None:
    stream = await hello(daemon)
    daemon.host.failures["watch_memory"] = RequestError(
        Kind.HOST, "no watches left", "raise max_user_watches"
    )
    call_id = await begin(
        daemon, memory_bytes=100 * MIB, memory_max_bytes=500 * MIB,
        on_exceed=t.ON_EXCEED_THROTTLE, throttle_limit_ms=200,
    )  # fmt: skip
    daemon.host.use_memory(call_id, 120 * MIB)
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict == t.VERDICT_THROTTLE_LIMIT


async def test_the_end_of_a_call_at_its_limit_says_what_would_be_granted(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=400 * MIB, memory_max_bytes=400 * MIB)
    call, machine = daemon.controller.call("web", call_id), daemon.host.calls[call_id]
    machine.oom = OomCounters(1, 1, 0)
    daemon.host.statuses[call.pid] = ExitStatus(signal=9)
    daemon.host.kill_call(call_id)
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict == t.VERDICT_MEMORY_LIMIT_CALL
    assert ended.ladder.memory_to_ask_bytes == 800 * MIB and "--memory 800M" in ended.advice
    assert "no time to warn: it took the last 25 MiB below its limit" in ended.message


async def test_the_end_of_a_call_that_was_warned_does_not_say_that_there_was_no_time_to_warn(
    daemon: Daemon,
) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=400 * MIB, memory_max_bytes=400 * MIB)
    call, machine = daemon.controller.call("web", call_id), daemon.host.calls[call_id]
    daemon.host.use_memory(call_id, 390 * MIB)
    await stream.until(t.FEEDBACK_KIND_WARNING)
    machine.oom = OomCounters(1, 1, 0)
    daemon.host.statuses[call.pid] = ExitStatus(signal=9)
    daemon.host.kill_call(call_id)
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict == t.VERDICT_MEMORY_LIMIT_CALL and "to warn" not in ended.message


# ---- limits that calls share: the session's 1256 MiB less the agent's 256, so a mark at 937.5 of 1000 MiB


def growing(mib_per_s: int) -> Growth:
    """As the kernel's program would tell."""
    return Growth(
        usage_bytes=0,
        rate_bytes_per_s=mib_per_s * MIB,
        peak_rate_bytes_per_s=mib_per_s * MIB,
        over_soft_us=0,
        is_over_soft=False,
        breaches=0,
    )


async def test_calls_are_warned_before_the_session_is_full_the_grower_and_the_largest(
    daemon: Daemon,
) -> None:
    stream = await hello(daemon)
    large, small, grower = [await begin(daemon, memory_bytes=100 * MIB) for _ in range(3)]
    assert daemon.host.memory.marks["web"] == 1000 * MIB * 15 // 16
    daemon.host.use_memory(large, 620 * MIB)
    daemon.host.use_memory(small, 50 * MIB)
    ids = {large: 0, small: 0, grower: 20}
    daemon.host.call_growth = {each: growing(rate) for each, rate in ids.items()}
    daemon.host.use_memory(grower, 280 * MIB)
    first = await stream.until(t.FEEDBACK_KIND_WARNING)
    second = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert [first.call_id, second.call_id] == [grower, large]
    assert "hold 950 MiB together" in first.message and "stopped at 1000 MiB" in first.message
    assert "grows by 20 MiB a second" in first.message and "would be the one" in second.message
    assert "-j1" in first.advice and "agentcg call kill" in first.advice
    assert first.ladder.rung == t.RUNG_WARNED and first.limits.memory_bytes == 100 * MIB
    warned = [each for each in daemon.history.noted if each.action is Action.WARNED]
    assert [each.id for each in warned] == [first.ladder.event_id, second.ladder.event_id]
    assert dict(warned[0].inputs)["shared_limit_bytes"] == 1000 * MIB
    await until(lambda: daemon.host.memory.marks["web"] is None)


async def test_where_the_kernel_does_not_tell_growth_the_grower_is_found_by_a_second_look(
    daemon: Daemon,
) -> None:
    stream = await hello(daemon)
    large, grower = [await begin(daemon, memory_bytes=100 * MIB) for _ in range(2)]
    daemon.host.use_memory(large, 690 * MIB)
    daemon.host.use_memory(grower, 250 * MIB)
    assert (await stream.until(t.FEEDBACK_KIND_WARNING)).call_id == large
    daemon.host.use_memory(grower, 252 * MIB)
    second = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert second.call_id == grower and second.HasField("time_to_limit_ms")


async def test_a_call_alone_in_its_session_is_warned_once_of_its_own_limit(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=100 * MIB)
    daemon.host.calls[call_id].is_watched = False
    daemon.host.use_memory(call_id, 950 * MIB)
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert "The call holds 950 MiB and is stopped at 1000 MiB" in warning.message
    await daemon.agent("web").FinishCall(pb.FinishCallRequest(call_id=call_id, exit_code=0))
    await stream.until(t.FEEDBACK_KIND_ENDED)
    assert [each.kind for each in stream.heard].count(t.FEEDBACK_KIND_WARNING) == 1


async def test_the_mark_comes_back_with_room_and_follows_the_budget(daemon: Daemon) -> None:
    stream = await hello(daemon)
    calls = [await begin(daemon, memory_bytes=100 * MIB) for _ in range(2)]
    for call_id in calls:
        daemon.host.use_memory(call_id, 470 * MIB)
    await stream.until(t.FEEDBACK_KIND_WARNING)
    marks = daemon.host.memory.marks
    await until(lambda: marks["web"] is None)
    await daemon.agent("web").FinishCall(pb.FinishCallRequest(call_id=calls[0], exit_code=0))
    await until(lambda: marks["web"] == 1000 * MIB * 15 // 16)
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=1556 * MIB), None)
    assert marks["web"] == 1300 * MIB * 15 // 16


async def test_a_session_full_of_page_cache_warns_nobody_and_is_not_heard_for_a_while(
    daemon: Daemon,
) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=100 * MIB)
    assert daemon.host.listener is not None
    for _ in range(2):
        daemon.host.listener.memory_mark_crossed("web")
    assert "web" in daemon.host.memory.deaf, "told once, looked at, and not woken up again"
    await until(lambda: "web" not in daemon.host.memory.deaf)
    await daemon.agent("web").FinishCall(pb.FinishCallRequest(call_id=call_id, exit_code=0))
    await stream.until(t.FEEDBACK_KIND_ENDED)
    assert not [each for each in stream.heard if each.kind == t.FEEDBACK_KIND_WARNING]


# ---- the deadline


async def test_a_call_hears_of_its_deadline_before_and_may_ask_for_longer(daemon: Daemon) -> None:
    stream = await hello(daemon)
    call_id = await begin(daemon, memory_bytes=100 * MIB, deadline_ms=2_000)
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert "at its deadline of 2 s" in warning.message and f"call set {call_id}" in warning.advice
    wanted = pb.AdjustCallRequest(call_id=call_id, intent=t.Intent(deadline_ms=600_000))
    assert (await daemon.agent("web").AdjustCall(wanted)).answer.decision == t.DECISION_GRANTED
    await daemon.agent("web").FinishCall(pb.FinishCallRequest(call_id=call_id, exit_code=0))
    ended = await stream.until(t.FEEDBACK_KIND_ENDED)
    assert ended.report.verdict != t.VERDICT_DEADLINE
