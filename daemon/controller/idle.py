"""Idle reclaim: a session without running calls gives back what its agent runtime does not touch."""

from dataclasses import dataclass, replace
from typing import Final

from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.protection import Protection
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import SessionState
from agentcgroup.daemon.policy import idle
from agentcgroup.proto.quantity import format_size
from agentcgroup.proto.words import Action

# A runtime that keeps working is left alone after so many looks, until its next call has ended.
_LOOKS_IN_VAIN: Final = 6


@dataclass(slots=True)
class _Waiting:
    """A session whose runtime may be waiting: the last look, None before the first, and what has come of it."""

    look: idle.Look | None = None
    in_vain: int = 0
    freed_bytes: int = 0


class IdleReclaim(Protection):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._waiting: dict[str, _Waiting] = {}

    def _memory_shifted(self, session: str) -> None:
        super()._memory_shifted(session)
        if not self._may_wait(session):
            self._stop_waiting(session, "it has calls again")
        elif session not in self._waiting:
            # Most have another call before anything has to be read.
            self._waiting[session] = _Waiting()
            self._look_in(session, self.config.protection.idle_after // 2)

    def _may_wait(self, session: str) -> bool:
        """Whether the session has nothing but its agent runtime, and somebody else may need what that does not."""
        if self.config.protection.idle_reclaim == "off" or not self._is_oversold():
            return False
        found = self._ledger.sessions.get(session)
        return found is not None and not found.calls and found.state is SessionState.OPEN

    def _look_in(self, session: str, delay_ms: int) -> None:
        self._arm(Timer.IDLE, session, delay_ms, lambda: self._spawn(self._consider(session)))

    async def _consider(self, session: str) -> None:
        waiting, activity = self._waiting.get(session), self._host.memory.agent_activity(session)
        if waiting is None or activity is None or not self._may_wait(session):
            self._stop_waiting(session, "it is not to be waited for any more")
            return
        now = idle.Look(self._clock.now_ns(), activity)
        if waiting.look is None:
            waiting.look = now
            self._look_in(session, self.config.protection.idle_after // 2)
            return
        ruling = idle.decide(waiting.look, now)
        if ruling.bite_bytes:
            freed = await self._host.memory.reclaim_agent(session, ruling.bite_bytes)
            now = replace(now, asked_bytes=ruling.bite_bytes, freed_bytes=freed)
            waiting.freed_bytes += freed or 0
            self.counters.idle_reclaimed_bytes += freed or 0
        else:
            waiting.in_vain += 1
        if not ruling.again or waiting.in_vain >= _LOOKS_IN_VAIN:
            self._stop_waiting(session, ruling.reason)
        elif self._waiting.get(session) is waiting:
            waiting.look = now
            pause_ms = idle.BITE_INTERVAL_MS if ruling.bite_bytes else self.config.protection.idle_after
            self._look_in(session, pause_ms)

    def _stop_waiting(self, session: str, why: str) -> None:
        self._disarm(Timer.IDLE, session)
        waiting = self._waiting.pop(session, None)
        if waiting is not None and waiting.freed_bytes:
            self._decided(
                Action.RECLAIMED,
                session,
                f"Gave back {format_size(waiting.freed_bytes)} that the waiting agent did not use, until {why}.",
                freed_bytes=waiting.freed_bytes,
            )
