"""What the host tells of growth into what others were promised, and how often."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from agentcgroup.bpf.memory import Breach
from agentcgroup.daemon.host.guard import SessionGuard
from agentcgroup.daemon.model import MemoryBreach, MemoryGuard, SchedulerState, SchedulerStatus
from agentcgroup.daemon.ports import Location

CALL_ID, LOW_ID, HIGH_ID = 1, 2, 3
SECOND_NS = 1_000_000_000
BREACH = Breach(5 * SECOND_NS, CALL_ID, LOW_ID, HIGH_ID, 40 << 20, 8 << 20, 0, 50_000_000)


@dataclass
class Watch:
    """The memory program as far as breaches go."""

    guards: bool
    tell: Callable[[Breach], None] = lambda breach: None

    def listen(self, on_breach: Callable[[Breach], None]) -> None:
        self.tell = on_breach


@dataclass
class Listener:
    short: list[MemoryBreach] = field(default_factory=list)
    breached: list[MemoryBreach] = field(default_factory=list)

    def memory_short(self, breach: MemoryBreach) -> None:
        self.short.append(breach)

    def memory_breached(self, breach: MemoryBreach) -> None:
        self.breached.append(breach)


def guarded(watch: Watch, state: SchedulerState = SchedulerState.ATTACHED) -> tuple[SessionGuard, Listener]:
    sessions = {
        name: SimpleNamespace(cgroup=SimpleNamespace(id=number))
        for name, number in (("low", LOW_ID), ("high", HIGH_ID))
    }
    homes = {CALL_ID: Location("low", "c-1")}
    events = SimpleNamespace(memory=watch)
    keeper = SimpleNamespace(status=SchedulerStatus(state, "partial"))
    guard = SessionGuard(sessions, homes, events, keeper)  # type: ignore[arg-type]
    listener = Listener()
    guard.listen(listener)  # type: ignore[arg-type]
    return guard, listener


def test_every_breach_is_told_to_the_policy_and_one_in_half_a_minute_to_agents() -> None:
    watch = Watch(guards=True)
    guard, listener = guarded(watch)
    for seconds in (5, 6, 34, 35):
        watch.tell(replace(BREACH, at_ns=seconds * SECOND_NS))
    assert guard.kind is MemoryGuard.HOLD
    assert len(listener.short) == 4 and len(listener.breached) == 2
    assert listener.short[0] == MemoryBreach("low", "c-1", "high", 40 << 20, 8 << 20, 0, 50_000)


@pytest.mark.parametrize(
    ("guards", "state"), [(False, SchedulerState.ATTACHED), (True, SchedulerState.WAITING)]
)
def test_where_nobody_is_held_the_policy_is_told_all_the_same(guards: bool, state: SchedulerState) -> None:
    watch = Watch(guards)
    guard, listener = guarded(watch, state)
    watch.tell(BREACH)
    assert len(listener.short) == 1 and not listener.breached
    assert guard.kind is MemoryGuard.TOLD


def test_a_call_that_is_gone_and_a_session_that_is_gone_are_not_told() -> None:
    watch = Watch(guards=True)
    _, listener = guarded(watch)
    watch.tell(replace(BREACH, call_id=9))
    watch.tell(replace(BREACH, for_session_id=9))
    assert not listener.short and not listener.breached
