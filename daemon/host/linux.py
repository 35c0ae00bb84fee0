"""The real machine: cgroups, processes and their ends, behind the Protocol `Host`."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone, ProcessGone
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host import kernel_events, processes
from agentcgroup.daemon.host.changes import Changes
from agentcgroup.daemon.host.door import door_for
from agentcgroup.daemon.host.exits import ExitSource, ExitWatch
from agentcgroup.daemon.host.groups import (
    CallGroup,
    SessionGroup,
    is_populated,
    memory_of,
    not_enforced,
    usage_of,
)
from agentcgroup.daemon.host.guard import SessionGuard
from agentcgroup.daemon.host.homes import Homes
from agentcgroup.daemon.host.kept import CgroupRecords
from agentcgroup.daemon.host.marks import MemoryMarks
from agentcgroup.daemon.host.prepare import memory_capacity
from agentcgroup.daemon.host.refusals import RefusalWatch, refused_at
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.host.stderr import LastWords
from agentcgroup.daemon.model import (
    Budget,
    CallLimits,
    CallMemory,
    Capability,
    ExitStatus,
    Growth,
    OomCounters,
    ProcessRef,
    Refusals,
    SchedulerStatus,
    Session,
    Tier,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.ports import HostListener, Leaf, Location, Process

log = logging.getLogger("agentcgroup.host")

_REMOVE_DEADLINE_S: Final = 10.0


@contextlib.contextmanager
def _kernel(doing: str) -> Iterator[None]:
    """Turns what the kernel refuses into a RequestError that says what was being done."""
    try:
        yield
    except ProcessGone as error:
        raise RequestError(
            Kind.NOT_FOUND, f"{doing}: the process has ended", "start it again", "process"
        ) from error
    except CgroupError as error:
        raise RequestError(
            Kind.HOST, f"{doing}: {error}", "`agentcg check` shows what this host can do"
        ) from error


class LinuxHost:
    """Sessions and calls as cgroups under one root. Lives on the event loop; file operations are short and synchronous."""

    def __init__(
        self, config: Config, root: Cgroup, mount: Path, controllers: frozenset[str], capabilities: tuple[Capability, ...],
        tier: Tier, events: kernel_events.KernelEvents | None = None, keeper: SchedulerKeeper | None = None,
    ) -> None:  # fmt: skip
        """`root` is prepared (see host.prepare): `controllers` are enabled for its children. `events` are closed with it."""
        self._root = root
        self._mount = os.fspath(mount)
        self._controllers = controllers
        self.capabilities = capabilities
        self.tier = tier
        self.not_enforced = not_enforced(controllers)
        self.memory_capacity_bytes = memory_capacity(config.host, psutil.virtual_memory().total)
        online_milli = 1000 * len(os.sched_getaffinity(0))
        self.cpu_capacity_milli = min(config.host.cpu, online_milli) if config.host.cpu else online_milli
        self._call_config = config.call
        self._sessions: dict[str, SessionGroup] = {}
        self._calls: dict[str, CallGroup] = {}
        # Cgroups of an earlier daemon: their books begin in the middle.
        self._older: set[int] = set()
        self._homes = Homes(self.cgroup_root)
        self._exits = ExitWatch()
        self._changes = Changes()
        self._watch_of_call: dict[str, int] = {}
        self._last_words = LastWords()
        self._listener: HostListener | None = None
        self.memory = MemoryMarks(root, self._sessions, self._calls, self._changes)
        self._refusals = RefusalWatch(self._calls, self._homes.session_of, self._changes)
        self.records = CgroupRecords(root, self._sessions, self._calls)
        self._self = psutil.Process()
        self._kernel_events = events
        self._keeper = keeper or SchedulerKeeper(None)
        self.guard = SessionGuard(self._sessions, self._homes.by_id, events, self._keeper)
        self.door = door_for(config, capabilities, events, self._keeper, self._sessions, self._calls)
        if events is not None and events.sees_our_pids:
            self._exits.use_records(events.drain)
            events.listen(self._exits.tell)

    @property
    def cgroup_root(self) -> str:
        return self._relative(self._root)

    def _relative(self, cgroup: Cgroup) -> str:
        return cgroup.path.removeprefix(self._mount) or "/"

    def listen(self, listener: HostListener) -> None:
        self._listener = listener
        self._changes.on_loss(listener.events_lost)
        self.door.listen(listener.knocked)
        self.memory.listen(listener)
        self.guard.listen(listener)

    def use_config(self, config: Config) -> None:
        self._call_config = config.call

    def close(self) -> None:
        """Lets go of descriptors; cgroups and limits stay."""
        self.memory.close()
        self._changes.close()
        self._exits.close()
        self.door.close()
        if self._kernel_events is not None:
            self._kernel_events.close()
        for group in self._sessions.values():
            group.close()
        self._root.close()

    # ---- sessions

    def open_session(self, session: Session) -> str:
        with _kernel(f"making the cgroups of session {session.name}"):
            group = SessionGroup.create(self._root, session.name, session.budget, self._controllers)
        return self._enter(session, group)

    def adopt_session(self, session: Session, cgroup_path: str) -> str:
        with _kernel(f"taking over the container's cgroup {cgroup_path}"):
            cgroup = Cgroup.open(f"{self._mount}/{cgroup_path.strip('/')}")
            group = SessionGroup.adopt(cgroup, session.budget, self._controllers)
        return self._enter(session, group)

    def _enter(self, session: Session, group: SessionGroup) -> str:
        self._sessions[session.name] = group
        path = self._relative(group.cgroup)
        self._homes.add_session(session.name, group.agent.id, path if group.is_adopted else None)
        self._keeper.declare_agent(group.agent.id)
        if "pids" in self._controllers:
            self._refusals.open(session.name, group)
        self._protect_agents()
        if self._kernel_events is not None:
            self._kernel_events.open_books(group.cgroup)
        if session.ends_with_agent or group.is_adopted:
            self._watch_agent(session.name, group)
        return path

    def _protect_agents(self) -> None:
        """The root's memory.min is the sum of the agents', without which reclaim from outside would not heed theirs."""
        total = 0
        for group in self._sessions.values():
            own = group.agent.read(files.MEMORY_MIN)
            total += own if isinstance(own, int) else 0
        self._root.write_if_present(files.MEMORY_MIN, total)

    def _watch_agent(self, name: str, group: SessionGroup) -> None:
        seen_populated = group.agent.is_populated() or group.cgroup.id in self._older

        def changed() -> None:
            nonlocal seen_populated
            try:
                populated = group.agent.is_populated()
            except CgroupGone:
                populated = False
            if populated:
                seen_populated = True
            elif seen_populated and self._listener is not None:
                seen_populated = False
                if group.is_adopted:
                    self._listener.session_gone(name)
                else:
                    self._listener.agent_gone(name)

        self._changes.watch(group.agent, files.CGROUP_EVENTS, changed)

    def apply_budget(self, session: Session, budget: Budget) -> None:
        with _kernel(f"changing the limits of session {session.name}"):
            self._sessions[session.name].apply(budget, session.budget)
            self._protect_agents()

    def place_agent(self, session: str, pid: int) -> None:
        with _kernel(f"moving process {pid} into session {session}"):
            self._sessions[session].agent.place(pid)

    def session_usage(self, session: str) -> Usage:
        group = self._sessions.get(session)
        return self._usage(group.cgroup) if group else Usage()

    def _usage(self, cgroup: Cgroup) -> Usage:
        usage = usage_of(cgroup)
        if self._kernel_events is None or cgroup.id in self._older:
            return usage
        return self._kernel_events.with_books(usage, cgroup.id)

    def freeze_session(self, session: str, frozen: bool, include_agent: bool) -> None:
        with _kernel(f"{'freezing' if frozen else 'thawing'} session {session}"):
            self._sessions[session].freeze(frozen, include_agent)

    def kill_agent(self, session: str) -> None:
        with _kernel(f"killing the agent of session {session}"):
            self._sessions[session].agent.kill()

    async def close_session(self, session: str) -> None:
        group = self._sessions.pop(session, None)
        if group is None:
            return
        self.memory.forget(session)
        self._refusals.forget(session)
        self._homes.forget_session(session, group.agent.id)
        self._keeper.forget(group.agent.id)
        if not await _until(group.try_remove, _REMOVE_DEADLINE_S):
            log.warning(
                "session %s: %s cannot be removed: processes in it do not die", session, group.cgroup.path
            )
        self.door.forget(group.cgroup.id)
        self._older.discard(group.cgroup.id)
        if self._kernel_events is not None:
            self._kernel_events.close_books(group.cgroup.id)
        group.close()
        self._protect_agents()

    # ---- calls

    def create_call(self, call: ToolCall) -> str:
        with _kernel(f"making the cgroup of call {call.id}"):
            parent = self._calls[call.parent_id] if call.parent_id else None
            inside = parent.split() if parent else self._sessions[call.session].calls
            group = CallGroup(inside.create_child(call.id), parent, self._controllers)
            path = self._enter_call(call, group)
            group.apply(call.limits)
        return path

    def _enter_call(self, call: ToolCall, group: CallGroup) -> str:
        self._calls[call.id] = group
        if self._kernel_events is not None:
            self._kernel_events.open_books(group.cgroup, call.limits.memory_bytes)
        self._keeper.declare_call(group.cgroup.id, call.intent.cpu_class or self._call_config.cpu_class)
        self._homes.add_call(call.id, call.session, group.cgroup.id)
        return self._relative(group.cgroup)

    def watch_memory(self, call_id: str, watched: bool) -> None:
        group = self._calls.get(call_id)
        if group is None or "memory" not in self._controllers:
            return
        if not watched:
            self._unwatch_memory(call_id)
            return

        def changed() -> None:
            if self._listener is not None:
                self._listener.memory_throttled(call_id)

        with _kernel(f"listening to the memory of call {call_id}"), contextlib.suppress(CgroupGone):
            self._watch_of_call[call_id] = self._changes.watch(group.cgroup, files.MEMORY_EVENTS, changed)

    def _unwatch_memory(self, call_id: str) -> None:
        watch_id = self._watch_of_call.pop(call_id, None)
        if watch_id is not None:
            self._changes.forget(watch_id)

    def limit_softly(self, call_id: str, high_bytes: int | None) -> None:
        if "memory" in self._controllers and call_id in self._calls:
            with _kernel(f"changing the soft limit of call {call_id}"):
                self._calls[call_id].limit_softly(high_bytes)

    def call_memory(self, call_id: str) -> CallMemory:
        group = self._calls.get(call_id)
        if group is None or "memory" not in self._controllers:
            return CallMemory()
        memory = memory_of(group.cgroup)
        if self._kernel_events is None:
            return memory
        return replace(memory, growth_bytes_per_s=self._kernel_events.growth_bytes_per_s(group.cgroup.id))

    def apply_limits(self, call: ToolCall, limits: CallLimits) -> None:
        with _kernel(f"changing the limits of call {call.id}"):
            self._calls[call.id].apply(limits, call.limits)

    def place(self, call_id: str, pid: int) -> None:
        with _kernel(f"moving process {pid} into call {call_id}"):
            self._calls[call_id].place(pid)
        self._keeper.take(pid)
        processes.prefer_as_victim(pid, self._call_config.oom_score_adj)

    def agent_leaf(self, session: str) -> Leaf | None:
        # Where each process has to be taken over by us, nobody enters a call past us.
        if self._keeper.takes_processes:
            return None
        # A prepared call's process may have ended before it is watched; its status must be known all the same.
        if self._exits.source not in (ExitSource.KERNEL_EVENTS, ExitSource.PIDFD_INFO):
            return None
        agent = self._sessions[session].agent
        return Leaf(agent.id, self._relative(agent))

    def open_procs(self, call_id: str) -> int:
        with _kernel(f"opening cgroup.procs of call {call_id}"):
            return self._calls[call_id].cgroup.open_file(files.CGROUP_PROCS, os.O_WRONLY)

    def freeze_call(self, call_id: str, frozen: bool) -> None:
        with _kernel(f"{'freezing' if frozen else 'thawing'} call {call_id}"):
            cgroup = self._calls[call_id].cgroup
            if frozen:
                cgroup.freeze()
            else:
                cgroup.thaw()

    def call_usage(self, call_id: str) -> Usage:
        group = self._calls.get(call_id)
        if group is None:
            return Usage()
        usage = self._usage(group.cgroup)
        if usage.pids_max_events and (own := refused_at(group.cgroup)) is not None:
            # The rest was refused to a nested call, at that one's limit.
            usage = replace(usage, pids_max_events=own)
        return usage

    def refusals(self, session: str) -> Refusals:
        return self._refusals.read(session)

    def listen_to_refusals(self, session: str, listens: bool) -> None:
        if not listens:
            self._refusals.ignore(session)
            return

        def refused() -> None:
            if self._listener is not None:
                self._listener.processes_refused(session)

        self._refusals.listen(session, refused)

    def oom_counters(self, call_id: str) -> OomCounters:
        group = self._calls.get(call_id)
        session = self._sessions.get(self._homes.session_of(call_id))
        if group is None or session is None:
            return OomCounters()
        counters = group.oom_counters(session)
        if self._kernel_events is None:
            return counters
        return replace(counters, victim=self._kernel_events.victim(group.cgroup.id))

    def kill_call(self, call_id: str) -> int:
        group = self._calls.get(call_id)
        return group.kill() if group else 0

    async def drained(self, call_id: str, deadline_s: float) -> bool:
        group = self._calls.get(call_id)
        return group is None or await _until(lambda: not is_populated(group.cgroup), deadline_s)

    def remove_call(self, call_id: str) -> bool:
        group = self._calls.pop(call_id, None)
        self._unwatch_memory(call_id)
        if group is None:
            return True
        self._keeper.forget(group.cgroup.id)
        if self._kernel_events is not None:
            self._kernel_events.close_books(group.cgroup.id)
        self._homes.forget_call(call_id, group.cgroup.id)
        self._older.discard(group.cgroup.id)
        return group.remove()

    # ---- what an earlier daemon left

    def reopen_session(self, session: Session) -> str:
        with _kernel(f"taking over session {session.name}"):
            group = SessionGroup.reopen(self._root, session.name, session.budget, self._controllers)
        self._older.add(group.cgroup.id)
        return self._enter(session, group)

    def has_agent(self, session: str) -> bool:
        return is_populated(self._sessions[session].agent)

    def reopen_call(self, call: ToolCall) -> str:
        with _kernel(f"taking over call {call.id}"):
            parent = self._calls[call.parent_id] if call.parent_id else None
            inside = parent.cgroup if parent else self._sessions[call.session].calls
            group = CallGroup.reopen(inside.open_child(call.id), parent, self._controllers)
        self._older.add(group.cgroup.id)
        return self._enter_call(call, group)

    def reopen_process(self, call_id: str, pid: int) -> Process | None:
        try:
            process = Process(pid, os.pidfd_open(pid))
        except OSError:
            return None
        # The name is taken after it is held, so it is this process's.
        if self.locate(process).call_id == call_id:
            return process
        os.close(process.pidfd)
        return None

    # ---- processes

    def open_process(self, session: Session, process: ProcessRef) -> Process:
        group = self._sessions.get(session.name)
        inside = group.cgroup.all_process_ids() if group and group.is_adopted else None
        return processes.hold(process, inside)

    def locate(self, process: Process) -> Location:
        return self._homes.locate(process)

    def watch_process(
        self, process: Process, on_exit: Callable[[], None], on_status: Callable[[ExitStatus], None]
    ) -> None:
        self._last_words.know(process)

        def known(status: ExitStatus) -> None:
            self._last_words.forget(process)
            os.close(process.pidfd)
            on_status(status)

        self._exits.watch(process.pidfd, on_exit, known, pid=process.pid)

    def hold_stderr(self, call: ToolCall) -> None:
        self._last_words.hold(call.id, call.pid)

    def say_last(self, call_id: str, line: str) -> None:
        self._last_words.say(call_id, line)

    def forget_process(self, pidfd: int) -> None:
        self._exits.forget(pidfd)
        os.close(pidfd)

    def hear_ends(self) -> None:
        self._exits.hear()

    # ---- the daemon itself

    def memory_current_bytes(self) -> int | None:
        return self._root.read(files.MEMORY_CURRENT)

    def daemon_usage(self) -> tuple[Usage, int]:
        cpu = self._self.cpu_times()
        user_us, system_us = int(cpu.user * 1e6), int(cpu.system * 1e6)
        rss_bytes = self._self.memory_info().rss
        return Usage(
            cpu_usage_us=user_us + system_us, cpu_user_us=user_us, cpu_system_us=system_us
        ), rss_bytes

    def memory_growth(self) -> tuple[dict[str, Growth], dict[str, Growth]]:
        found = {} if self._kernel_events is None else self._kernel_events.memory_growth()
        sessions = {name: found.get(group.cgroup.id) for name, group in self._sessions.items()}
        calls = {call_id: found.get(group.cgroup.id) for call_id, group in self._calls.items()}
        return _known(sessions), _known(calls)

    def scheduler(self) -> SchedulerStatus:
        return self._keeper.status

    def kernel_events_lost(self) -> tuple[tuple[str, int], ...]:
        return () if self._kernel_events is None else self._kernel_events.lost()


def _known(growth: dict[str, Growth | None]) -> dict[str, Growth]:
    return {name: one for name, one in growth.items() if one is not None}


async def _until(done: Callable[[], bool], deadline_s: float) -> bool:
    """Tries until `done`; killed processes are gone within a millisecond, so the first pauses are short."""
    pause_s, waited_s = 0.0005, 0.0
    while not done():
        if waited_s >= deadline_s:
            return False
        await asyncio.sleep(pause_s)
        waited_s += pause_s
        pause_s = min(pause_s * 2, 0.1)
    return True
