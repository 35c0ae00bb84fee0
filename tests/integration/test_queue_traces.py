"""Whatever sessions and calls do, the controller's queue never promises too much, answers everybody and empties.

The real controller on a machine in memory; hypothesis thinks of what happens.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller import Controller, World, ending, rooms
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.model import (
    Answer,
    BudgetRequest,
    CallState,
    CpuClass,
    Decision,
    Intent,
    Priority,
    ToolCall,
    Usage,
)
from tests.fake_history import FakeHistory
from tests.fakes import FakeClock, FakeHost

MIB = 1 << 20
CAPACITY = 1024 * MIB
SESSIONS = ("low", "normal", "high")
S = 1_000_000_000

sizes = st.one_of(st.none(), st.integers(1, 64), st.integers(1, 600))
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("declare"),
            st.sampled_from(SESSIONS),
            sizes,
            st.sampled_from([None, *CpuClass]),
            st.sampled_from([0, 600_000]),
        ),
        st.tuples(st.just("nested"), st.integers(0, 50), st.integers(1, 300)),
        st.tuples(st.sampled_from(["begin", "finish", "give_back"]), st.integers(0, 50)),
        st.tuples(st.just("use"), st.integers(0, 50), st.integers(0, 600)),
        st.tuples(st.just("pass"), st.integers(1, 60)),
        st.tuples(st.sampled_from(["remove", "freeze", "thaw"]), st.sampled_from(SESSIONS)),
        st.tuples(st.just("budget"), st.sampled_from(SESSIONS), st.integers(200, 900)),
    ),
    max_size=40,
)


@dataclass
class Machine:
    """A controller, and everybody who ever waited in its queue with what they heard."""

    clock: FakeClock = field(default_factory=FakeClock)
    host: FakeHost = field(default_factory=lambda: FakeHost(CAPACITY))
    heard: dict[str, list[Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.controller = Controller(
            World(Config(), self.host, FakeHistory(), self.clock, Counters(), Feed())
        )

    async def open(self, name: str) -> None:
        request = BudgetRequest(memory_max_bytes=640 * MIB, agent_memory_bytes=64 * MIB, calls_max=12)
        await self.controller.open_session(name, request, priority=Priority(name))

    def call(self, number: int) -> ToolCall | None:
        calls = self.controller.calls(None)
        return calls[number % len(calls)] if calls else None

    def declare(self, session: str, intent: Intent, wait_ms: int, parent_id: str = "") -> None:
        answer = self.controller.declare(session, intent, parent_id, wait_ms)
        assert answer.message
        match answer.decision:
            case Decision.QUEUED:
                assert wait_ms and answer.queue is not None and answer.queue.position >= 1
                heard = self.heard.setdefault(answer.call_id, [])
                self.controller.follow(self.controller.call(session, answer.call_id), heard.append)
            case Decision.REFUSED:
                assert answer.reason is not None and not answer.call_id
            case _:
                assert answer.limits is not None and answer.expires_at_ns is not None

    async def do(self, step: Sequence[object]) -> None:
        controller = self.controller
        match step:
            case ("declare", str(name), memory, cpu_class, int(wait_ms)):
                size = memory * MIB if isinstance(memory, int) else None
                wanted = cpu_class if isinstance(cpu_class, CpuClass) else None
                self.declare(name, Intent(memory_bytes=size, cpu_class=wanted), wait_ms)
            case ("nested", int(number), int(memory)):
                call = self.call(number)
                if call is not None and call.state is CallState.RUNNING:
                    self.declare(call.session, Intent(memory_bytes=memory * MIB), 600_000, call.id)
            case (str(verb), int(number)) if verb in ("begin", "finish", "give_back"):
                call = self.call(number)
                if call is None:
                    return
                if verb == "begin" and call.state is CallState.DECLARED:
                    # This process is nobody's tool: the machine in memory neither kills nor awaits it.
                    controller.begin_pidfd(call.session, call.id, os.getpid(), os.pidfd_open(os.getpid()))
                elif verb == "finish":
                    await controller.finish(call.session, call.id, 0)
                elif verb == "give_back":
                    controller.give_back(call.session, call.id)
            case ("use", int(number), int(memory)):
                call = self.call(number)
                if call is not None and call.id in self.host.calls:
                    used = Usage(memory_current_bytes=memory * MIB, memory_peak_bytes=memory * MIB)
                    self.host.calls[call.id].usage = used
            case ("pass", int(seconds)):
                self.clock.time_ns += seconds * S
            case ("remove", str(name)):
                await controller.remove_session(name, "")
                await self.open(name)
            case ("freeze", str(name)):
                controller.freeze_session(name, "", False)
            case ("thaw", str(name)):
                controller.thaw_session(name)
            case ("budget", str(name), int(memory)):
                controller.update_session(name, BudgetRequest(memory_max_bytes=memory * MIB), None)

    def check(self) -> None:
        controller, factor = self.controller, self.controller.config.host.oversubscription
        agents = declared = 0
        for session in controller.sessions():
            held = [call for call in session.calls.values() if call.state is not CallState.QUEUED]
            outer = sum(call.limits.memory_bytes for call in held if not call.parent_id)
            assert session.memory_reserved_bytes == outer
            assert session.calls_queued == len(session.calls) - len(held)
            assert len(held) <= session.budget.calls_max
            assert outer <= factor * session.budget.calls_memory_bytes
            for call in held:
                inside = [other for other in held if other.parent_id == call.id]
                assert call.limits.memory_max_bytes is not None
                assert sum(other.limits.memory_bytes for other in inside) <= call.limits.memory_max_bytes
            agents += session.budget.agent_memory_bytes
            declared += outer
        assert agents + declared <= factor * CAPACITY
        # Who measured nothing has lent nothing.
        if not any(call.usage.memory_current_bytes is not None for call in self.host.calls.values()):
            assert agents + declared <= CAPACITY
        for call_id, heard in self.heard.items():
            final = [answer for answer in heard if answer.decision is not Decision.QUEUED]
            waits = call_id in {call.id for call in controller.calls(None) if call.state is CallState.QUEUED}
            assert len(final) == (0 if waits else 1), "everybody is answered once"
            assert not final or heard[-1] is final[0]

    async def run(self, trace: Sequence[Sequence[object]]) -> None:
        for name in SESSIONS:
            await self.open(name)
        for step in trace:
            try:
                await self.do(step)
            except RequestError as error:
                # A budget below what is promised, or what has ended meanwhile: said, and nothing changed.
                assert error.cause
            # What came free is looked at in the next turn of the loop.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.check()
        await self.controller.close()
        self.check()
        assert not self.controller.calls_waiting
        assert self.controller.calls(None) == [] and self.controller.sessions() == []
        assert self.controller.host().memory_reserved_bytes == 0
        self.host.close()


@settings(max_examples=100, deadline=None)
@given(steps)
def test_whatever_happens(trace: list[tuple[object, ...]]) -> None:
    # Measured at every look, not once a second, and nobody says how this process has ended: a trace takes milliseconds.
    with patch.object(rooms, "MEASURE_EVERY_S", 0.0), patch.object(ending, "STATUS_DEADLINE_S", 0.0):
        asyncio.run(Machine().run(trace))


async def test_a_call_that_uses_little_lends_the_rest_but_not_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms, "MEASURE_EVERY_S", 0.0)
    # This process, which plays the call's, does not end.
    monkeypatch.setattr(ending, "STATUS_DEADLINE_S", 0.0)
    machine = Machine()
    await machine.open("normal")
    controller = machine.controller
    first = controller.declare("normal", Intent(memory_bytes=500 * MIB))
    controller.begin_pidfd("normal", first.call_id, os.getpid(), os.pidfd_open(os.getpid()))
    group = machine.host.calls[first.call_id]
    group.usage = replace(Usage(), memory_current_bytes=20 * MIB, memory_peak_bytes=30 * MIB)
    second = Intent(memory_bytes=300 * MIB)
    assert controller.declare("normal", second, wait_ms=0).decision is Decision.REFUSED, (
        "it may only be starting"
    )
    machine.clock.time_ns += 20 * S
    assert controller.declare("normal", second, wait_ms=0).decision is Decision.GRANTED
    third = controller.declare("normal", Intent(memory_bytes=100 * MIB), wait_ms=0)
    assert third.decision is Decision.REFUSED, (
        "half as much again as there is, and no more, is declared in all"
    )
    await controller.close()
    machine.host.close()
