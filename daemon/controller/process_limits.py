"""Calls that are refused a new process, at a pids.max of their own or one that they share, hear of it while they run.

The kernel tells through pids.events of the session, which costs a launch nothing. What it tells too often to be news is not
listened to for a moment, as with memory (ladder.py).
"""

from typing import Final

from agentcgroup.daemon.controller.core import Refused, World
from agentcgroup.daemon.controller.ladder import Ladders, monotonic_ms
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import (
    Actor,
    Level,
    Session,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.policy import process_words
from agentcgroup.daemon.policy.ladder import QUIET_MS
from agentcgroup.proto.words import Limit

_PAUSE_MS: Final = 1000


class ProcessLimits(Ladders):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Of each session whose calls run, or have: refusals at its own limit.
        self._session_refused: dict[str, Refused] = {}

    # ---- when to look

    def _begin_ladder(self, call: ToolCall, *, anew: bool = False) -> None:
        super()._begin_ladder(call, anew=anew)
        if call.session in self._ledger.sessions and call.session not in self._session_refused:
            self._session_refused[call.session] = Refused()
            self._host.listen_to_refusals(call.session, True)

    def _memory_shifted(self, session: str) -> None:
        """Calls, budgets or sessions came, went or changed."""
        if session not in self._ledger.sessions:
            self._disarm(Timer.REFUSALS, session)
            self._session_refused.pop(session, None)

    def processes_refused(self, session: str) -> None:
        if session in self._session_refused:
            self._host.listen_to_refusals(session, False)
            self._look_at_refusals(session)
            self._arm(Timer.REFUSALS, session, _PAUSE_MS, lambda: self._listen_again(session))

    def _listen_again(self, session: str) -> None:
        self._host.listen_to_refusals(session, True)
        self._look_at_refusals(session)

    def _hear_refusals(self, call: ToolCall) -> None:
        if call.session in self._session_refused:
            self._look_at_refusals(call.session)

    # ---- one look

    def _look_at_refusals(self, name: str) -> None:
        session = self._ledger.sessions.get(name)
        if session is None:
            return
        refusals, at_session = self._host.refusals(name), self._session_refused[name]
        more_at_session = refusals.session - at_session.own
        at_session.own = refusals.session
        for call in list(session.calls.values()):
            life = self._lives.get(call.id)
            if life is None:
                continue
            count = refusals.calls.get(call.id, 0)
            more, life.refused.own = count - life.refused.own, max(count, life.refused.own)
            if more > 0:
                for nested in self._ledger.descendants(call):
                    self._blame(nested, more, call.limits.pids_max, f"of the call around it, {call.id}")
                if call.is_live and self._is_news(life.refused):
                    self._tell_refused(call, session)
            if more_at_session > 0:
                self._blame(call, more_at_session, session.budget.pids_max, "of the whole session")
        if more_at_session > 0 and self._is_news(at_session):
            self._tell_session_refused(session)

    def _blame(self, call: ToolCall, more: int, pids_max: int | None, whose: str) -> None:
        """A limit that the call shares was met while it ran: whom it was refused the kernel does not say."""
        life = self._lives.get(call.id)
        if life is None:
            return
        refused = life.refused
        refused.around += more
        refused.around_pids_max, refused.around_whose = pids_max, whose
        if call.is_live:
            self._hold_stderr(call)

    @staticmethod
    def _is_news(refused: Refused) -> bool:
        now_ms = monotonic_ms()
        if refused.told_at_ms is not None and now_ms - refused.told_at_ms < QUIET_MS:
            return False
        refused.told_at_ms = now_ms
        return True

    # ---- saying

    def _most_pids(self, call: ToolCall) -> int | None:
        """What the call could be allowed at most."""
        parent = self._ledger.call(None, call.parent_id).limits.pids_max if call.parent_id else None
        budget = self._ledger.session(call.session).budget.pids_max
        return min((bound for bound in (parent, budget) if bound is not None), default=None)

    def _tell_refused(self, call: ToolCall, session: Session) -> None:
        count, pids_max = self._lives[call.id].refused.own, call.limits.pids_max
        message, advice = process_words.word_call(call.id, count, pids_max, self._most_pids(call))
        self._warn(
            Limit.CALL_PROCESSES,
            session.name,
            message,
            Level.CRITICAL,
            advice,
            {"pids_max_events": count, "pids_max": pids_max},
            call=call,
            actor=Actor.KERNEL,
            usage=Usage(pids_max_events=count),
        )

    def _tell_session_refused(self, session: Session) -> None:
        count, pids_max = self._session_refused[session.name].own, session.budget.pids_max
        held = {
            call.id: self._host.call_usage(call.id).pids_current or 0
            for call in session.calls.values()
            if not call.parent_id and call.id in self._lives
        }
        biggest = max(held.items(), key=lambda each: each[1], default=None)
        message, advice = process_words.word_session(
            count, pids_max, biggest if biggest is not None and biggest[1] else None
        )
        self._warn(
            Limit.SESSION_PROCESSES,
            session.name,
            message,
            Level.CRITICAL,
            advice,
            {"pids_max_events": count, "pids_max": pids_max},
            actor=Actor.KERNEL,
            usage=Usage(pids_max_events=count),
        )
