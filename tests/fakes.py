"""A machine and a clock in memory: real implementations of daemon/ports.py, without limits.

Processes are real, because the edges hold them by pidfd; where they "live" and what they "use" is what a
test says.
"""

import asyncio
import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.host import processes
from agentcgroup.daemon.model import (
    Budget,
    CallLimits,
    CallMemory,
    Capability,
    DoorHold,
    ExitStatus,
    Growth,
    GuardFigures,
    MemoryGuard,
    OomCounters,
    Priority,
    ProcessRef,
    Refusals,
    SchedulerStatus,
    Session,
    Tier,
    ToolCall,
    TransparentScope,
    Usage,
)
from agentcgroup.daemon.ports import HostListener, Leaf, Location, Process
from tests.fake_memory import FakeMemory
from tests.fake_records import FakeRecords
from tests.processes import is_alive


class FakeClock:
    """Stands still until a test moves it."""

    def __init__(self, now_ns: int = 1_800_000_000_000_000_000) -> None:
        self.time_ns = now_ns

    def now_ns(self) -> int:
        self.time_ns += 1
        return self.time_ns


@dataclass(slots=True)
class FakeCall:
    """One call's cgroup: who is in it, and how often something was done to it."""

    call: ToolCall
    limits: CallLimits
    pids: set[int] = field(default_factory=set)
    frozen: bool = False
    usage: Usage = Usage()
    oom: OomCounters = OomCounters(0, 0, 0)
    memory: CallMemory = CallMemory()
    high_bytes: int | None = None
    is_watched: bool = False

    @property
    def live_pids(self) -> tuple[int, ...]:
        return tuple(pid for pid in self.pids if _is_alive(pid))


class FakeDoor:
    """Processes are real: they are caught by pidfd. Who is held, let be, or gathered is what a test reads."""

    why_not = ""

    def __init__(self) -> None:
        self.scopes: dict[str, TransparentScope] = {}
        self.let_alone: list[int] = []
        self.released: list[int] = []
        self.gathered: list[tuple[str, int]] = []
        self.hold: DoorHold | None = None

    def set(self, session: str, scope: TransparentScope) -> None:
        self.scopes[session] = scope

    def catch(self, pid: int) -> Process | None:
        return Process(pid, os.pidfd_open(pid)) if _is_alive(pid) else None

    def gather(self, session: str, call_id: str, pid: int, is_visitor: bool) -> int:
        self.gathered.append((call_id, pid))
        return 0

    def let_be(self, process: Process) -> None:
        self.let_alone.append(process.pid)

    def release(self, pid: int) -> DoorHold | None:
        self.released.append(pid)
        return self.hold


class FakeGuard:
    """`promises` is what each session was promised last."""

    kind = MemoryGuard.HOLD

    def __init__(self) -> None:
        self.promises: dict[str, tuple[Priority, int]] = {}

    def promise(self, session: str, priority: Priority, protection_bytes: int) -> None:
        self.promises[session] = (priority, protection_bytes)

    def figures(self) -> GuardFigures | None:
        return GuardFigures(3, 1_500_000, 1)


