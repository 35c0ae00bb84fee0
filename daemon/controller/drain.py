"""Emptying a host: nothing new begins, what runs may finish, and after a deadline it is killed. It can be taken back."""

from typing import Final

from agentcgroup.daemon.controller.sessions import Sessions
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import (
    Action,
    Actor,
    CallState,
    Drain,
    FeedbackKind,
    KillReason,
    Level,
    SessionState,
)
from agentcgroup.daemon.policy import pauses

# The one timer of its kind; its key is no call's.
_NOT_BEGUN: Final = (CallState.DECLARED, CallState.QUEUED)


class Draining(Sessions):
    def drain(self, reason: str, deadline_ms: int | None) -> int:
        """Lets no new call and no new session begin; how many calls still run.

        `deadline_ms` from now what runs is killed; None: it may take its time. Asking again replaces reason and deadline.
        """
        now_ns = self._clock.now_ns()
        self._disarm(Timer.DRAIN, "")
        until_ns = None if deadline_ms is None else now_ns + deadline_ms * 1_000_000
        began_ns = self._drain.began_at_ns if self._drain else now_ns
        self._drain = Drain(reason, began_ns, until_ns)
        self.withdraw_standing()
        for call in [each for each in self._ledger.calls(None) if each.state in _NOT_BEGUN]:
            self._close_unbegun(call)
        if deadline_ms is not None:
            self._arm(Timer.DRAIN, "", deadline_ms, self._drain_is_over)
        why = f": {reason}" if reason else ""
        live = self._ledger.calls_live
        self._decided(
            Action.DRAINED,
            "",
            f"The operator is emptying this host{why}.",
            actor=Actor.OPERATOR,
            deadline_at_ns=until_ns,
            calls_live=live,
        )
        message, advice = pauses.drained(self._drain, now_ns)
        for session in self.sessions():
            self._say(
                FeedbackKind.SESSION,
                session.name,
                message,
                level=Level.CRITICAL,
                advice=advice,
            )
        return live

    def _drain_is_over(self) -> None:
        note = "the host is being emptied" + (
            f": {self._drain.reason}" if self._drain and self._drain.reason else ""
        )
        for session in self.sessions():
            if session.state is not SessionState.CLOSING:
                self._spawn(self._kill_calls(session.name, note))

    async def _kill_calls(self, session: str, note: str) -> None:
        await self._end_calls(self._ledger.session(session), KillReason.OPERATOR, note)

    def resume(self) -> bool:
        """Lets calls and sessions begin again. False: the host was not being drained."""
        self._disarm(Timer.DRAIN, "")
        if self._drain is None:
            return False
        self._drain = None
        self._decided(Action.RESUMED, "", "The host takes new calls again.", actor=Actor.OPERATOR)
        for session in self.sessions():
            self._say(
                FeedbackKind.SESSION,
                session.name,
                "The host takes new calls again.",
                level=Level.AMPLE,
            )
        return True
