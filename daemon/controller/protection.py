"""Protection between sessions: reads when something asks for it, has the policy decide, and does what it says.

Asked for by a crossed mark, by stall of a session that has others below it, by calls that begin or end; then every
`protection.tick` while somebody is held, and every `protection.horizon` until all is calm. Where all budgets together fit
into the capacity there is nothing to be short of: no marks, no reads.
"""

import logging
import time
from collections.abc import Mapping
from typing import Final

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.shared_limits import SharedLimits
from agentcgroup.daemon.controller.timers import Timer, pause_after_ms
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import (
    CallLimits,
    CallState,
    FeedbackKind,
    FreezeCause,
    Growth,
    KillReason,
    Level,
    MemoryBreach,
    Priority,
    Session,
    SessionMemory,
    SessionState,
    ToolCall,
)
from agentcgroup.daemon.policy import protection, room
from agentcgroup.daemon.policy.grounds import Grounds
from agentcgroup.daemon.policy.protection import Step
from agentcgroup.daemon.policy.protection_words import word_step
from agentcgroup.daemon.policy.reading import Reading
from agentcgroup.daemon.policy.room import CallView, Hold, Rules, Rung, SessionView, View
from agentcgroup.daemon.policy.shared_limits import Holder
from agentcgroup.proto.words import Action

log = logging.getLogger("agentcgroup.controller")

# What begins and ends together is looked at together.
_GATHER_MS: Final = 20
# After the last sign of shortage.
_LINGER_NS: Final = 1_000_000_000
# Of the time between two looks.
_STALLED_SHARE: Final = 0.1


