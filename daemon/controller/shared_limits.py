"""Limits that several calls share, the session's and the host's: calls are warned before one of them is ended for it.

A session's `calls/` is treated as one call that is to be stopped at its maximum (policy/ladder.py): a mark a little below,
of which the kernel tells, lifted as soon as those whom it concerns have heard (policy/shared_limits.py). It stands in the
same file as the protection's mark between sessions, and the lower of the two counts. It holds nobody for longer than that:
what the kernel makes a thread wait goes by how far it is over the mark when it gets there (policy/ladder.py).
"""

import time
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentcgroup.daemon.controller.core import Climb, World
from agentcgroup.daemon.controller.ladder import monotonic_ms
from agentcgroup.daemon.controller.process_limits import ProcessLimits
from agentcgroup.daemon.controller.timers import Timer, pause_after_ms
from agentcgroup.daemon.model import (
    Growth,
    OnExceed,
    Rung,
    Session,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.policy import ladder, ladder_words, shared_limits
from agentcgroup.daemon.policy.ladder import CACHE_MS, LOOK_MS, PROMPT_MS, Rules, Seen
from agentcgroup.daemon.policy.shared_limits import Addressee, Holder, Told
from agentcgroup.proto.words import Limit

# Where the kernel does not tell how fast calls grow, it follows from two looks so far apart.
_SECOND_LOOK_MS: Final = 40


@dataclass(slots=True)
class _Stance:
    """A session whose calls run, or have: where it stands, and what is written as its mark."""

    climb: Climb = field(default_factory=Climb)
    mark_bytes: int | None = None
    told: Told = field(default_factory=Told)
    # What each call held when it was looked at last, and when.
    readings: dict[str, tuple[int, int]] = field(default_factory=dict)


class SharedLimits(ProcessLimits):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._stances: dict[str, _Stance] = {}
        self._host_told = Told()

    # ---- when to look

    def _begin_ladder(self, call: ToolCall, *, anew: bool = False) -> None:
        super()._begin_ladder(call, anew=anew)
        session = self._ledger.sessions.get(call.session)
        if session is not None and call.session not in self._stances:
            self._stances[call.session] = _Stance()
            self._look_at_session(session)

    def _memory_shifted(self, session: str) -> None:
        super()._memory_shifted(session)
        found, stance = self._ledger.sessions.get(session), self._stances.get(session)
        if found is None:
            self._disarm(Timer.SESSION_LIMIT, session)
            self._stances.pop(session, None)
        elif stance is not None and stance.climb.high_bytes not in (
            None,
            self._session_rules(found).soft_bytes,
        ):
            self._look_at_session(found)

    def memory_mark_crossed(self, session: str) -> None:
        found, stance = self._ledger.sessions.get(session), self._stances.get(session)
        if found is None or stance is None or stance.climb.high_bytes is None:
            return
        is_own = stance.mark_bytes == stance.climb.high_bytes
        wait_ms = stance.climb.listens_at_ms - monotonic_ms()
        if not is_own or wait_ms <= 0:
            self._look_at_session(found, woken=is_own)
            return
        self._host.memory.listen_to_mark(session, False)
        self._arm(Timer.SESSION_LIMIT, session, wait_ms, lambda: self._look_at_session(found, woken=True))

    # ---- one look

    def _look_at_session(self, session: Session, *, woken: bool = False) -> None:
        """`woken`: the kernel said that its mark was reached; when nothing follows, it is not heard for a while."""
        stance = self._stances.get(session.name)
        if stance is None:
            return
        began_s = time.thread_time()
        climb, rules = stance.climb, self._session_rules(session)
        memory = self._host.memory.calls_memory(session.name)
        held_bytes = memory.held_or_current_bytes
        if held_bytes is None or rules.max_bytes is None or rules.soft_bytes is None:
            return
        was_warned = climb.stand.rung is Rung.WARNED
        is_near = was_warned or ladder.is_reached(rules, held_bytes)
        sessions, calls = self._host.memory_growth() if is_near else ({}, {})
        growth = sessions[session.name].rate_bytes_per_s if session.name in sessions else None
        at_ms = monotonic_ms()
        done = ladder.step(rules, climb.stand, Seen(at_ms, held_bytes, growth_bytes_per_s=growth))
        climb.stand = done.stand
        climb.high_bytes = done.high_bytes
        look_in_ms = done.look_in_ms
        if done.stand.rung is Rung.WARNED:
            holders = self._holders(session, stance, calls, at_ms)
            if not was_warned and not calls:
                look_in_ms = _SECOND_LOOK_MS
            left_bytes = max(0, rules.max_bytes - held_bytes)
            left_ms = ladder.time_to_limit_ms(held_bytes, done.stand.growth_bytes_per_s, rules.max_bytes)
            at = ladder_words.Shared("The calls of this session", held_bytes, rules.max_bytes, left_ms)
            slack_bytes = (rules.max_bytes - rules.soft_bytes) // 4
            found = shared_limits.addressees(holders, left_bytes, slack_bytes)
            for one in stance.told.news(found, at_ms):
                self._warn_of_shared(one, at, Limit.SESSION_MEMORY)
        elif was_warned:
            self._is_over(stance.told, at_ms)
            stance.readings.clear()
        self._place_mark(session)
        self._host.memory.listen_to_mark(session.name, True)
        if look_in_ms is None:
            climb.listens_at_ms = at_ms + (PROMPT_MS if done.acts else CACHE_MS if woken else 0)
            self._disarm(Timer.SESSION_LIMIT, session.name)
            return
        climb.listens_at_ms = at_ms + LOOK_MS
        self._arm(
            Timer.SESSION_LIMIT,
            session.name,
            max(look_in_ms, pause_after_ms(began_s)),
            lambda: self._look_at_session(session),
        )

    @staticmethod
    def _session_rules(session: Session) -> Rules:
        return Rules(OnExceed.STOP, 0, session.budget.calls_memory_bytes, 0, 0)

    def _holders(
        self, session: Session, stance: _Stance, rates: Mapping[str, Growth], at_ms: int
    ) -> list[Holder]:
        """The session's running calls."""
        found, readings = [], dict[str, tuple[int, int]]()
        for call in session.running_calls():
            memory = self._host.call_memory(call.id)
            held_bytes = memory.held_or_current_bytes
            if held_bytes is None:
                continue
            climb = self._lives[call.id].climb
            if climb.stand.rung is Rung.CALM and ladder.is_reached(self._rules(call), held_bytes):
                # Its own limit is as near, and is said first.
                self._look(call, climb, woken=True)
            own_left_bytes = None
            if climb.stand.rung is Rung.WARNED and call.limits.memory_max_bytes is not None:
                own_left_bytes = max(0, call.limits.memory_max_bytes - held_bytes)
            before_bytes, before_ms = readings[call.id] = stance.readings.get(call.id, (held_bytes, at_ms))
            growth = None
            if call.id in rates:
                growth = rates[call.id].rate_bytes_per_s
            elif at_ms - before_ms >= PROMPT_MS:
                growth = (held_bytes - before_bytes) * 1000 // (at_ms - before_ms)
                readings[call.id] = held_bytes, at_ms
            found.append(Holder(call.id, held_bytes, growth, own_left_bytes))
        stance.readings = readings
        return found

    # ---- doing

    def _place_mark(self, session: Session) -> None:
        """The lower of this ladder's mark and the protection's."""
        stance = self._stances.get(session.name)
        marks = (session.memory_mark_bytes, stance.climb.high_bytes if stance is not None else None)
        mark_bytes = min((mark for mark in marks if mark is not None), default=None)
        if stance is None:
            self._host.memory.set_mark(session.name, mark_bytes)
        elif mark_bytes != stance.mark_bytes:
            self._host.memory.set_mark(session.name, mark_bytes)
            stance.mark_bytes = mark_bytes

    def _lift_session_marks(self) -> None:
        """Before a stop that calls outlive: nobody would lift them any more."""
        for name, stance in self._stances.items():
            self._disarm(Timer.SESSION_LIMIT, name)
            stance.climb.high_bytes = None
            if (session := self._ledger.sessions.get(name)) is not None:
                self._place_mark(session)

    def _warn_of_host(
        self,
        holders: Collection[Holder],
        room_bytes: int,
        capacity_bytes: int,
        taken: Container[str],
        likely_id: str | None,
    ) -> None:
        """`holders`: the running calls of all sessions when `room_bytes` are little. Those in `taken` know of worse."""
        if not holders:
            self._is_over(self._host_told, monotonic_ms())
            return
        used_bytes = capacity_bytes - room_bytes
        growth = sum(max(0, each.growth_bytes_per_s or 0) for each in holders)
        left_ms = ladder.time_to_limit_ms(used_bytes, growth, capacity_bytes)
        at = ladder_words.Shared("All sessions of this host", used_bytes, capacity_bytes, left_ms)
        found = shared_limits.addressees(holders, max(0, room_bytes), likely_id=likely_id)
        concerned = [each for each in found if each.holder.call_id not in taken]
        for one in self._host_told.news(concerned, monotonic_ms()):
            self._warn_of_shared(one, at, Limit.HOST_MEMORY)

    def _is_over(self, told: Told, at_ms: int) -> None:
        for call_id in told.over(at_ms):
            call = self._ledger.find(call_id)
            # One that is near its own limit has been told of that, too.
            if call is not None and call.ladder is None:
                self.feed.calm(call.session, call_id)

    def _warn_of_shared(self, one: Addressee, at: ladder_words.Shared, limit: Limit) -> None:
        """Writes down and tells that a limit which `one` shares with others is near."""
        call, holder = self._ledger.call(None, one.holder.call_id), one.holder
        words = ladder_words.word_shared(
            at, call.intent.command, holder.held_bytes, holder.growth_bytes_per_s, is_likely=one.is_likely
        )
        self._warn(
            limit,
            call.session,
            words.message,
            words.level,
            words.advice,
            {
                "memory_held_bytes": holder.held_bytes,
                "growth_bytes_per_s": holder.growth_bytes_per_s,
                "shared_held_bytes": at.held_bytes,
                "shared_limit_bytes": at.limit_bytes,
                "time_to_limit_ms": at.time_to_limit_ms,
            },
            call=call,
            usage=Usage(memory_current_bytes=holder.held_bytes),
            time_to_limit_ms=at.time_to_limit_ms,
            rung=Rung.WARNED,
        )
