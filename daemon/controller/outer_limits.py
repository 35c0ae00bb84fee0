"""Shortages that nobody acts on are told all the same: of an agent runtime's share, and of the host without protection.

A runtime is looked at when a call of its session has ended, at most every ten seconds, and when its session meets its limit;
the host, where `protection.sessions` is off, when all sessions together meet theirs or wait for memory, then once a second
until it is over. Nothing else is asked or read.
"""

import logging
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.idle import IdleReclaim
from agentcgroup.daemon.controller.ladder import monotonic_ms
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import Action, Actor, Session, ToolCall, Usage
from agentcgroup.daemon.policy import agent_share
from agentcgroup.daemon.policy.agent_share import Stage
from agentcgroup.daemon.policy.ladder import QUIET_MS
from agentcgroup.daemon.policy.shared_limits import Holder
from agentcgroup.proto.quantity import format_size
from agentcgroup.proto.words import Limit

log = logging.getLogger("agentcgroup.controller")

_LOOK_MS: Final = 1000


@dataclass(slots=True)
class _Runtime:
    """An agent runtime: when it was looked at last, and what its agent was told."""

    looked_at_ms: int | None = None
    told: Stage = Stage.CALM
    told_at_ms: int = 0


class OuterLimits(IdleReclaim):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._runtimes: dict[str, _Runtime] = {}
        self._watches_host = False
        self._host_is_short = False

    # ---- when to look

    def _memory_shifted(self, session: str) -> None:
        super()._memory_shifted(session)
        found = self._ledger.sessions.get(session)
        if found is None:
            self._disarm(Timer.AGENT_MEMORY, session)
            self._runtimes.pop(session, None)
        elif session not in self._runtimes:
            self._runtimes[session] = _Runtime()
            self._host.memory.await_limit(session)
        wanted = self.config.protection.sessions == "off" and bool(self._ledger.sessions)
        if wanted is not self._watches_host:
            self._watches_host = wanted
            self._host.memory.watch_host_stall(wanted)
            if wanted:
                self._host.memory.await_limit("")

    def _call_gone(self, call: ToolCall) -> None:
        super()._call_gone(call)
        runtime, session = self._runtimes.get(call.session), self._ledger.sessions.get(call.session)
        if runtime is None or session is None:
            return
        if runtime.looked_at_ms is None or monotonic_ms() - runtime.looked_at_ms >= QUIET_MS:
            self._look_at_runtime(session, runtime)

    def memory_limit_met(self, session: str) -> None:
        if not session:
            if self._watches_host and not self._is_armed(Timer.HOST_MEMORY, ""):
                self._look_at_host()
            return
        found, runtime = self._ledger.sessions.get(session), self._runtimes.get(session)
        if found is None or runtime is None:
            return
        self._look_at_runtime(found, runtime)
        again = self._host.memory.await_limit
        self._arm(Timer.AGENT_MEMORY, session, _LOOK_MS, lambda: again(session))

    # ---- an agent runtime

    def _look_at_runtime(self, session: Session, runtime: _Runtime) -> None:
        now_ms = runtime.looked_at_ms = monotonic_ms()
        held_bytes = self._host.memory.agent_memory(session.name).held_or_current_bytes
        share_bytes = session.budget.agent_memory_bytes
        if held_bytes is None or not share_bytes:
            return
        calls_bytes = 0
        if held_bytes > share_bytes:
            calls_bytes = self._host.memory.calls_memory(session.name).held_or_current_bytes or 0
        at = agent_share.Situation(
            session.name, held_bytes, share_bytes, calls_bytes, session.budget.memory_max_bytes
        )
        where = agent_share.stage(at, runtime.told)
        if where > runtime.told:
            runtime.told, runtime.told_at_ms = where, now_ms
            self._tell_of_runtime(at, where)
        elif where is Stage.CALM and now_ms - runtime.told_at_ms >= QUIET_MS:
            runtime.told = where

    def _tell_of_runtime(self, at: agent_share.Situation, where: Stage) -> None:
        level, message, advice = agent_share.word(at, where)
        self._warn(
            Limit.AGENT_MEMORY,
            at.session,
            message,
            level,
            advice,
            {
                "agent_held_bytes": at.held_bytes,
                "agent_memory_bytes": at.share_bytes,
                "calls_held_bytes": at.calls_held_bytes or None,
                "memory_max_bytes": at.session_bytes,
            },
            usage=Usage(memory_current_bytes=at.held_bytes),
        )

    # ---- the host, where nobody is protected

    def _look_at_host(self) -> None:
        memory = self._host.memory.host() if self._watches_host else None
        if memory is None:
            self._host_is_short = False
            return
        self._host.memory.await_limit("")
        self._arm(Timer.HOST_MEMORY, "", _LOOK_MS, self._look_at_host_again)
        is_short = self._is_nearly_used_up(memory.room_bytes, memory.capacity_bytes)
        holders = self._all_holders() if is_short else []
        self._warn_of_host(holders, memory.room_bytes, memory.capacity_bytes, (), None)
        if is_short and not self._host_is_short:
            self._tell_operator(memory.room_bytes, memory.capacity_bytes)
        self._host_is_short = is_short

    def _look_at_host_again(self) -> None:
        """Until it is over; then the kernel tells."""
        if self._host_is_short:
            self._look_at_host()

    def _all_holders(self) -> list[Holder]:
        """The running calls of all sessions."""
        _, growth = self._host.memory_growth()
        found = []
        for session in self._ledger.sessions.values():
            for call in session.running_calls():
                held_bytes = self._host.call_memory(call.id).held_or_current_bytes
                if held_bytes is not None:
                    rate = growth[call.id].rate_bytes_per_s if call.id in growth else None
                    found.append(Holder(call.id, held_bytes, rate))
        return found

    def _tell_operator(self, room_bytes: int, capacity_bytes: int) -> None:
        words = (
            f"The host has {format_size(max(0, room_bytes))} left of the {format_size(capacity_bytes)} that all sessions may"
            " use together, and protection.sessions is off: when it is used up, the kernel ends the largest process."
        )
        next_step = 'End a call (`agentcg call kill ID`), or set protection.sessions to "auto" and restart agentcgroupd.'
        self._decided(
            Action.WARNED,
            "",
            words,
            actor=Actor.DAEMON,
            room_bytes=room_bytes,
            capacity_bytes=capacity_bytes,
        )
        log.warning("%s Next step: %s", words, next_step)
