"""What lives now: sessions, calls, tickets, and what they have reserved. Only the controller writes here."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.ids import random_hex
from agentcgroup.daemon.model import CallLimits, CallState, Session, ToolCall

# Ended calls that can still be asked for by id; older ones are in the history.
RECENT_CALLS: Final = 2048
_CALL_ID: Final = re.compile("c-[0-9a-f]{10}")


def is_call_id(name: str) -> bool:
    """Whether a ledger could have made it, as `Ledger.new_call_id` does."""
    return _CALL_ID.fullmatch(name) is not None


class Ledger:
    """Live sessions and calls, found by name and id, with running sums of their reservations."""

    def __init__(
        self,
        catch_up: Callable[[str], bool] = lambda call_id: False,
        on_promise: Callable[[Session], None] = lambda session: None,
    ) -> None:
        """`catch_up` is asked about an id that is not known: whether it is now. `on_promise` hears of every session whose
        calls have reserved another sum.
        """
        self._catch_up: Final = catch_up
        self._on_promise: Final = on_promise
        self._sessions: dict[str, Session] = {}
        self._calls: dict[str, ToolCall] = {}
        self._recent: OrderedDict[str, ToolCall] = OrderedDict()
        self._tickets: dict[str, str] = {}
        self._queued: set[str] = set()
        self.memory_reserved_bytes = 0
        # Called when somebody may have given room back; must not change the ledger.
        self.on_room: Callable[[], None] = lambda: None

    @property
    def sessions(self) -> dict[str, Session]:
        return self._sessions

    @property
    def calls_live(self) -> int:
        """Calls that hold or may hold resources: not those that wait for room."""
        return len(self._calls) - len(self._queued)

    def session(self, name: str) -> Session:
        try:
            return self._sessions[name]
        except KeyError:
            raise RequestError(
                Kind.NOT_FOUND,
                f"there is no session {name!r}",
                "`agentcg session list` shows what there is",
                "name",
            ) from None

    def add_session(self, session: Session) -> None:
        self._sessions[session.name] = session
        self.memory_reserved_bytes += session.budget.agent_memory_bytes
        self._on_promise(session)

    def remove_session(self, session: Session) -> None:
        del self._sessions[session.name]
        self.memory_reserved_bytes -= session.budget.agent_memory_bytes
        self.on_room()

    def rebudget(self, session: Session, agent_memory_bytes: int) -> None:
        """Account for a changed agent reserve; the caller sets the budget itself."""
        self.memory_reserved_bytes += agent_memory_bytes - session.budget.agent_memory_bytes
        self.on_room()

    def call(self, session: str | None, call_id: str) -> ToolCall:
        """The live or recently ended call; another session's call is not found, like one that never was.

        So is that of an earlier session of the same name, which may have been another agent's.
        """
        call = self._calls.get(call_id) or self._recent.get(call_id)
        if call is None and self._catch_up(call_id):
            call = self._calls.get(call_id)
        if call is None or (session is not None and not self._is_of(call, session)):
            raise RequestError(
                Kind.NOT_FOUND,
                f"there is no call {call_id[:64]!r}" + (" in this session" if session is not None else ""),
                "ended calls stay in `agentcg history`",
                "call_id",
            )
        return call

    def _is_of(self, call: ToolCall, session: str) -> bool:
        found = self._sessions.get(session)
        return call.session == session and (found is None or call.declared_at_ns >= found.created_at_ns)

    def find(self, call_id: str) -> ToolCall | None:
        """The live call with this id, of whatever session."""
        return self._calls.get(call_id)

    def live_call(self, session: str | None, call_id: str) -> ToolCall:
        """As `call`, but an ended one is an error of state."""
        call = self.call(session, call_id)
        if not call.is_live:
            raise RequestError(
                Kind.STATE,
                f"call {call.id} has ended",
                f"`agentcg call show {call.id}` has its report",
                "call_id",
            )
        return call

    def is_live(self, call_id: str) -> bool:
        """Whether the call has not ended yet."""
        return call_id in self._calls

    def calls(self, session: str | None) -> Iterator[ToolCall]:
        """Live calls, parents before their children (a parent is always older)."""
        yield from self._calls.values() if session is None else self.session(session).calls.values()

    def descendants(self, call: ToolCall) -> list[ToolCall]:
        """Live calls nested in `call`, outermost first."""
        inside = {call.id}
        found = []
        for other in self._sessions[call.session].calls.values():
            if other.parent_id in inside:
                inside.add(other.id)
                found.append(other)
        return found

    def lineage(self, call: ToolCall) -> tuple[str, ...]:
        """Ids of the call and of the calls around it, innermost first."""
        ids = [call.id]
        while call.parent_id and call.parent_id in self._calls:
            call = self._calls[call.parent_id]
            ids.append(call.id)
        return tuple(ids)

    def new_call_id(self) -> str:
        while True:
            call_id = f"c-{random_hex(5)}"
            if call_id not in self._calls and call_id not in self._recent:
                return call_id

    def add_call(self, call: ToolCall) -> None:
        """A call in state QUEUED has nothing reserved until it is granted."""
        self._calls[call.id] = call
        session = self._sessions[call.session]
        session.calls[call.id] = call
        if call.state is CallState.QUEUED:
            self._queued.add(call.id)
            session.calls_queued += 1
        else:
            self._reserve(call, call.limits.memory_bytes)

    def grant(self, call: ToolCall, limits: CallLimits) -> None:
        """A queued call gets `limits` and becomes a declared one."""
        self._unqueue(call)
        call.state, call.limits = CallState.DECLARED, limits
        self._reserve(call, limits.memory_bytes)

    def withdraw(self, call: ToolCall) -> None:
        """Forgets a queued call that was refused before anybody heard of it."""
        self._unqueue(call)
        del self._calls[call.id]
        del self._sessions[call.session].calls[call.id]

    def _unqueue(self, call: ToolCall) -> None:
        self._queued.discard(call.id)
        self._sessions[call.session].calls_queued -= 1

    def relimit(self, call: ToolCall, limits: CallLimits) -> None:
        self._reserve(call, limits.memory_bytes - call.limits.memory_bytes)
        call.limits = limits
        self.on_room()

    def remove_call(self, call: ToolCall) -> None:
        """Moves an ended call from the live ones to the recent ones and gives back what it had reserved."""
        if call.id in self._queued:
            self._unqueue(call)
        else:
            self._reserve(call, -call.limits.memory_bytes)
        del self._calls[call.id]
        session = self._sessions[call.session]
        del session.calls[call.id]
        session.calls_ended += 1
        if call.ticket:
            self._tickets.pop(call.ticket, None)
        self._recent[call.id] = call
        if len(self._recent) > RECENT_CALLS:
            self._recent.popitem(last=False)
        self.on_room()

    def _reserve(self, call: ToolCall, memory_bytes: int) -> None:
        # A nested call lives inside what its parent has reserved already.
        if call.parent_id:
            parent = self._calls.get(call.parent_id)
            if parent is not None:
                parent.children_reserved_bytes += memory_bytes
        else:
            session = self._sessions[call.session]
            session.memory_reserved_bytes += memory_bytes
            self.memory_reserved_bytes += memory_bytes
            if memory_bytes:
                self._on_promise(session)

    def new_ticket(self, call: ToolCall) -> str:
        if call.ticket:
            self._tickets.pop(call.ticket, None)
        call.ticket = random_hex(24)
        self._tickets[call.ticket] = call.id
        return call.ticket

    def redeem(self, session: str, ticket: str) -> ToolCall:
        """The call the ticket stands for; the ticket is spent. Another session's ticket is not known here."""
        call = self._calls.get(self._tickets.get(ticket, ""))
        if call is None or call.session != session:
            raise RequestError(
                Kind.NOT_FOUND,
                "the ticket is not known: it was used, has lapsed, or is another session's",
                "begin the call again and use the new ticket at once",
                "ticket",
            )
        del self._tickets[ticket]
        call.ticket = ""
        return call
