"""The lifecycle programs as one object: accounts of cgroups, records as they come, losses. See lifecycle.bpf.c."""

import ctypes
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from agentcgroup.bpf import abi, map_entries
from agentcgroup.bpf.abi import DoorSource, EventKind, PassageHold
from agentcgroup.bpf.programs import YOUNG, Absent, Programs, object_path
from agentcgroup.bpf.records import Record, command_name, decode
from agentcgroup.bpf.shared_maps import SharedMaps

__all__ = ["LOSSES", "Books", "FirstVictim", "Lifecycle"]

# What a kernel may lack: functions that may be traced, not tracepoints.
_OPTIONAL: Final = ("fentry/", "fexit/")
# One of them is attached where the time in memory.high throttling is seen; the function's name differs by kernel.
_THROTTLE_ENDS: Final = frozenset({"on_throttle_end", "on_older_throttle_end"})

# What can be lost: records by kind; where a process belongs, an argument list, a cgroup that lies too deep, and events
# that came while the same program was running on that CPU.
LOSSES: Final = (*(kind.name.lower() for kind in EventKind), "home", "arguments", "depth", "missed")
_UNKNOWN: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FirstVictim:
    """The first process of an account that the OOM killer chose. None: this kernel does not say."""

    pid: int
    command: str
    trigger_pid: int
    trigger_command: str
    limit_cgroup_id: int | None
    anonymous_bytes: int | None


@dataclass(frozen=True, slots=True)
class Books:
    """What an account and everything below it did since it was opened. None: this kernel does not say."""

    forks: int
    arrivals: int
    execs: int
    exits: int
    throttles: int | None
    throttled_ns: int | None
    longest_child_ns: int
    oom_victims: int
    first_victim: FirstVictim | None