class Protection(SharedLimits):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._holds: dict[str, Hold] = {}
        self._call_growth: dict[str, Reading] = {}
        self._session_stall: dict[str, Reading] = {}
        self._lows: dict[str, tuple[tuple[str, int], ...]] = {}
        self._restless_at_ns = 0
        self._looked_at_ns = 0
        # When the last look is paid for, and when the next one is due, if it is armed. Of time.monotonic.
        self._rested_at_s = 0.0
        self._due_at_s = 0.0
        # The kernel has said that somebody grows.
        self._is_woken = False

    # ---- asking

    def hold(self, call: ToolCall) -> Hold | None:
        """How the call is held back for others; None: it is not."""
        return self._holds.get(call.id)

    def use_config(self, config: Config) -> None:
        super().use_config(config)
        settings = config.protection
        self._protection_rules = Rules(
            horizon_ms=settings.horizon,
            slow_limit_ms=settings.slow_limit,
            freeze_limit_ms=settings.freeze_limit,
        )

    # ---- what makes it look

    def memory_mark_crossed(self, session: str) -> None:
        self.counters.marks_crossed += 1
        super().memory_mark_crossed(session)
        if self._is_oversold():
            self._look_at_once()

    def memory_stalled(self, session: str) -> None:
        self._look_at_once()

    def memory_short(self, breach: MemoryBreach) -> None:
        self._look_at_once()

    def _look_at_once(self) -> None:
        """The kernel asks for it, which it may do a hundred times a second: as soon as the last look is paid for."""
        self._restless_at_ns = self._clock.now_ns()
        self._is_woken = True
        if self._rest_ms() <= 0:
            self._look_around()
        else:
            self._look_within(0)

    def _look_within(self, wait_ms: float) -> None:
        """No later than that, but for the rest after the last look."""
        due_at_s = time.monotonic() + max(wait_ms, self._rest_ms()) / 1000
        if not self._is_armed(Timer.PROTECTION_LOOK, "") or due_at_s < self._due_at_s:
            self._due_at_s = due_at_s
            wait_ms = (due_at_s - time.monotonic()) * 1000
            self._arm(Timer.PROTECTION_LOOK, "", wait_ms, self._look_around)

    def _rest_ms(self) -> float:
        """Until the last look is paid for."""
        return (self._rested_at_s - time.monotonic()) * 1000

    def _raise_mark(self, call: ToolCall) -> None:
        """It has begun: what it was promised it may take before anybody has looked."""
        session = self._ledger.sessions.get(call.session)
        if session is None or session.memory_mark_bytes is None or call.parent_id:
            return
        memory, from_bytes = self._host.memory.session(session.name), session.memory_mark_bytes
        if memory is not None and session.running_calls() == [call]:
            # What those may have taken that have ended is nobody's.
            from_bytes = memory.calls_bytes
        needed_bytes = from_bytes + call.limits.memory_bytes
        if needed_bytes > session.memory_mark_bytes:
            self._set_mark(session, needed_bytes)
            # All marks together are higher now than there is room.
            self._look_within(_GATHER_MS)

    def _memory_shifted(self, session: str) -> None:
        """What is promised to whom is another now, and whatever ended left room."""
        super()._memory_shifted(session)
        if self._has_marks() or self._is_oversold():
            # With a mark for everybody and nobody held all may stay as it is for a while.
            waits = not self._holds and not self._has_unmarked()
            self._look_within(self.config.protection.horizon if waits else _GATHER_MS)

    def _has_marks(self) -> bool:
        return any(session.memory_mark_bytes is not None for session in self._ledger.sessions.values())

    def _has_unmarked(self) -> bool:
        return any(
            session.calls and session.memory_mark_bytes is None for session in self._ledger.sessions.values()
        )

    def _relimit(self, call: ToolCall, limits: CallLimits) -> None:
        super()._relimit(call, limits)
        self._memory_shifted(call.session)

    def _call_gone(self, call: ToolCall) -> None:
        super()._call_gone(call)
        self._memory_shifted(call.session)

    def _is_oversold(self) -> bool:
        """Whether the sessions may use more together than there is."""
        if self.config.protection.sessions == "off":
            return False
        sold = sum(session.budget.memory_max_bytes for session in self._ledger.sessions.values())
        return sold > self._host.memory_capacity_bytes

    # ---- one look

    def _look_around(self) -> None:
        began_s = time.thread_time()
        self._disarm(Timer.PROTECTION_LOOK, "")
        if not self._is_oversold():
            self._let_everybody_go()
            return
        view, readings = self._memory_view()
        if view is None:
            return
        plan = protection.decide(view, self._protection_rules)
        self._warn_of_host_memory(view, plan)
        for step in plan.steps:
            self._take_step(step, view)
        self._set_marks(dict(plan.allowances), readings)
        self._protect(view)
        if not plan.is_calm:
            self._restless_at_ns = view.now_ns
        self._rested_at_s = time.monotonic() + pause_after_ms(began_s) / 1000
        if view.now_ns - self._restless_at_ns < _LINGER_NS:
            # While nobody is held, the marks tell of whoever grows faster than was seen.
            settings = self.config.protection
            self._look_within(settings.tick if self._holds else settings.horizon)

    def _warn_of_host_memory(self, view: View, plan: protection.Plan) -> None:
        """Of the last of the memory hears who may be ended for it; who is held back hears of that."""
        is_near = self._is_nearly_used_up(view.room_bytes + view.coming_bytes, view.capacity_bytes)
        calls = view.calls if is_near else ()
        holders = [Holder(call.id, call.usage_bytes, call.growth_bytes_per_s) for call in calls]
        taken = {step.call.id for step in plan.steps} | self._holds.keys()
        likely_id = protection.most_expendable(calls)
        self._warn_of_host(holders, view.room_bytes, view.capacity_bytes, taken, likely_id)

    def _is_nearly_used_up(self, left_bytes: int, capacity_bytes: int) -> bool:
        return left_bytes <= 2 * self._protection_rules.margin_bytes(capacity_bytes)

    def _memory_view(self) -> tuple[View | None, dict[str, SessionMemory]]:
        host = self._host.memory.host()
        if host is None:
            return None, {}
        now_ns = self._clock.now_ns()
        rates = self._kernel_rates(now_ns)
        lowest = self._lowest_rank()
        sessions: list[SessionView] = []
        calls: list[CallView] = []
        readings: dict[str, SessionMemory] = {}
        for session in self._ledger.sessions.values():
            memory = self._host.memory.session(session.name)
            if memory is None:
                continue
            readings[session.name] = memory
            running = (
                [] if session.state is SessionState.FROZEN else self._call_views(session, now_ns, rates)
            )
            calls += running
            sessions.append(
                SessionView(
                    session.name,
                    session.priority,
                    max(0, session.budget.agent_memory_bytes - memory.agent_bytes),
                    bool(running)
                    and room.RANK[session.priority] < lowest
                    and self._is_stalled(session, memory, now_ns),
                )
            )
        live = {call.id for call in calls}
        self._call_growth = {
            call_id: reading for call_id, reading in self._call_growth.items() if call_id in live
        }
        self._holds = {
            call_id: hold
            for call_id, hold in self._holds.items()
            if call_id in live or self._ledger.is_live(call_id)
        }
        coming_bytes = sum(
            self._host.memory.call_bytes(call.id) or 0
            for session in self._ledger.sessions.values()
            for call in session.calls.values()
            if call.state is CallState.ENDING and not call.parent_id
        )
        view = View(
            now_ns, host.capacity_bytes, host.room_bytes, tuple(sessions), tuple(calls), coming_bytes
        )
        return view, readings

    def _kernel_rates(self, now_ns: int) -> Mapping[str, Growth]:
        """The kernel's word on how calls grow, where reads say nothing yet: after a lull, or when growth has woken us."""
        lull_ns = now_ns - self._looked_at_ns
        wants = self._is_woken or lull_ns > 2 * self.config.protection.horizon * 1_000_000
        self._looked_at_ns, self._is_woken = now_ns, False
        return self._host.memory_growth()[1] if wants else {}

    def _lowest_rank(self) -> int:
        return max((room.RANK[session.priority] for session in self._ledger.sessions.values()), default=0)

    def _call_views(self, session: Session, now_ns: int, rates: Mapping[str, Growth]) -> list[CallView]:
        """Calls that run, or would but for us. What others have frozen does not grow, and is theirs to thaw."""
        found = []
        for call in session.running_calls():
            if call.frozen_by - {FreezeCause.PROTECTION} or call.started_at_ns is None:
                continue
            usage = self._host.memory.call_bytes(call.id)
            if usage is None:
                continue
            hold = self._holds.get(call.id)
            reading = self._call_growth.setdefault(call.id, Reading(0, call.started_at_ns))
            growth = reading.update(usage, now_ns, decays=hold is None)
            if hold is None and call.id in rates:
                # Of who is held only what it took since then counts.
                growth = max(growth, rates[call.id].rate_bytes_per_s)
            promised = room.promised_bytes(
                call.intent.memory_bytes, call.limits.memory_bytes, usage, session.priority
            )
            found.append(
                CallView(
                    call.id,
                    session.name,
                    session.priority,
                    call.started_at_ns,
                    usage,
                    promised,
                    growth,
                    hold,
                )
            )
        return found

    def _is_stalled(self, session: Session, memory: SessionMemory, now_ns: int) -> bool:
        # At its own limit it waits for itself.
        if memory.calls_bytes >= session.budget.calls_memory_bytes * 98 // 100:
            return False
        stall_us = self._host.memory.stall_us(session.name)
        if stall_us is None:
            return False
        reading = self._session_stall.setdefault(session.name, Reading(stall_us, now_ns))
        return reading.update(stall_us, now_ns, decays=False) > _STALLED_SHARE * 1_000_000

    # ---- doing

    def _take_step(self, step: Step, view: View) -> None:
        call = self._ledger.call(None, step.call.id)
        held_before = self._holds.pop(call.id, None)
        was_frozen = held_before is not None and held_before.rung is Rung.FROZEN
        try:
            if step.hold is not None and step.hold.rung is Rung.FROZEN:
                self._freeze(call, FreezeCause.PROTECTION)
            elif was_frozen and step.action is not Action.KILLED:
                self._thaw(call, FreezeCause.PROTECTION)
        except RequestError as error:
            log.warning("%s/%s: %s", call.session, call.id, error)
            if held_before is not None:
                self._holds[call.id] = held_before
            return
        if step.hold is not None:
            self._holds[call.id] = step.hold
            self._call_growth[call.id] = Reading(step.call.usage_bytes, view.now_ns)
        self.counters.protected(step.action)
        because: Grounds = {
            "room_bytes": view.room_bytes,
            "usage_bytes": step.call.usage_bytes,
            "promised_bytes": step.call.promised_bytes,
            "growth_bytes_per_s": step.call.growth_bytes_per_s,
        }
        if step.action is Action.KILLED:
            self._kill(call, KillReason.PROTECTION, step.reason, because)
            return
        self._decided(
            step.action,
            call.session,
            step.reason,
            call=call,
            deadline_at_ns=step.hold.deadline_at_ns if step.hold else None,
            because=because,
        )
        words = word_step(step, self._protection_rules.freeze_limit_ms, was_frozen=was_frozen)
        self._say(
            words.kind,
            call.session,
            words.message,
            call=call,
            level=words.level,
            advice=words.advice,
            held_until_ns=step.hold.deadline_at_ns if step.hold else None,
        )

    def _set_marks(self, allowances: dict[str, int], readings: dict[str, SessionMemory]) -> None:
        for name, memory in readings.items():
            session = self._ledger.sessions[name]
            allowance = allowances.get(name)
            # Without calls that have begun there is nobody to grow. A mark as low as that would be in the way of those
            # that wait for their turn: what they take first would cross it by far, which the kernel slows for seconds.
            begun = any(call.started_at_ns is not None for call in session.calls.values())
            mark = memory.calls_bytes + (allowance or 0) if begun else None
            self._set_mark(session, mark)
            session.calls_held = sum(call_id in self._holds for call_id in session.calls)

    def _set_mark(self, session: Session, mark_bytes: int | None) -> None:
        if mark_bytes is not None and mark_bytes >= session.budget.calls_memory_bytes:
            mark_bytes = None
        if mark_bytes != session.memory_mark_bytes:
            session.memory_mark_bytes = mark_bytes
            self._place_mark(session)

    def _protect(self, view: View) -> None:
        """memory.low for calls of high priority; stall is watched where somebody is below."""
        live = {session.name for session in view.sessions}
        self._lows = {name: promises for name, promises in self._lows.items() if name in live}
        self._session_stall = {name: one for name, one in self._session_stall.items() if name in live}
        lowest = self._lowest_rank()
        for session in view.sessions:
            is_above = room.RANK[session.priority] < lowest
            self._host.memory.watch_stall(session.name, is_above)
            wanted: tuple[tuple[str, int], ...] = ()
            if session.priority is Priority.HIGH:
                wanted = tuple(
                    (call.id, call.promised_bytes) for call in view.calls if call.session == session.name
                )
            if wanted != self._lows.get(session.name, ()):
                self._host.memory.protect_calls(session.name, wanted)
                self._lows[session.name] = wanted

    def _let_everybody_go(self) -> None:
        """Nothing can run short any more: a session went, a budget shrank, or the protection was switched off."""
        for call_id in list(self._holds):
            if self._ledger.is_live(call_id):
                call = self._ledger.call(None, call_id)
                words = "Goes on: sessions may not use more together any more than there is."
                self._decided(Action.RELEASED, call.session, words, call=call)
                thawed = self._thaw(call, FreezeCause.PROTECTION)
                kind = FeedbackKind.THAWED if thawed else FeedbackKind.RELEASED
                self._say(kind, call.session, words, call=call, level=Level.AMPLE)
        self._holds.clear()
        for session in self._ledger.sessions.values():
            self._set_mark(session, None)
            session.calls_held = 0
            self._host.memory.watch_stall(session.name, False)
            if self._lows.pop(session.name, ()):
                self._host.memory.protect_calls(session.name, ())
