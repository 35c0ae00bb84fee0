"""Memory between sessions: who uses what, and the marks up to which the calls of each may grow.

A mark is memory.high of a session's `calls/`. Nobody reads anything while all stay below theirs; whoever crosses one
is told of by memory.events.local and slowed by the kernel until the mark is moved: not at all in the first hundredth
above it, then more and more (mm/memcontrol.c, calculate_high_delay). Marks are never set below what is in use, so that
none of them makes the kernel reclaim.
"""

import asyncio
import contextlib
import logging
import os
import re
from typing import Final

import psutil

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone
from agentcgroup.cgroups.values import MAX, PressureKind
from agentcgroup.cgroups.watch import PsiTrigger
from agentcgroup.daemon.host.changes import Changes
from agentcgroup.daemon.host.groups import CallGroup, SessionGroup, memory_of, stalled_us
from agentcgroup.daemon.model import AgentActivity, CallMemory, HostMemory, SessionMemory
from agentcgroup.daemon.ports import HostListener

log = logging.getLogger("agentcgroup.host")

# Stalled for a tenth of the time. Without CAP_SYS_RESOURCE the window is 2 s (kernel/sched/psi.c).
_STALL_TRIGGERS_US: Final = ((50_000, 500_000), (200_000, 2_000_000))
# What the host has left is asked for up to twenty times a second while memory is short: of two long files only the number
# that counts, for all of them would take half of a look's time.
_MEM_AVAILABLE: Final = re.compile(rb"^MemAvailable: +([0-9]+) kB$", re.MULTILINE)
_MEMINFO_BYTES: Final = 256  # the third line (proc_meminfo(5))


def _available_bytes() -> int:
    """MemAvailable of /proc/meminfo, in every kernel since 3.14."""
    with open("/proc/meminfo", "rb", buffering=0) as file:
        found = _MEM_AVAILABLE.search(file.read(_MEMINFO_BYTES))
    return int(found[1]) * 1024 if found else psutil.virtual_memory().available


def _met(cgroup: Cgroup) -> int:
    """How often the cgroup's own limit was met."""
    try:
        events = cgroup.read(files.MEMORY_EVENTS_LOCAL)
    except CgroupGone:
        return 0
    return (events.max if events else None) or 0


