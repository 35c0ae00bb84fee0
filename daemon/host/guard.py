"""The guard between sessions, by name: who has been promised what, and which call is told to grow into it.

What it does is in bpf/memory_guard.bpf.h. Where nobody can be held inside the kernel, or is to be, the breaches are told
all the same, so that cgroup files can do it.
"""

from collections.abc import Mapping
from typing import Final

from agentcgroup.bpf.memory import Breach
from agentcgroup.daemon.host.groups import SessionGroup
from agentcgroup.daemon.host.kernel_events import KernelEvents
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import GuardFigures, MemoryBreach, MemoryGuard, Priority, SchedulerState
from agentcgroup.daemon.ports import HostListener, Location

__all__ = ["SessionGuard"]

# Of what is told to agents and kept, for a call.
_TOLD_EVERY_NS: Final = 30_000_000_000
_TOLD_MAX: Final = 4096


class SessionGuard:
    """Lives on the event loop. `sessions` and `homes` (by cgroup id) are the host's own, and change."""

    def __init__(
        self,
        sessions: Mapping[str, SessionGroup],
        homes: Mapping[int, Location],
        events: KernelEvents | None,
        keeper: SchedulerKeeper,
    ) -> None:
        self._sessions = sessions
        self._homes = homes
        self._keeper = keeper
        self._watch = events.memory if events else None
        self._listener: HostListener | None = None
        self._told_at_ns: dict[int, int] = {}
        if self._watch is not None:
            self._watch.listen(self._breached)

    @property
    def kind(self) -> MemoryGuard:
        if self._watch is None:
            return MemoryGuard.NONE
        # In mode partial it schedules calls only, and nobody else is to be held.
        attached = self._keeper.status.state is SchedulerState.ATTACHED
        return MemoryGuard.HOLD if self._watch.guards and attached else MemoryGuard.TOLD

    def listen(self, listener: HostListener) -> None:
        self._listener = listener

    def promise(self, session: str, priority: Priority, protection_bytes: int) -> None:
        group = self._sessions.get(session)
        # A container shares no limit of ours with the other sessions.
        if self._watch is not None and group is not None and not group.is_adopted:
            self._watch.guard(group.cgroup.id, priority, protection_bytes)

    def figures(self) -> GuardFigures | None:
        return None if self._watch is None else self._watch.figures()

    def _breached(self, breach: Breach) -> None:
        home = self._homes.get(breach.call_id)
        names = {group.cgroup.id: name for name, group in self._sessions.items()}
        for_session = names.get(breach.for_session_id)
        if self._listener is None or home is None or not home.call_id or for_session is None:
            return
        told = MemoryBreach(
            session=home.session,
            call_id=home.call_id,
            for_session=for_session,
            rate_bytes_per_s=breach.rate_bytes_per_s,
            missing_bytes=breach.missing_bytes,
            stall_us=breach.stall_ns // 1000,
            hold_us=breach.hold_ns // 1000,
        )
        self._listener.memory_short(told)
        if self.kind is MemoryGuard.HOLD and self._is_news(breach):
            self._listener.memory_breached(told)

    def _is_news(self, breach: Breach) -> bool:
        if breach.at_ns - self._told_at_ns.get(breach.call_id, -_TOLD_EVERY_NS) < _TOLD_EVERY_NS:
            return False
        if len(self._told_at_ns) >= _TOLD_MAX:
            self._told_at_ns.clear()
        self._told_at_ns[breach.call_id] = breach.at_ns
        return True
