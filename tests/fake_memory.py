"""A small model of memory for FakeHost: calls that want memory, a limit, marks that slow, and an OOM killer."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentcgroup.daemon.model import AgentActivity, CallMemory, HostMemory, SessionMemory

if TYPE_CHECKING:
    from tests.fakes import FakeHost


@dataclass(slots=True)
class FakeUse:
    """What a call uses, where it wants to get, and how fast it can."""

    bytes: int = 0
    wanted_bytes: int = 0
    rate_bytes_per_s: int = 0


@dataclass
class FakeMemory:
    """`capacity_bytes` None: no memory controller. `victims` are calls that the kernel would have killed."""

    host_: "FakeHost"
    capacity_bytes: int | None = None
    uses: dict[str, FakeUse] = field(default_factory=dict)
    agents: dict[str, int] = field(default_factory=dict)
    agent_cpu_us: dict[str, int] = field(default_factory=dict)
    stalls_us: dict[str, int] = field(default_factory=dict)
    marks: dict[str, int | None] = field(default_factory=dict)
    lows: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    watched: set[str] = field(default_factory=set)
    # Sessions whose marks nobody listens to at present.
    deaf: set[str] = field(default_factory=set)
    victims: list[str] = field(default_factory=list)
    # Whose next meeting of a limit is told, and whether stall of all sessions is.
    awaited: set[str] = field(default_factory=set)
    is_stall_watched: bool = False
    reads: int = 0

    # ---- the port

    def host(self) -> HostMemory | None:
        self.reads += 1
        if self.capacity_bytes is None:
            return None
        return HostMemory(self.capacity_bytes, self.capacity_bytes - self.used_bytes())

    def session(self, name: str) -> SessionMemory | None:
        if name not in self.host_.sessions:
            return None
        calls = sum(self.uses[each].bytes for each in self._calls_of(name) if each in self.uses)
        return SessionMemory(self.agents.get(name, 0), calls)

    def stall_us(self, session: str) -> int | None:
        return self.stalls_us.get(session, 0)

    def call_bytes(self, call_id: str) -> int | None:
        if call_id not in self.host_.calls:
            return None
        return self.uses[call_id].bytes if call_id in self.uses else 0

    def calls_memory(self, session: str) -> CallMemory:
        held = [self.host_.call_memory(each).held_bytes for each in self._calls_of(session)]
        known = sum(each for each in held if each is not None)
        return CallMemory(known, known)

    def agent_memory(self, session: str) -> CallMemory:
        self.reads += 1
        if session not in self.agents:
            return CallMemory()
        return CallMemory(self.agents[session], self.agents[session])

    def await_limit(self, session: str) -> None:
        self.awaited.add(session)

    def watch_host_stall(self, on: bool) -> None:
        self.is_stall_watched = on

    def meet_limit(self, session: str) -> None:
        """The session, or "" all together, meet their limit; who awaits it is told, once."""
        if session in self.awaited:
            self.awaited.discard(session)
            assert self.host_.listener is not None
            self.host_.listener.memory_limit_met(session)

    def set_mark(self, session: str, mark_bytes: int | None) -> None:
        self.marks[session] = mark_bytes

    def listen_to_mark(self, session: str, listens: bool) -> None:
        (self.deaf.discard if listens else self.deaf.add)(session)

    def protect_calls(self, session: str, promises: tuple[tuple[str, int], ...]) -> None:
        self.lows[session] = promises

    def watch_stall(self, session: str, on: bool) -> None:
        (self.watched.add if on else self.watched.discard)(session)

    def agent_activity(self, session: str) -> AgentActivity | None:
        if session not in self.host_.sessions:
            return None
        return AgentActivity(
            self.agent_cpu_us.get(session, 0), self.stalls_us.get(session, 0), self.agents.get(session, 0)
        )

    async def reclaim_agent(self, session: str, amount_bytes: int) -> int | None:
        freed = min(amount_bytes, self.agents.get(session, 0))
        self.agents[session] = self.agents.get(session, 0) - freed
        return freed

    # ---- the world

    def _calls_of(self, session: str) -> list[str]:
        return [call_id for call_id, each in self.host_.calls.items() if each.call.session == session]

    def used_bytes(self) -> int:
        calls = sum(use.bytes for call_id, use in self.uses.items() if call_id in self.host_.calls)
        return calls + sum(self.agents.values())

    def advance(self, ms: int) -> None:
        """Every call that is not frozen goes for what it wants; above its session's mark at half its speed."""
        for call_id, use in self.uses.items():
            call = self.host_.calls.get(call_id)
            if call is None or call.frozen:
                continue
            session = call.call.session
            mark, reading = self.marks.get(session), self.session(session)
            assert reading is not None
            is_above = mark is not None and reading.calls_bytes >= mark
            rate = use.rate_bytes_per_s // (2 if is_above else 1)
            before = use.bytes
            use.bytes = min(use.wanted_bytes, before + rate * ms // 1000)
            if mark is not None and use.bytes > before and reading.calls_bytes + use.bytes - before > mark:
                assert self.host_.listener is not None
                self.host_.listener.memory_mark_crossed(session)
            if self.capacity_bytes is not None and self.used_bytes() > self.capacity_bytes:
                self.victims.append(call_id)
                use.bytes = use.wanted_bytes = 0