class Lifecycle:
    """Loaded and attached from construction to `close`. Raises BpfError when the kernel will not have it."""

    def __init__(
        self,
        receive: Callable[[Record], None],
        *,
        accounts_max: int = 8192,
        ring_bytes: int = 1 << 20,
        kinds: Collection[EventKind] = tuple(EventKind),
        with_children: bool = True,
        daemon_pid: int = 0,
        shared: SharedMaps | None = None,
    ) -> None:
        """`receive` is called from `drain`. `kinds`: which records are sent; accounts are kept in any case.

        `with_children` False: of ends, only those of processes that were not forked inside their account.
        `ring_bytes` is a power of two and a multiple of the page size. `daemon_pid`, of the initial pid namespace: whom
        that process moves into an account is its agent runtime, of which no door is told. `shared`: the map of holds.
        """
        self._receive = receive
        mask = sum(1 << kind for kind in set(kinds))
        self._programs = Programs(
            object_path("lifecycle"),
            knobs={"knobs": abi.LifecycleKnobs(mask, int(with_children), daemon_pid)},
            sizes={"accounts": accounts_max, "events": ring_bytes},
            optional=_OPTIONAL,
            shared=shared,
        )
        try:
            self._accounts = self._programs.hash_map("accounts", abi.Account)
            self._doors = self._programs.hash_map("doors", abi.Door)
            self._namespaces = self._programs.hash_map("door_namespaces", abi.AccountId)
            self._losses = self._programs.array_map("losses", abi.Losses)
            self._ring = self._programs.ring("events", self._on_record)
            self._programs.attach()
        except BaseException:
            self._programs.close()
            raise
        self._sees_throttling = not _THROTTLE_ENDS.isdisjoint(self._programs.attached)

    def close(self) -> None:
        """Detaches and unloads. Safe to call twice."""
        self._programs.close()

    @property
    def attached(self) -> tuple[str, ...]:
        return self._programs.attached

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Programs that this kernel does not take, with the reason."""
        return self._programs.absent

    @property
    def unseen(self) -> tuple[str, ...]:
        """What these programs cannot tell on this kernel, each with the reason."""
        found = []
        reasons = {one.name: one.reason for one in self.absent}
        if not self._sees_throttling:
            found.append(f"time in memory.high throttling: {reasons.get('on_throttle_end', 'not attached')}")
        if "on_oom_kill" in reasons:
            found.append(f"whose limit an out-of-memory kill was for: {reasons['on_oom_kill']}")
        if YOUNG in reasons:
            found.append(
                f"when a process goes back to user mode, so that holds begin late: {reasons[YOUNG]}"
            )
        return tuple(found)

    # ---- accounts

    def open_account(self, cgroup_id: int) -> None:
        """Keeps books on the cgroup from now on. Raises BpfError: EEXIST, or E2BIG when there are too many."""
        self._accounts.put_new(cgroup_id, abi.Account())

    def read_account(self, cgroup_id: int) -> Books | None:
        """None: there are no books on it."""
        account = self._accounts.get(cgroup_id)
        return None if account is None else self._books(account)

    def close_account(self, cgroup_id: int) -> Books | None:
        """The last figures, and no more are kept."""
        account = self._accounts.pop(cgroup_id)
        return None if account is None else self._books(account)

    def _books(self, account: abi.Account) -> Books:
        return Books(
            forks=account.forks,
            arrivals=account.arrivals,
            execs=account.execs,
            exits=account.exits,
            throttles=account.throttles if self._sees_throttling else None,
            throttled_ns=account.throttled_ns if self._sees_throttling else None,
            longest_child_ns=account.longest_child_ns,
            oom_victims=account.oom_victims,
            first_victim=_first_victim(account),
        )

    # ---- doors

    def set_door(self, account_id: int, sources: DoorSource, hold_ns: int = 0) -> None:
        """From now on execs of `sources` in the account itself, not in those within, are told with ExecFlag.AT_DOOR.

        `hold_ns`: the scheduler keeps each off its CPU so long at most, see holds.bpf.h; 0: not at all. Raises BpfError.
        """
        self._doors.put(account_id, abi.Door(hold_ns, int(sources)))

    def remove_door(self, account_id: int) -> None:
        self._doors.delete(account_id)

    def set_namespace(self, mount_namespace: int, account_id: int) -> None:
        """Who executes a program in this mount namespace, and lives in no account, stands at the account's door.

        `mount_namespace`: the inode of /proc/PID/ns/mnt. Raises BpfError.
        """
        self._namespaces.put(mount_namespace, abi.AccountId(account_id))

    def remove_namespace(self, mount_namespace: int) -> None:
        self._namespaces.delete(mount_namespace)

    def let_be(self, pidfd: int) -> None:
        """No door is told of this process, nor of what it forks from now on. Raises BpfError: it has ended."""
        map_entries.update(self._programs.map_fd("let_be"), ctypes.c_int(pidfd), abi.Mark(1))

    def let_through(self, pid: int) -> tuple[PassageHold, int]:
        """Ends the hold of a process at its door: how it was, and how many ns after the exec it began. Raises BpfError."""
        passage = abi.Passage(pid)
        self._programs.run("let_through", passage)
        return PassageHold(passage.hold), passage.waited_ns

    # ---- records

    def fileno(self) -> int:
        """Readable when there are records."""
        return self._ring.fileno()

    def drain(self, at_most: int = 1024) -> int:
        """Hands waiting records to `receive`; how many there were."""
        return self._ring.drain(at_most)

    def lost(self) -> dict[str, int]:
        """What was lost since the start, by LOSSES."""
        losses = self._losses[0]
        records = (losses.records[kind] for kind in EventKind)
        missed = self._programs.recursion_misses()
        return dict(
            zip(LOSSES, (*records, losses.homes, losses.arguments, losses.depth, missed), strict=True)
        )

    def _on_record(self, data: bytes) -> None:
        self._receive(decode(data))


def _first_victim(account: abi.Account) -> FirstVictim | None:
    if not account.oom_victims:
        return None
    return FirstVictim(
        pid=account.oom_victim_pid,
        command=command_name(account.oom_victim_comm),
        trigger_pid=account.oom_trigger_pid,
        trigger_command=command_name(account.oom_trigger_comm),
        limit_cgroup_id=account.oom_limit_cgroup_id or None,
        anonymous_bytes=None if account.oom_anonymous_bytes == _UNKNOWN else account.oom_anonymous_bytes,
    )
