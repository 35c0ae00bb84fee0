"""The transparent door on Linux: execs from the kernel's events, processes caught by pidfd, holds by our scheduler."""

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

from agentcgroup.bpf.abi import DoorSource, ExecFlag, PassageHold
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.records import Exec
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host.groups import CallGroup, SessionGroup
from agentcgroup.daemon.host.kernel_events import KernelEvents
from agentcgroup.daemon.host.pidfd import has_ended
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import Capability, DoorHold, Knock, Tier, TransparentScope
from agentcgroup.daemon.ports import Process

__all__ = ["LinuxDoor", "NoDoor", "door_for"]

log = logging.getLogger("agentcgroup.host")

_SOURCES: Final = {
    TransparentScope.AGENT: DoorSource.AGENT,
    TransparentScope.OUTSIDE: DoorSource.OUTSIDE,
    TransparentScope.ALL: DoorSource.AGENT | DoorSource.OUTSIDE,
}
# Of a tree that forks faster than it is moved: what is left by then stays where it is.
_GATHER_ROUNDS: Final = 64


def door_for(
    config: Config,
    capabilities: tuple[Capability, ...],
    events: KernelEvents | None,
    keeper: SchedulerKeeper,
    sessions: Mapping[str, SessionGroup],
    calls: Mapping[str, CallGroup],
) -> "LinuxDoor | NoDoor":
    """The door that this host can have."""
    if events is None:
        missing = [one for one in capabilities if one.tier is Tier.BPF and not one.available]
        because = "".join(f" ({one.name}: {one.detail})" for one in missing[:1])
        return NoDoor(f"there are no kernel events on this host{because}")
    if not events.sees_our_pids:
        return NoDoor(
            "agentcgroupd runs in a pid namespace of its own, where the kernel's pids mean nothing"
        )
    return LinuxDoor(events, keeper, sessions, calls, config.scheduler.door_hold)


class NoDoor:
    """Where there is none; `why_not` says why."""

    def __init__(self, why_not: str) -> None:
        self.why_not = why_not

    def listen(self, knocked: Callable[[Knock], None]) -> None:
        return None

    def forget(self, account_id: int) -> None:
        return None

    def close(self) -> None:
        return None

    def set(self, session: str, scope: TransparentScope) -> None:
        if scope is not TransparentScope.OFF:
            raise RequestError(
                Kind.HOST,
                f"session {session} cannot have a transparent door: {self.why_not}",
                "make it without, and start tools through `agentcg run`",
                "transparent",
            )

    def catch(self, pid: int) -> Process | None:
        return None

    def gather(self, session: str, call_id: str, pid: int, is_visitor: bool) -> int:
        return 0

    def let_be(self, process: Process) -> None:
        return None

    def release(self, pid: int) -> DoorHold | None:
        return None


