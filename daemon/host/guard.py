"""The guard between sessions, by name: who has been promised what, and which call is told to grow into it.

What it does is in bpf/memory_guard.bpf.h. Without our scheduler in mode full nobody can be held inside the kernel; the
breaches are told all the same, so that cgroup files can do it.
"""

from collections.abc import Callable, Mapping

from agentcgroup.bpf.memory import Breach
from agentcgroup.daemon.host.groups import SessionGroup
from agentcgroup.daemon.host.kernel_events import KernelEvents
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import GuardFigures, MemoryBreach, MemoryGuard, Priority
from agentcgroup.daemon.ports import Location

__all__ = ["SessionGuard"]


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
        watch = events.memory if events else None
        self._watch = watch if watch is not None and watch.guards else None
        self._on_breach: Callable[[MemoryBreach], None] | None = None
        if self._watch is not None:
            self._watch.listen(self._breached)

    @property
    def kind(self) -> MemoryGuard:
        if self._watch is None:
            return MemoryGuard.NONE
        return MemoryGuard.HOLD if self._keeper.schedules_everybody else MemoryGuard.TOLD

    def listen(self, on_breach: Callable[[MemoryBreach], None]) -> None:
        self._on_breach = on_breach

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
        if self._on_breach is None or home is None or not home.call_id or for_session is None:
            return
        self._on_breach(
            MemoryBreach(
                call_id=home.call_id,
                for_session=for_session,
                rate_bytes_per_s=breach.rate_bytes_per_s,
                missing_bytes=breach.missing_bytes,
                stall_us=breach.stall_ns // 1000,
                hold_us=breach.hold_ns // 1000,
            )
        )