class FakeHost:
    """Sessions and calls in dictionaries. `homes` says in which session's agent leaf a pid lives."""

    not_enforced: tuple[str, ...] = ()
    cgroup_root = "/fake.slice"
    tier = Tier.CGROUP
    capabilities: tuple[Capability, ...] = (
        Capability("cgroup.kill", True, Tier.CGROUP, "found"),
        Capability("bpf", False, Tier.BPF, "no BTF", cost="events come later", remedy="a kernel with BTF"),
    )
    cpu_capacity_milli = 2000
    scheduler_status = SchedulerStatus()

    def __init__(self, memory_capacity_bytes: int = 8 << 30) -> None:
        self.memory_capacity_bytes = memory_capacity_bytes
        self.listener: HostListener | None = None
        self.sessions: dict[str, Budget] = {}
        self.calls: dict[str, FakeCall] = {}
        self.refused: dict[str, Refusals] = {}
        self.refusals_heard: set[str] = set()
        self.call_growth: dict[str, Growth] = {}
        self.homes: dict[int, str] = {}
        self.guard = FakeGuard()
        self.statuses: dict[int, ExitStatus] = {}
        self.held_stderrs: set[str] = set()
        self.last_words: dict[str, str] = {}
        self.done: Counter[str] = Counter()
        # What the next operation of this name fails with, once.
        self.failures: dict[str, RequestError] = {}
        self.records = FakeRecords(self)
        self.reopened: set[str] = set()
        self.frozen_sessions: set[str] = set()
        # Sessions whose cgroup is a container's: found by whoever asks Docker.
        self.containers: set[str] = set()
        self.door = FakeDoor()
        self._watched: set[int] = set()
        self.memory = FakeMemory(self)

    def _do(self, what: str) -> None:
        self.done[what] += 1
        failure = self.failures.pop(what, None)
        if failure is not None:
            raise failure

    def listen(self, listener: HostListener) -> None:
        self.listener = listener

    def use_config(self, config: Config) -> None:
        """Nothing here goes by it."""

    def close(self) -> None:
        for pidfd in list(self._watched):
            self.forget_process(pidfd)

    def crash(self) -> None:
        """The daemon is gone; what the kernel has stays, for another on the same machine."""
        self.close()
        self.reopened.clear()

    def memory_growth(self) -> tuple[dict[str, Growth], dict[str, Growth]]:
        return {}, self.call_growth

    def scheduler(self) -> SchedulerStatus:
        return self.scheduler_status

    def kernel_events_lost(self) -> tuple[tuple[str, int], ...]:
        return (("exit", 0),)

    # ---- sessions

    def open_session(self, session: Session) -> str:
        self._do("open_session")
        self.reopened.add(session.name)
        self.sessions[session.name] = session.budget
        return f"{self.cgroup_root}/{session.name}"

    def adopt_session(self, session: Session, cgroup_path: str) -> str:
        self._do("adopt_session")
        self.containers.add(session.name)
        self.reopened.add(session.name)
        self.sessions[session.name] = session.budget
        return cgroup_path

    def apply_budget(self, session: Session, budget: Budget) -> None:
        self._do("apply_budget")
        self.sessions[session.name] = budget

    def place_agent(self, session: str, pid: int) -> None:
        self._do("place_agent")
        self.homes[pid] = session

    def session_usage(self, session: str) -> Usage:
        return Usage(memory_current_bytes=1 << 20, pids_current=1)

    def freeze_session(self, session: str, frozen: bool, include_agent: bool) -> None:
        self._do("freeze_session")
        (self.frozen_sessions.add if frozen else self.frozen_sessions.discard)(session)

    def kill_agent(self, session: str) -> None:
        self._do("kill_agent")
        for pid in [pid for pid, home in self.homes.items() if home == session]:
            os.kill(pid, signal.SIGKILL)

    async def close_session(self, session: str) -> None:
        self._do("close_session")
        self.sessions.pop(session, None)
        self.homes = {pid: home for pid, home in self.homes.items() if home != session}

    # ---- calls

    def create_call(self, call: ToolCall) -> str:
        self._do("create_call")
        self.reopened.add(call.id)
        assert not call.parent_id or call.parent_id in self.calls, "the parent has no cgroup"
        self.calls[call.id] = FakeCall(call, call.limits, high_bytes=call.limits.memory_high_bytes)
        return f"{self.cgroup_root}/{call.session}/calls/{call.id}"

    def apply_limits(self, call: ToolCall, limits: CallLimits) -> None:
        self._do("apply_limits")
        if limits.memory_high_bytes != self.calls[call.id].limits.memory_high_bytes:
            self.calls[call.id].high_bytes = limits.memory_high_bytes
        self.calls[call.id].limits = limits

    def place(self, call_id: str, pid: int) -> None:
        self._do("place")
        for other in self.calls.values():
            other.pids.discard(pid)
        self.calls[call_id].pids.add(pid)

    def agent_leaf(self, session: str) -> Leaf | None:
        return None

    def open_procs(self, call_id: str) -> int:
        raise AssertionError("nothing is prepared where there is no agent leaf")

    def freeze_call(self, call_id: str, frozen: bool) -> None:
        self._do("freeze_call")
        self.calls[call_id].frozen = frozen

    def call_usage(self, call_id: str) -> Usage:
        call = self.calls.get(call_id)
        return call.usage if call else Usage()

    def call_memory(self, call_id: str) -> CallMemory:
        call = self.calls.get(call_id)
        if call is not None and call_id in self.memory.uses and call.memory == CallMemory():
            used = self.memory.uses[call_id].bytes
            return CallMemory(used, used)
        return call.memory if call else CallMemory()

    def limit_softly(self, call_id: str, high_bytes: int | None) -> None:
        self._do("limit_softly")
        self.calls[call_id].high_bytes = high_bytes

    def watch_memory(self, call_id: str, watched: bool) -> None:
        self._do("watch_memory")
        if call_id in self.calls:
            self.calls[call_id].is_watched = watched

    def use_memory(self, call_id: str, held_bytes: int) -> None:
        """The call holds so much now; who listens is told when that is over its soft limit."""
        call = self.calls[call_id]
        call.memory = CallMemory(held_bytes, held_bytes)
        is_over = call.high_bytes is not None and held_bytes > call.high_bytes
        if call.is_watched and is_over and self.listener is not None:
            self.listener.memory_throttled(call_id)
        session = call.call.session
        mark, calls = self.memory.marks.get(session), self.memory.calls_memory(session)
        is_crossed = mark is not None and (calls.current_bytes or 0) > mark
        if is_crossed and session not in self.memory.deaf and self.listener is not None:
            self.listener.memory_mark_crossed(session)

    def refusals(self, session: str) -> Refusals:
        self.done["refusals"] += 1
        return self.refused.get(session, Refusals())

    def listen_to_refusals(self, session: str, listens: bool) -> None:
        (self.refusals_heard.add if listens else self.refusals_heard.discard)(session)

    def refuse(self, call_id: str, times: int = 1, *, at_session: bool = False) -> None:
        """The kernel refuses the call new processes, at its limit or at the session's; who listens is told."""
        group = self.calls[call_id]
        session = group.call.session
        before = self.refused.get(session, Refusals())
        if at_session:
            self.refused[session] = Refusals(before.session + times, before.calls)
        else:
            count = before.calls.get(call_id, 0) + times
            self.refused[session] = Refusals(before.session, {**before.calls, call_id: count})
            group.usage = dataclasses.replace(group.usage, pids_max_events=count)
        if session in self.refusals_heard and self.listener is not None:
            self.listener.processes_refused(session)

    def oom_counters(self, call_id: str) -> OomCounters:
        call = self.calls.get(call_id)
        return call.oom if call else OomCounters()

    def kill_call(self, call_id: str) -> int:
        self._do("kill_call")
        self.memory.uses.pop(call_id, None)
        call = self.calls.get(call_id)
        alive = call.live_pids if call else ()
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        return len(alive)

    def hold_stderr(self, call: ToolCall) -> None:
        self.held_stderrs.add(call.id)

    def say_last(self, call_id: str, line: str) -> None:
        if call_id in self.held_stderrs and line:
            self.last_words[call_id] = line

    async def drained(self, call_id: str, deadline_s: float) -> bool:
        call = self.calls.get(call_id)
        try:
            async with asyncio.timeout(deadline_s):
                # Other people's processes: nothing here is told when they have left the kernel.
                while call and call.live_pids:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        except TimeoutError:
            return False
        return True

    def remove_call(self, call_id: str) -> bool:
        self._do("remove_call")
        self.calls.pop(call_id, None)
        return True

    # ---- what an earlier daemon left

    def reopen_session(self, session: Session) -> str:
        self._do("reopen_session")
        self.reopened.add(session.name)
        self.sessions[session.name] = session.budget
        return f"{self.cgroup_root}/{session.name}"

    def has_agent(self, session: str) -> bool:
        return any(home == session and _is_alive(pid) for pid, home in self.homes.items())

    def reopen_call(self, call: ToolCall) -> str:
        self._do("reopen_call")
        self.reopened.add(call.id)
        self.calls[call.id].call = call
        return f"{self.cgroup_root}/{call.session}/calls/{call.id}"

    def reopen_process(self, call_id: str, pid: int) -> Process | None:
        if pid not in self.calls[call_id].pids or not _is_alive(pid):
            return None
        return Process(pid, os.pidfd_open(pid))

    # ---- processes

    def open_process(self, session: Session, process: ProcessRef) -> Process:
        return processes.hold(process)

    def locate(self, process: Process) -> Location:
        pid = process.pid
        for call_id, group in self.calls.items():
            if pid in group.pids:
                return Location(group.call.session, call_id)
        return Location(self.homes.get(pid, ""))

    def watch_process(
        self, process: Process, on_exit: Callable[[], None], on_status: Callable[[ExitStatus], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        pid, pidfd = process.pid, process.pidfd

        def ended() -> None:
            self.forget_process(pidfd)
            on_exit()
            on_status(self.statuses.get(pid, ExitStatus()))

        self._watched.add(pidfd)
        loop.add_reader(pidfd, ended)

    def forget_process(self, pidfd: int) -> None:
        if pidfd in self._watched:
            self._watched.discard(pidfd)
            asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def hear_ends(self) -> None:
        """Ends are told by the loop alone."""

    # ---- the daemon itself

    def memory_current_bytes(self) -> int | None:
        return 100 << 20

    def daemon_usage(self) -> tuple[Usage, int]:
        return Usage(cpu_usage_us=1000), 40 << 20


def _is_alive(pid: int) -> bool:
    """This process does not count: a test that plays the launcher itself is not killed with its call."""
    return pid != os.getpid() and is_alive(pid)