class LinuxDoor:
    """Lives on the event loop. `sessions` and `calls` are the host's own, as they are at each moment."""

    why_not = ""

    def __init__(
        self,
        events: KernelEvents,
        keeper: SchedulerKeeper,
        sessions: Mapping[str, SessionGroup],
        calls: Mapping[str, CallGroup],
        hold_ms: int,
    ) -> None:
        """`hold_ms`: how long the scheduler may hold a process that knocks; it does so while it is attached in mode full."""
        self._events = events
        self._keeper = keeper
        self._sessions = sessions
        self._calls = calls
        self._hold_ns = hold_ms * 1_000_000
        # By account, which is the session's cgroup.
        self._doors: dict[int, tuple[str, TransparentScope]] = {}
        # The mount namespaces of containers that are sessions, by account.
        self._namespaces: dict[int, int] = {}
        self._knocked: Callable[[Knock], None] = lambda knock: None
        events.listen_at_door(self._on_exec)
        keeper.listen(self._on_scheduler)

    def listen(self, knocked: Callable[[Knock], None]) -> None:
        """`knocked` is called from the loop for each exec at a door."""
        self._knocked = knocked

    def set(self, session: str, scope: TransparentScope) -> None:
        account_id = self._sessions[session].cgroup.id
        if scope is TransparentScope.OFF:
            self.forget(account_id)
            return
        try:
            self._tell(account_id, scope)
            self._watch_namespace(account_id, self._sessions[session].agent)
        except BpfError as error:
            raise RequestError(
                Kind.HOST,
                f"session {session} cannot have a transparent door: {error}",
                "`agentcg check` shows what this host can do",
                "transparent",
            ) from error
        self._doors[account_id] = session, scope

    def forget(self, account_id: int) -> None:
        """The session has ended, or wants no door any more."""
        if self._doors.pop(account_id, None) is not None:
            self._events.remove_door(account_id)
        namespace = self._namespaces.pop(account_id, None)
        if namespace is not None:
            self._events.remove_namespace(namespace)

    def close(self) -> None:
        """Before the kernel's events are closed: nothing is told any more."""
        for account_id in list(self._doors):
            self.forget(account_id)

    def catch(self, pid: int) -> Process | None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if has_ended(pidfd):
            os.close(pidfd)
            return None
        return Process(pid, pidfd)

    def gather(self, session: str, call_id: str, pid: int, is_visitor: bool) -> int:
        group, call = self._sessions[session], self._calls[call_id]
        members = [pid]
        for _ in range(_GATHER_ROUNDS):
            born = {child for member in members for child in _children_of(member)} - set(members)
            if not born:
                break
            # What became another call, or was placed by somebody else, is not ours to move.
            known = set((group.cgroup if is_visitor else group.agent).all_process_ids())
            left = born - known if is_visitor else born & known
            if not left:
                break
            for each in left:
                # It may have ended; what it forked shows up again in the next round, or has gone to init.
                with contextlib.suppress(CgroupError):
                    call.place(each)
            members += left
        return len(members) - 1

    def let_be(self, process: Process) -> None:
        try:
            self._events.let_be(process.pidfd)
        except BpfError as error:
            log.debug("process %d: %s", process.pid, error)

    def release(self, pid: int) -> DoorHold | None:
        if not self._holds_ns:
            return None
        try:
            how, began_ns = self._events.let_through(pid)
        except BpfError as error:
            log.warning("process %d stays held, %d ms at most: %s", pid, self._hold_ns // 1_000_000, error)
            return None
        return (
            None if how is PassageHold.NEVER_BEGAN else DoorHold(began_ns // 1000, how is PassageHold.LASTED)
        )

    # ---- the kernel's side

    @property
    def _holds_ns(self) -> int:
        return self._hold_ns if self._keeper.schedules_everybody else 0

    def _tell(self, account_id: int, scope: TransparentScope) -> None:
        self._events.set_door(account_id, _SOURCES[scope], self._holds_ns)

    def _watch_namespace(self, account_id: int, leaf: Cgroup) -> None:
        """Of a container: who enters its mount namespace, but not its cgroup, is told, too."""
        namespace = _mount_namespace_of(_oldest(leaf.all_process_ids()))
        ours = _mount_namespace_of(os.getpid()), _mount_namespace_of(1)
        if namespace is not None and namespace not in ours:
            self._events.set_namespace(namespace, account_id)
            self._namespaces[account_id] = namespace

    def _on_scheduler(self) -> None:
        """It came or went: from now on processes are held, or are not."""
        for account_id, (session, scope) in self._doors.items():
            try:
                self._tell(account_id, scope)
            except BpfError as error:
                log.warning("session %s: how long its door holds is not changed: %s", session, error)

    def _on_exec(self, record: Exec) -> None:
        session, _ = self._doors.get(record.account_id, ("", None))
        if not session:
            return
        parent_pipes = {_pipe_of(record.parent_pid, 0), _pipe_of(record.parent_pid, 1)}
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._knocked(
            Knock(
                session=session,
                pid=record.pid,
                parent_pid=record.parent_pid,
                process_group=record.process_group,
                parent_process_group=record.parent_process_group,
                filename=os.fsdecode(record.filename) or record.command,
                command=tuple(os.fsdecode(argument) for argument in record.arguments),
                is_from_outside=ExecFlag.FROM_OUTSIDE in record.flags,
                is_visitor=ExecFlag.VISITOR in record.flags,
                executed_at_ns=time.time_ns() - (boot_ns - record.at_ns),
                stdin_pipe=_pipe_of(record.pid, 0, but_not=parent_pipes),
                stdout_pipe=_pipe_of(record.pid, 1, but_not=parent_pipes),
                parent_name=_name_of(record.parent_pid),
            )
        )


def _children_of(pid: int) -> set[int]:
    """The children of all its threads (proc_pid_task_tid_children(5)); of one that has ended none."""
    found: set[int] = set()
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError):
            found.update(map(int, (thread / "children").read_text(encoding="ascii").split()))
    return found


def _oldest(pids: Iterable[int]) -> int | None:
    """Who was there first: of a container its init."""
    born: dict[int, float] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            born[pid] = psutil.Process(pid).create_time()
    return min(born, key=born.__getitem__, default=None)


def _mount_namespace_of(pid: int | None) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return None


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _pipe_of(pid: int, fd: int, but_not: Collection[int | None] = ()) -> int | None:
    """The inode of the pipe that the process has as `fd`."""
    try:
        found = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return None
    return found.st_ino if stat.S_ISFIFO(found.st_mode) and found.st_ino not in but_not else None