class MemoryMarks:
    """Reads, marks and triggers for the sessions of one root. Lives on the event loop."""

    def __init__(
        self,
        root: Cgroup,
        sessions: dict[str, SessionGroup],
        calls: dict[str, CallGroup],
        changes: Changes,
    ) -> None:
        """`sessions` and `calls` are the host's own, looked at, never changed."""
        self._root = root
        self._sessions = sessions
        self._calls = calls
        self._changes = changes
        self._listener: HostListener | None = None
        # None: nobody listens at present.
        self._watches: dict[str, int | None] = {}
        # By session; "": of all together.
        self._triggers: dict[str, PsiTrigger] = {}
        self._lows: dict[str, int] = {}
        self._awaited: dict[str, int] = {}

    def listen(self, listener: HostListener) -> None:
        self._listener = listener

    def close(self) -> None:
        for session in list(self._triggers):
            self._forget_trigger(session)

    def forget(self, session: str) -> None:
        """The session is going: its watches end."""
        self._forget_trigger(session)
        self._forget_mark(session)
        self._stop_awaiting(session)
        if self._lows.pop(session, 0):
            self._write_root_low()

    # ---- reading

    def host(self) -> HostMemory | None:
        """None: without the memory controller there is nothing to protect."""
        try:
            limit = self._root.read(files.MEMORY_MAX)
            current = self._root.read(files.MEMORY_CURRENT)
            inactive_file = self._root.read(files.MEMORY_STAT_INACTIVE_FILE)
        except CgroupGone:
            return None
        if current is None:
            return None
        # File pages that nobody has used twice go before anybody waits, so they are room.
        used = max(0, current - (inactive_file or 0))
        capacity = limit if isinstance(limit, int) else psutil.virtual_memory().total
        return HostMemory(capacity, min(capacity - used, _available_bytes()))

    def session(self, name: str) -> SessionMemory | None:
        group = self._sessions.get(name)
        if group is None:
            return None
        try:
            agent, calls = group.agent.read(files.MEMORY_CURRENT), group.calls.read(files.MEMORY_CURRENT)
        except CgroupGone:
            return None
        return SessionMemory(agent, calls) if agent is not None and calls is not None else None

    def stall_us(self, session: str) -> int | None:
        group = self._sessions.get(session)
        try:
            pressure = group.cgroup.read(files.MEMORY_PRESSURE) if group else None
        except CgroupGone:
            return None
        return stalled_us(pressure)

    def calls_memory(self, session: str) -> CallMemory:
        group = self._sessions.get(session)
        return memory_of(group.calls) if group else CallMemory()

    def agent_memory(self, session: str) -> CallMemory:
        group = self._sessions.get(session)
        return memory_of(group.agent) if group else CallMemory()

    def call_bytes(self, call_id: str) -> int | None:
        group = self._calls.get(call_id)
        try:
            return group.cgroup.read(files.MEMORY_CURRENT) if group else None
        except CgroupGone:
            return None

    # ---- marks and protection

    def set_mark(self, session: str, mark_bytes: int | None) -> None:
        """The calls of the session may use this much until the daemon looks again; None: what their budget says."""
        group = self._sessions.get(session)
        if group is None:
            return
        try:
            if mark_bytes is not None and session not in self._watches:
                self._watch_mark(session, group)
            group.calls.write_if_present(
                files.MEMORY_HIGH, MAX if mark_bytes is None else mark_bytes, nonblocking=True
            )
        except CgroupGone:
            return
        except CgroupError as error:
            # Without being told of a crossing a mark would slow the session for good, so there is none.
            log.warning("session %s has no mark: %s", session, error)

    def listen_to_mark(self, session: str, listens: bool) -> None:
        group = self._sessions.get(session)
        if group is None or session not in self._watches or listens == (self._watches[session] is not None):
            return
        if not listens:
            self._forget_mark(session)
            self._watches[session] = None
            return
        with contextlib.suppress(CgroupGone):
            try:
                self._watch_mark(session, group)
            except CgroupError as error:
                log.warning("session %s: its mark is not listened to: %s", session, error)

    def _forget_mark(self, session: str) -> None:
        watch_id = self._watches.pop(session, None)
        if watch_id is not None:
            self._changes.forget(watch_id)

    def _watch_mark(self, session: str, group: SessionGroup) -> None:
        events = group.calls.read(files.MEMORY_EVENTS_LOCAL)
        seen = (events.high if events else None) or 0

        def changed() -> None:
            nonlocal seen
            try:
                events = group.calls.read(files.MEMORY_EVENTS_LOCAL)
            except CgroupGone:
                return
            crossed = (events.high if events else None) or 0
            if crossed > seen:
                seen = crossed
                if self._listener is not None:
                    self._listener.memory_mark_crossed(session)

        self._watches[session] = self._changes.watch(group.calls, files.MEMORY_EVENTS_LOCAL, changed)

    def protect_calls(self, session: str, promises: tuple[tuple[str, int], ...]) -> None:
        """memory.low of each call and, without which it would not count, of everything above it."""
        group = self._sessions.get(session)
        if group is None:
            return
        with contextlib.suppress(CgroupGone):
            for call_id, low_bytes in promises:
                if call_id in self._calls:
                    self._calls[call_id].cgroup.write_if_present(files.MEMORY_LOW, low_bytes)
            total = sum(low_bytes for _, low_bytes in promises)
            if self._lows.get(session, 0) == total:
                return
            self._lows[session] = total
            for cgroup in (group.cgroup, group.calls):
                cgroup.write_if_present(files.MEMORY_LOW, total)
            self._write_root_low()

    def _write_root_low(self) -> None:
        self._root.write_if_present(files.MEMORY_LOW, sum(self._lows.values()))

    # ---- limits met

    def await_limit(self, session: str) -> None:
        """By memory.events.local: `max` counts how often the cgroup itself was about to go over (cgroup-v2.rst)."""
        group = self._sessions.get(session)
        cgroup = group.cgroup if group else None if session else self._root
        if cgroup is None or session in self._awaited:
            return
        seen = _met(cgroup)

        def changed() -> None:
            if _met(cgroup) > seen:
                self._stop_awaiting(session)
                if self._listener is not None:
                    self._listener.memory_limit_met(session)

        try:
            self._awaited[session] = self._changes.watch(cgroup, files.MEMORY_EVENTS_LOCAL, changed)
        except CgroupError as error:
            log.debug("%s: that it meets its limit is not told: %s", cgroup.path, error)

    def _stop_awaiting(self, session: str) -> None:
        watch_id = self._awaited.pop(session, None)
        if watch_id is not None:
            self._changes.forget(watch_id)

    # ---- stall

    def watch_stall(self, session: str, on: bool) -> None:
        """Whether the listener is to be told when tasks of the session wait for memory a tenth of their time."""
        group = self._sessions.get(session)
        self._watch_stall(session, on, group.cgroup if group else None)

    def watch_host_stall(self, on: bool) -> None:
        self._watch_stall("", on, self._root)

    def _watch_stall(self, session: str, on: bool, cgroup: Cgroup | None) -> None:
        if on == (session in self._triggers):
            return
        if not on:
            self._forget_trigger(session)
            return
        opened = self._open_trigger(cgroup) if cgroup is not None else None
        if opened is None:
            return

        def fired() -> None:
            if opened.is_gone():
                self._forget_trigger(session)
            elif self._listener is not None and session:
                self._listener.memory_stalled(session)
            elif self._listener is not None:
                self._listener.memory_limit_met("")

        self._triggers[session] = opened
        asyncio.get_running_loop().add_reader(opened.fileno(), fired)

    def _forget_trigger(self, session: str) -> None:
        trigger = self._triggers.pop(session, None)
        if trigger is not None:
            asyncio.get_running_loop().remove_reader(trigger.fileno())
            trigger.close()

    @staticmethod
    def _open_trigger(cgroup: Cgroup) -> PsiTrigger | None:
        for stall_us, window_us in _STALL_TRIGGERS_US:
            try:
                return PsiTrigger(cgroup, files.MEMORY_PRESSURE, PressureKind.SOME, stall_us, window_us)
            except CgroupError as error:
                refusal = error
        log.debug("%s: no pressure trigger: %s", cgroup.path, refusal)
        return None

    # ---- idle agents

    def agent_activity(self, session: str) -> AgentActivity | None:
        group = self._sessions.get(session)
        if group is None:
            return None
        try:
            cpu = group.agent.read(files.CPU_STAT)
            pressure = group.agent.read(files.MEMORY_PRESSURE)
            stat = group.agent.read(files.MEMORY_STAT)
        except CgroupGone:
            return None
        if cpu is None or cpu.usage_usec is None or stat is None or stat.file is None:
            return None
        return AgentActivity(cpu.usage_usec, stalled_us(pressure) or 0, stat.file)

    async def reclaim_agent(self, session: str, amount_bytes: int) -> int | None:
        """Asks the kernel to free so much of the agent leaf; what it freed, None when it cannot be asked."""
        group = self._sessions.get(session)
        if group is None:
            return None
        try:
            before = group.agent.read(files.MEMORY_CURRENT)
            # Opened here: while the thread waits for the kernel the session may close its directories.
            fd = group.agent.open_file(files.MEMORY_RECLAIM, os.O_WRONLY)
        except CgroupError as error:
            log.debug("session %s: nothing is reclaimed: %s", session, error)
            return None
        try:
            # EAGAIN: it freed less than was asked, which the figures say.
            with contextlib.suppress(BlockingIOError):
                await asyncio.to_thread(os.write, fd, str(amount_bytes).encode())
            after = group.agent.read(files.MEMORY_CURRENT)
        except (CgroupError, OSError) as error:
            log.debug("session %s: nothing is reclaimed: %s", session, error)
            return None
        finally:
            os.close(fd)
        return None if before is None or after is None else max(0, before - after)
