"""What the kernel tells as it happens, through BPF programs: ends with their status, OOM victims, books on each call.

One owner of the loaded programs. They are attached from construction to `close`, and gone with the daemon however it
ends: nothing is pinned. A host without them works on cgroup files alone and says what it cannot see.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import psutil

from agentcgroup.bpf.abi import DoorSource, EventKind, ExecFlag, PassageHold
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.lifecycle import LOSSES as LIFECYCLE_LOSSES, Books, Lifecycle
from agentcgroup.bpf.records import Arrival, Exec, Exit, Fork, OomVictim as OomRecord, Record, Throttle
from agentcgroup.bpf.shared_maps import SharedMaps
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.host import memory
from agentcgroup.daemon.host.capabilities import rows
from agentcgroup.daemon.host.exits import decode_wait_status
from agentcgroup.daemon.host.prepare import HostUnfit
from agentcgroup.daemon.model import Capability, ExitStatus, Growth, OomVictim, Tier, Usage

__all__ = ["LOSSES", "KernelEvents", "open_kernel_events"]

log = logging.getLogger("agentcgroup.host")

# What may be lost, by cause.
LOSSES: Final = (*LIFECYCLE_LOSSES, *memory.LOSSES)

# What the daemon acts on at once; everything else is read from the books when a call ends.
_KINDS: Final = (EventKind.EXIT, EventKind.OOM_VICTIM)
# Records handled before the loop may do other things.
_BATCH: Final = 512
# include/linux/proc_ns.h, PROC_PID_INIT_INO: the programs see pids of the initial namespace.
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
# The root, and for each session and each call one.
_ACCOUNTS_SPARE: Final = 64


def open_kernel_events(
    config: Config, capabilities: tuple[Capability, ...], root: Cgroup, shared: SharedMaps | None = None
) -> "KernelEvents | None":
    """The programs, attached; None where they are switched off or the kernel will not have them.

    `shared`: the map of holds, which the scheduler has too. Raises HostUnfit where `bpf.enabled` is "on" and they cannot
    be attached.
    """
    if config.bpf.enabled == "off" or config.daemon.dry_run:
        return None
    missing = [one for one in capabilities if one.name in rows.TIER_NEEDS[Tier.BPF] and not one.available]
    reason = "; ".join(f"{one.name}: {one.detail}" for one in missing)
    if not missing:
        try:
            return KernelEvents(config, root, shared)
        except OSError as error:
            reason = str(error)
    if config.bpf.enabled == "on":
        raise HostUnfit(
            f"bpf.enabled is 'on', but BPF programs cannot be loaded: {reason}. "
            "`agentcg check` says what to do about each; with 'auto' the daemon runs without them"
        )
    log.info("no kernel events, calls are watched by cgroup files alone: %s", reason)
    return None


class KernelEvents:
    """Lives on the event loop. Books are kept by cgroup id, so a cgroup's name means nothing here."""

    def __init__(self, config: Config, root: Cgroup, shared: SharedMaps | None = None) -> None:
        """Raises BpfError when the kernel will not have the programs, OSError when they are not installed."""
        self._on_exit: Callable[[int, ExitStatus], None] | None = None
        accounts_max = config.host.calls_max + config.host.sessions_max + _ACCOUNTS_SPARE
        self._on_knock: Callable[[Exec], None] | None = None
        self._lifecycle = Lifecycle(
            self._on_record,
            accounts_max=accounts_max,
            ring_bytes=max(config.bpf.ring, os.sysconf("SC_PAGE_SIZE")),
            kinds=_KINDS,
            # The daemon waits for main processes only, and these all come into their call from outside.
            with_children=False,
            daemon_pid=os.getpid(),
            shared=shared,
        )
        capacity_bytes = config.host.memory or psutil.virtual_memory().total
        self.memory = memory.open_memory_watch(config.bpf, accounts_max, root.id, capacity_bytes, shared)
        self.open_books(root)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._lifecycle.fileno(), self._on_readable)
        if self.memory is not None:
            self._loop.add_reader(self.memory.fileno(), self.memory.drain)
        for unseen in self._lifecycle.unseen:
            log.info("kernel events: not seen: %s", unseen)
        log.info("kernel events: %s attached", ", ".join(self._lifecycle.attached))

    @property
    def sees_our_pids(self) -> bool:
        """Whether a pid of the programs is the pid that this process knows: both live in the initial namespace."""
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE

    def listen(self, on_exit: Callable[[int, ExitStatus], None]) -> None:
        """`on_exit` is called, from `drain` and from the loop, with each process that ended."""
        self._on_exit = on_exit

    def listen_at_door(self, on_exec: Callable[[Exec], None]) -> None:
        """`on_exec` is called from the loop, and not from `drain`, with each exec at a door."""
        self._on_knock = on_exec

    def drain(self) -> None:
        """Handles what is waiting. An end is in the ring before its pidfd becomes readable."""
        self._lifecycle.drain(_BATCH)

    def lost(self) -> tuple[tuple[str, int], ...]:
        """What did not reach the daemon since its start, by cause."""
        lost = tuple(self._lifecycle.lost().items())
        return lost + (self.memory.lost() if self.memory else tuple((cause, 0) for cause in memory.LOSSES))

    def memory_growth(self) -> dict[int, Growth]:
        """By cgroup id; empty where the kernel does not tell."""
        return self.memory.growth() if self.memory else {}

    def growth_bytes_per_s(self, cgroup_id: int) -> int | None:
        """Of one cgroup, around its last charge; None where the kernel does not tell."""
        return self.memory.rate_bytes_per_s(cgroup_id) if self.memory is not None else None

    def close(self) -> None:
        """Detaches and unloads everything."""
        self._loop.remove_reader(self._lifecycle.fileno())
        self._lifecycle.close()
        if self.memory is not None:
            self._loop.remove_reader(self.memory.fileno())
            self.memory.close()

    # ---- books

    def open_books(self, cgroup: Cgroup, soft_limit_bytes: int = 0) -> None:
        """From now on; before the first process is in it, so that none is missed. Failure costs figures, not the call.

        `soft_limit_bytes`: what counts as more than it should use where memory.high is not set; 0: nothing does.
        """
        if self.memory is not None:
            self.memory.open(cgroup.id, soft_limit_bytes)
        try:
            self._lifecycle.open_account(cgroup.id)
        except BpfError as error:
            if error.errno != errno.EEXIST:
                log.warning("%s: no books are kept on it: %s", cgroup.path, error)

    def close_books(self, cgroup_id: int) -> None:
        """The last reader has read."""
        self._lifecycle.close_account(cgroup_id)
        if self.memory is not None:
            self.memory.close_account(cgroup_id)

    def with_books(self, usage: Usage, cgroup_id: int) -> Usage:
        """`usage` with what the books say."""
        books = self._lifecycle.read_account(cgroup_id)
        if books is not None:
            usage = _completed(usage, books)
        return usage if self.memory is None else self.memory.completed(usage, cgroup_id)

    def victim(self, cgroup_id: int) -> OomVictim | None:
        """The first process in the cgroup that the OOM killer chose; None when it chose none, or is not seen."""
        books = self._lifecycle.read_account(cgroup_id)
        first = books.first_victim if books else None
        if books is None or first is None:
            return None
        return OomVictim(
            pid=first.pid,
            command=first.command,
            trigger_pid=first.trigger_pid,
            trigger_command=first.trigger_command,
            anonymous_bytes=first.anonymous_bytes,
            count=books.oom_victims,
        )

    # ---- doors

    def set_door(self, account_id: int, sources: DoorSource, hold_ns: int) -> None:
        """See Lifecycle.set_door. Raises BpfError."""
        self._lifecycle.set_door(account_id, sources, hold_ns)

    def remove_door(self, account_id: int) -> None:
        self._lifecycle.remove_door(account_id)

    def set_namespace(self, mount_namespace: int, account_id: int) -> None:
        """See Lifecycle.set_namespace. Raises BpfError."""
        self._lifecycle.set_namespace(mount_namespace, account_id)

    def remove_namespace(self, mount_namespace: int) -> None:
        self._lifecycle.remove_namespace(mount_namespace)

    def let_be(self, pidfd: int) -> None:
        """No door is told of this process and of what it forks. Raises BpfError."""
        self._lifecycle.let_be(pidfd)

    def let_through(self, pid: int) -> tuple[PassageHold, int]:
        """See Lifecycle.let_through. Raises BpfError."""
        return self._lifecycle.let_through(pid)

    # ---- records

    def _on_readable(self) -> None:
        self.drain()

    def _on_record(self, record: Record) -> None:
        match record:
            case Exit():
                if self._on_exit is not None:
                    self._on_exit(record.pid, decode_wait_status(record.wait_status))
            case OomRecord():
                log.warning(
                    "out of memory: the kernel kills %s (pid %d, cgroup id %d) for an allocation of %s (pid %d)",
                    record.command,
                    record.pid,
                    record.cgroup_id,
                    record.trigger_command,
                    record.trigger_pid,
                )
            case Exec() if ExecFlag.AT_DOOR in record.flags and self._on_knock is not None:
                # Not from here: who drains is in the middle of what ended processes are to be told.
                self._loop.call_soon(self._on_knock, record)
            case Fork() | Exec() | Arrival() | Throttle():
                # Not asked for; see _KINDS.
                pass


def _completed(usage: Usage, books: Books) -> Usage:
    return replace(
        usage,
        memory_throttled_us=None if books.throttled_ns is None else books.throttled_ns // 1000,
        processes=books.arrivals + books.forks,
        forks=books.forks,
        longest_child_us=books.longest_child_ns // 1000,
    )
