"""Standing grants: calls that are ruled on and prepared before anybody asks, because somebody asked the same before.

A standing grant has a cgroup with its limits, and is offered by the door's thread to the next caller with the same intent
(see daemon/door). It is no call: no list, figure or history knows it. It has reserved its memory only as long as nobody
else needs it: whatever else is ruled on is ruled on as if it were not there, and it gives way before that is granted.
Giving way is decided by the thread: an offer that it has let go already has become a call, and counts as one.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller.beginning import Beginnings
from agentcgroup.daemon.controller.core import Life, Prepared
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import (
    Action,
    Answer,
    CallState,
    Intent,
    KillReason,
    Session,
    SessionState,
    ToolCall,
)
from agentcgroup.daemon.policy import admission, grounds
from agentcgroup.daemon.policy.intent import bounded_command
from agentcgroup.daemon.ports import Leaf, Process

log = logging.getLogger("agentcgroup.controller")

# Of one session at a time: launches may come faster than Python prepares the next.
MOST_STANDING: Final = 3

# Offers a prepared call, whose cgroup.procs it takes over, also when it raises OSError. Gives what withdraws the offer.
Offer = Callable[[ToolCall, Answer, int], Callable[[], bool]]


class Standing(Beginnings):
    # ---- preparing

    def agent_leaf(self, session: str) -> Leaf | None:
        """Where the session's callers live whose calls may be prepared; None where none are."""
        return self._host.agent_leaf(session) if self.config.call.standing_lifetime else None

    def prepare(self, session: str, intent: Intent, offer: Offer) -> bool:
        """Makes a standing grant of `intent`, which was granted to the session's agent before; False: not now.

        Nothing gives way to it, and nothing is left of it when it cannot be made.
        """
        owner = self._ledger.sessions.get(session)
        if owner is None or owner.state is not SessionState.OPEN or not self.config.call.standing_lifetime:
            return False
        if len(self._standing_in(owner)) >= MOST_STANDING:
            return False
        views = self._session_view(owner), self._host_view()
        ruling = admission.admit(intent, *views, None, self._defaults)
        if ruling.limits is None or not self._fits(owner, ruling.limits.memory_bytes):
            return False
        call = ToolCall(
            id=self._ledger.new_call_id(),
            session=session,
            parent_id="",
            intent=intent,
            limits=ruling.limits,
            decision=ruling.decision,
            declared_at_ns=self._clock.now_ns(),
        )
        answer = self._answer(ruling, call)
        try:
            call.cgroup = self._host.create_call(call)
            # Its taker may be in it before anything else is heard of that.
            self._remember_call(call)
            withdraw = offer(call, answer, self._host.open_procs(call.id))
        except (RequestError, OSError) as error:
            log.warning("session %s: no call can be prepared: %s", session, error)
            self._host.remove_call(call.id)
            return False
        prepared = Prepared(call, answer, grounds.of_ruling(intent, ruling.limits, *views, None), withdraw)
        self._standing[call.id] = prepared
        self._arm(
            Timer.STANDING, call.id, self.config.call.standing_lifetime, lambda: self._withdraw(prepared)
        )
        return True

    def _standing_in(self, session: Session) -> list[Prepared]:
        return [prepared for prepared in self._standing.values() if prepared.call.session == session.name]

    def watch_room(self, session: str, watcher: Callable[[], None] | None) -> None:
        """`watcher` is called after each end of a call of the session's: what had no room may have it now. None: no more."""
        if watcher is None:
            self._room_watchers.pop(session, None)
        else:
            self._room_watchers[session] = watcher

    def _call_gone(self, call: ToolCall) -> None:
        super()._call_gone(call)
        watcher = self._room_watchers.get(call.session)
        if watcher is not None:
            asyncio.get_running_loop().call_soon(watcher)

    # ---- giving way

    def _fits(self, session: Session, memory_bytes: int) -> bool:
        """Whether one more call with `memory_bytes` reserved has room beside all that stands."""
        own = self._standing_in(session)
        return (
            session.memory_reserved_bytes + _memory_bytes(own) + memory_bytes
            <= session.budget.calls_memory_bytes
            and self._ledger.memory_reserved_bytes + _memory_bytes(self._standing.values()) + memory_bytes
            <= self._host.memory_capacity_bytes
            and len(session.calls) + len(own) < session.budget.calls_max
            and self._ledger.calls_live + len(self._standing) < self.config.host.calls_max
        )

    def _give_way(self, session: Session, memory_bytes: int) -> bool:
        """Withdraws what stands until one more call has room, the session's own first; whether anything was withdrawn."""
        own_first = sorted(
            self._standing.values(), key=lambda prepared: prepared.call.session != session.name
        )
        gave_way = False
        for prepared in own_first:
            if self._fits(session, memory_bytes):
                break
            self._withdraw(prepared)
            gave_way = True
        return gave_way

    def _make_way(self, session: Session, memory_bytes: int) -> None:
        self._give_way(session, memory_bytes)

    def withdraw_standing(self, session: str | None = None) -> None:
        """Withdraws what stands in `session`, or everywhere: what it was ruled by changes."""
        for prepared in list(self._standing.values()):
            if session in (None, prepared.call.session):
                self._withdraw(prepared)

    def withdraw_prepared(self, call_id: str) -> None:
        """Withdraws one; one that is gone is no error."""
        prepared = self._standing.get(call_id)
        if prepared is not None:
            self._withdraw(prepared)

    def reconfigure(self, config: Config, changes: str) -> None:
        self.withdraw_standing()
        super().reconfigure(config, changes)

    def _withdraw(self, prepared: Prepared) -> None:
        if prepared.withdraw():
            self._dismiss(prepared)
            self._host.remove_call(prepared.call.id)
        else:
            self._taken(prepared)

    def _dismiss(self, prepared: Prepared) -> None:
        self._disarm(Timer.STANDING, prepared.call.id)
        del self._standing[prepared.call.id]

    # ---- taken

    def _taken(self, prepared: Prepared) -> None:
        """Somebody has it: from now on it is a call, and runs; which process that is comes with `begin_prepared`."""
        self._dismiss(prepared)
        call, answer = prepared.call, prepared.answer
        self.counters.answer(answer.decision, answer.reason)
        self._ledger.add_call(call)
        self._decided(
            Action(answer.decision), call.session, answer.message, call=call, because=prepared.because
        )
        call.started_at_ns, call.state = self._clock.now_ns(), CallState.RUNNING
        self._lives[call.id] = Life()

    def _catch_up(self, call_id: str) -> bool:
        prepared = self._standing.get(call_id)
        if prepared is not None:
            # Only who has been given it knows its name; `withdraw` says whether that is so.
            self._withdraw(prepared)
        return prepared is not None

    def begin_prepared(
        self, call_id: str, process: Process, command: Sequence[str], started_at_ns: int
    ) -> None:
        """The door's thread has placed and answered `process`. Takes over its pidfd."""
        prepared = self._standing.get(call_id)
        if prepared is not None:
            self._taken(prepared)
        if call_id not in self._lives:
            self._host.forget_process(process.pidfd)
            return
        call = self._ledger.call(None, call_id)
        call.intent = dataclasses.replace(call.intent, command=bounded_command(command))
        if not call.is_live:
            # Ended by somebody between its beginning and the news of it: how it ended is still of interest.
            call.pid = process.pid
            self._follow(call, process)
            return
        self._reserve_learned(call)
        self._run(call, process, started_at_ns)
        if self._ledger.session(call.session).state is SessionState.CLOSING:
            self._kill(call, KillReason.SESSION_END)

    def prepared_broken(self, call_id: str) -> None:
        """The door's thread took the offer and could not place its caller: nothing ran."""
        prepared = self._standing.get(call_id)
        if prepared is not None:
            self._dismiss(prepared)
        elif (life := self._lives.pop(call_id, None)) is not None:
            call = self._ledger.call(None, call_id)
            call.started_at_ns = None
            self._close_unbegun(call)
            life.ended.set()
        self._host.remove_call(call_id)


def _memory_bytes(standing: Iterable[Prepared]) -> int:
    return sum(prepared.call.limits.memory_bytes for prepared in standing)
