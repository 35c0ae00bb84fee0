"""Driving the ladder of each call (policy/ladder.py): when to look at it, and doing what follows from that.

A call at rest costs nothing: the kernel tells of memory.high and memory.max through memory.events. What it tells too often
to be news is not listened to until the next look is due, so that a call which fills its cache wakes nobody all the time.
"""

import asyncio
import dataclasses
import logging

from agentcgroup.daemon.controller.core import Climb
from agentcgroup.daemon.controller.ending import Endings
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import (
    Action,
    CallMemory,
    FreezeCause,
    KillReason,
    Ladder,
    OnExceed,
    Rung,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.policy import admission, ladder, ladder_words
from agentcgroup.daemon.policy.ladder import (
    CACHE_MS,
    IDLE_LOOK_MS,
    LOOK_MS,
    PROMPT_MS,
    Act,
    Rules,
    Seen,
    Stand,
    Step,
)
from agentcgroup.proto.words import Limit

log = logging.getLogger("agentcgroup.controller")


def monotonic_ms() -> int:
    """Of the event loop; deadlines on the wire are in Unix time."""
    return int(asyncio.get_running_loop().time() * 1000)


class Ladders(Endings):
    def rung(self, call: ToolCall) -> Rung | None:
        """Where a call stands; None when it does not run."""
        life = self._lives.get(call.id)
        return life.climb.stand.rung if life is not None and call.is_live else None

    # ---- when to look

    def _begin_ladder(self, call: ToolCall, *, anew: bool = False) -> None:
        """Puts the soft limit up and listens; off the path of the launch, which has been answered.

        `anew`: an earlier daemon may have left the soft limit anywhere.
        """
        if not call.is_live:
            return
        climb = self._lives[call.id].climb
        climb.high_bytes = soft_bytes = self._rules(call).soft_bytes
        climb.is_taken_over = anew
        try:
            if anew or soft_bytes != call.limits.memory_high_bytes:
                self._host.limit_softly(call.id, soft_bytes)
            # What it has reached already is told again as long as it goes on growing.
            self._listen(call, climb, True)
        except RequestError as error:
            self._look_later(call, climb, error)

    def memory_throttled(self, call_id: str) -> None:
        life = self._lives.get(call_id)
        if life is None:
            return
        call, climb = self._ledger.call(None, call_id), life.climb
        wait_ms = climb.listens_at_ms - monotonic_ms()
        if wait_ms <= 0:
            self._look(call, climb, woken=True)
            return
        self._listen(call, climb, False)
        if not self._is_armed(Timer.LADDER, call.id) or climb.stand.rung is Rung.CALM:
            self._arm(Timer.LADDER, call.id, wait_ms, lambda: self._look(call, climb, woken=True))

    def _call_gone(self, call: ToolCall) -> None:
        super()._call_gone(call)
        for life_id, life in self._lives.items():
            if life.climb.stand.rung in (Rung.CLAMPED, Rung.FROZEN):
                self._look_soon(self._ledger.call(None, life_id))

    def _look_soon(self, call: ToolCall) -> None:
        """Limits have changed: what is being done about the call may have no cause any more."""
        life = self._lives.get(call.id)
        if life is not None:
            self._arm(Timer.LADDER, call.id, 0, lambda: self._look(call, life.climb))

    def _listen(self, call: ToolCall, climb: Climb, listens: bool) -> None:
        if climb.listens is not listens:
            self._host.watch_memory(call.id, listens)
            climb.listens = listens

    # ---- one look

    def _look(self, call: ToolCall, climb: Climb, *, woken: bool = False) -> None:
        """`woken`: the kernel said that a limit was reached; when nothing follows from that, it is not heard for a while."""
        if not call.is_running:
            return
        try:
            self._look_and_act(call, climb, woken=woken)
        except RequestError as error:
            self._look_later(call, climb, error)

    def _look_later(self, call: ToolCall, climb: Climb, error: RequestError) -> None:
        """The kernel would not: what cannot be listened to is looked at, and deadlines stand."""
        if call.is_live:
            log.warning("%s/%s: its ladder: %s", call.session, call.id, error.cause)
            self._arm(Timer.LADDER, call.id, IDLE_LOOK_MS, lambda: self._look(call, climb))

    def _look_and_act(self, call: ToolCall, climb: Climb, *, woken: bool) -> None:
        now_ms = monotonic_ms()
        if call.frozen_by - {FreezeCause.LADDER}:
            # Somebody else holds it: its own deadline waits meanwhile.
            if climb.stand.deadline_ms is not None:
                later = climb.stand.deadline_ms + IDLE_LOOK_MS
                climb.stand = dataclasses.replace(climb.stand, deadline_ms=later)
            self._arm(Timer.LADDER, call.id, IDLE_LOOK_MS, lambda: self._look(call, climb))
            return
        rules, memory = self._rules(call), self._host.call_memory(call.id)
        held = memory.held_or_current_bytes
        # The kernel's rate is that of the last charge, and so of now only when a charge has woken us.
        growth = memory.growth_bytes_per_s if woken else None
        room, others = 0, 0
        if rules.on_exceed is OnExceed.EXTEND and held is not None and held > rules.reserved_bytes // 2:
            # It may be about to be extended, before which whatever stands in reserve gives way.
            self.withdraw_standing()
            room, others = self._room(call)
        done = ladder.step(rules, climb.stand, Seen(now_ms, held, room, others, growth))
        climb.stand = done.stand
        for act in done.acts:
            self._do(call, done, act, memory)
        if not call.is_live:
            return
        if done.high_bytes != climb.high_bytes:
            self._host.limit_softly(call.id, done.high_bytes)
            climb.high_bytes = done.high_bytes
        climb.listens_at_ms = now_ms + (
            PROMPT_MS if done.acts else LOOK_MS if done.look_in_ms is not None else CACHE_MS if woken else 0
        )
        self._listen(call, climb, True)
        if done.look_in_ms is None:
            self._disarm(Timer.LADDER, call.id)
        else:
            self._arm(Timer.LADDER, call.id, done.look_in_ms, lambda: self._look(call, climb))

    def _rules(self, call: ToolCall) -> Rules:
        limits, defaults = call.limits, self.config.call
        limit_ms = limits.throttle_limit_ms
        return Rules(
            on_exceed=call.intent.on_exceed or defaults.on_exceed,
            reserved_bytes=limits.memory_bytes,
            max_bytes=limits.memory_max_bytes,
            throttle_limit_ms=limit_ms if limit_ms is not None else defaults.throttle_limit,
            freeze_limit_ms=defaults.freeze_limit,
        )

    def _room(self, call: ToolCall) -> tuple[int, int]:
        """What more could be reserved for the call, and what others around it have reserved."""
        views = self._beside_the_queue(call)
        session, host, parent = views
        own = call.limits.memory_bytes
        if parent is not None:
            others = parent.memory_reserved_bytes - own
        elif host.memory_capacity_bytes - host.memory_reserved_bytes < (
            session.budget.calls_memory_bytes - session.memory_reserved_bytes
        ):
            agents = sum(each.budget.agent_memory_bytes for each in self._ledger.sessions.values())
            others = host.memory_reserved_bytes - agents - own
        else:
            others = session.memory_reserved_bytes - own
        return admission.memory_available_bytes(*views), max(0, others)

    # ---- one step

    def _do(self, call: ToolCall, done: Step, act: Act, memory: CallMemory) -> None:
        if act.to_bytes is not None:
            own_bytes = call.limits.memory_bytes
            if not call.parent_id:
                self._make_way(self._ledger.session(call.session), act.to_bytes - own_bytes)
            to_bytes = min(act.to_bytes, own_bytes + self._room(call)[0])
            at_ceiling = to_bytes == call.limits.memory_max_bytes
            limits = dataclasses.replace(
                call.limits,
                memory_bytes=to_bytes,
                memory_high_bytes=None if at_ceiling else to_bytes,
            )
            self._relimit(call, limits)
            self._lives[call.id].climb.high_bytes = limits.memory_high_bytes
        if act.action is Action.FROZEN:
            self._freeze(call, FreezeCause.LADDER)
        elif act.action is Action.THAWED:
            self._thaw(call, FreezeCause.LADDER)
        elif act.action is Action.KILLED:
            # Killing writes itself down, and the report tells the agent.
            self._kill(call, KillReason.THROTTLE_LIMIT, act.reason)
            return
        self._tell(call, done.stand, act, memory)

    def _tell(self, call: ToolCall, stand: Stand, act: Act, memory: CallMemory) -> None:
        """Writes the step down, and tells the agent when it is news."""
        now_ns, limits = self._clock.now_ns(), call.limits
        deadline_in_ms = stand.deadline_ms - monotonic_ms() if stand.deadline_ms is not None else None
        deadline_at_ns = now_ns + deadline_in_ms * 1_000_000 if deadline_in_ms is not None else None
        left_ms = ladder.time_to_limit_ms(
            stand.held_bytes, stand.growth_bytes_per_s, limits.memory_max_bytes
        )
        at = ladder_words.Situation(
            call_id=call.id,
            command=call.intent.command,
            reserved_bytes=limits.memory_bytes,
            max_bytes=limits.memory_max_bytes,
            held_bytes=stand.held_bytes,
            growth_bytes_per_s=stand.growth_bytes_per_s,
            time_to_limit_ms=left_ms,
            deadline_in_ms=deadline_in_ms,
            grantable_bytes=limits.memory_bytes
            + admission.memory_available_bytes(*self._beside_the_queue(call)),
            reason=act.reason,
        )
        words = ladder_words.word(act.action, at)
        event_id = self._decided(
            act.action,
            call.session,
            words.message if words is not None else act.reason,
            call=call,
            deadline_at_ns=deadline_at_ns,
            rung=stand.rung,
            why=act.reason,
            memory_held_bytes=stand.held_bytes,
            memory_current_bytes=memory.current_bytes,
            memory_bytes=limits.memory_bytes,
            memory_high_bytes=limits.memory_high_bytes,
            memory_max_bytes=limits.memory_max_bytes,
            growth_bytes_per_s=stand.growth_bytes_per_s,
            grantable_bytes=at.grantable_bytes,
        )
        told = Ladder(stand.rung, event_id, deadline_at_ns, words.memory_to_ask_bytes if words else None)
        call.ladder = told if stand.rung is not Rung.CALM else None
        if stand.rung in (Rung.THROTTLED, Rung.CLAMPED, Rung.FROZEN):
            self._lives[call.id].climb.was_held_back = True
        if stand.rung is not Rung.CALM:
            self._hold_stderr(call)
        if words is None or not act.is_news:
            if stand.rung is Rung.CALM:
                self.feed.calm(call.session, call.id)
            return
        if act.action is Action.WARNED:
            self.counters.warned(Limit.CALL_MEMORY)
        self._say(
            words.kind,
            call.session,
            words.message,
            call=call,
            level=words.level,
            advice=words.advice,
            limits=limits,
            usage=Usage(memory_current_bytes=memory.current_bytes),
            time_to_limit_ms=left_ms,
            ladder=told,
        )
