"""What room there is: what calls have reserved, less what running calls demonstrably do not use."""

import asyncio
import dataclasses
from collections import Counter
from typing import Final

from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.standing import Standing
from agentcgroup.daemon.model import CallState, CpuClass, Session, SessionState, Suggestion, ToolCall
from agentcgroup.daemon.policy import admission, queue
from agentcgroup.daemon.policy.admission import HostView, ParentView, SessionView
from agentcgroup.daemon.policy.measured import counted_bytes, given_back_bytes

MEASURE_EVERY_S: Final = 1.0

_HOST: Final = "host"

Views = tuple[SessionView, HostView, ParentView | None]


def levels_of(call: ToolCall) -> tuple[str, ...]:
    """Where a call's memory comes from, as the plan names it."""
    return (f"call {call.parent_id}",) if call.parent_id else (f"session {call.session}", _HOST)


class Rooms(Standing):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        # By call; as of when they were last measured.
        self._given_back: dict[str, int] = {}
        self._measured_s = float("-inf")

    def _measure(self) -> None:
        """Reads what running calls use, at most once a second, and only while somebody waits."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._measured_s < MEASURE_EVERY_S or self.config.host.oversubscription <= 1:
            return
        self._measured_s = now_s
        now_ns = self._clock.now_ns()
        self._given_back = {
            call.id: given_back_bytes(
                call.limits.memory_bytes,
                self._host.call_usage(call.id),
                (now_ns - call.started_at_ns) // 1_000_000,
                self._expected_ms(call, self._learned_of(call)),
            )
            for call in self._ledger.calls(None)
            if call.started_at_ns is not None and not call.parent_id
        }

    def _lent(self) -> Counter[str]:
        """What running calls give back, by session."""
        lent: Counter[str] = Counter()
        for call_id, given_back in self._given_back.items():
            call = self._ledger.find(call_id)
            if call is not None:
                lent[call.session] += min(given_back, call.limits.memory_bytes)
        return lent

    def _counted_views(self, session: Session, parent: ToolCall | None) -> Views:
        """What is there for a call when what running calls give back is lent."""
        factor, lent = self.config.host.oversubscription, self._lent()
        here, host = self._session_view(session), self._host_view()
        total, capacity = session.budget.calls_memory_bytes, host.memory_capacity_bytes
        return (
            dataclasses.replace(
                here,
                memory_reserved_bytes=counted_bytes(
                    here.memory_reserved_bytes, lent[session.name], total, factor
                ),
            ),
            dataclasses.replace(
                host,
                memory_reserved_bytes=counted_bytes(
                    host.memory_reserved_bytes, lent.total(), capacity, factor
                ),
            ),
            self._parent_view(parent),
        )

    def _learned_of(self, call: ToolCall) -> Suggestion | None:
        return self._learned(call.intent, self._ledger.session(call.session))

    @staticmethod
    def _expected_ms(call: ToolCall, learned: Suggestion | None) -> int | None:
        """How long the call is likely to run: as declared, else as such calls did before."""
        if call.intent.expected_duration_ms is not None or learned is None:
            return call.intent.expected_duration_ms
        return learned.expected_duration_ms

    def _class_of(self, call: ToolCall) -> CpuClass:
        return call.intent.cpu_class or self.config.call.cpu_class

    def _queue_view(self, waiting: list[queue.Waiter]) -> queue.View:
        """Every session and every call with others in it as levels, with what interactive calls hold of them."""
        factor = self.config.host.oversubscription
        lent = self._lent()
        express: Counter[str] = Counter()
        held = [call for call in self._ledger.calls(None) if call.state is not CallState.QUEUED]
        for call in held:
            if self._class_of(call) is CpuClass.INTERACTIVE:
                express.update({key: call.limits.memory_bytes for key in levels_of(call)})
        host = self._host_view()
        capacity = host.memory_capacity_bytes
        counted = counted_bytes(host.memory_reserved_bytes, lent.total(), capacity, factor)
        levels = {_HOST: queue.Level(capacity, capacity - counted, express[_HOST])}
        sessions = {}
        for session in self._ledger.sessions.values():
            here, total = self._session_view(session), session.budget.calls_memory_bytes
            counted = counted_bytes(here.memory_reserved_bytes, lent[session.name], total, factor)
            key = f"session {session.name}"
            levels[key] = queue.Level(total, total - counted, express[key])
            sessions[session.name] = queue.Share(
                session.priority,
                total,
                counted,
                session.budget.calls_max - here.calls_live,
                session.state is SessionState.OPEN,
            )
        for call in held:
            total = admission.nested_memory_bytes(
                call.limits.memory_max_bytes, self._ledger.session(call.session).budget
            )
            key = f"call {call.id}"
            levels[key] = queue.Level(total, total - call.children_reserved_bytes, express[key])
        return queue.View(levels, sessions, host.calls_max - host.calls_live, waiting)
