"""The cgroups of sessions and calls: which directories there are and what is written into them.

    <root>/<session>/           memory.max, swap, cpu.weight, cpu.max, pids.max of the budget; memory.min of its agent
        agent/                  the agent runtime: memory.min, ten times the CPU weight of all its tools together
        calls/                  memory.max less the agent's share, so that tools fill up here before the agent is in reach
            <call>/             the limits of one call; memory.oom.group, so that the kernel takes it whole
                self/           only when calls nest: where the outer call's own processes live then

No process may stand where controllers are enabled for children (cgroup-v2.rst, "No Internal Process Constraint"), hence
the leaves.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupExists, CgroupGone
from agentcgroup.cgroups.subtree import evacuate
from agentcgroup.cgroups.values import MAX, CpuMax, Limit, Pressure
from agentcgroup.daemon.model import Budget, CallLimits, CallMemory, OomCounters, Usage

AGENT: Final = "agent"
CALLS: Final = "calls"
SELF: Final = "self"
# What limits need, and what is only counted where it is to be had.
CONTROLLERS: Final = frozenset({"memory", "cpu", "pids"})
COUNTED: Final = frozenset({"io"})

# Against 100 for calls/: the runtime must answer its model while its tools burn CPU.
_AGENT_WEIGHT: Final = 1000
_CPU_PERIOD_US: Final = 100_000


def _limit(value: int | None) -> Limit:
    return MAX if value is None else value


def _cpu_max(cpu_milli: int | None) -> CpuMax:
    if cpu_milli is None:
        return CpuMax(MAX, _CPU_PERIOD_US)
    # The kernel takes no quota under 1 ms; a longer period keeps a small share exact.
    period_us = _CPU_PERIOD_US if cpu_milli >= 10 else 1_000_000
    return CpuMax(max(1000, cpu_milli * period_us // 1000), period_us)


def not_enforced(controllers: frozenset[str]) -> tuple[str, ...]:
    """The fields of Limits that need a controller which is not there, each with the cause."""
    fields = {
        "memory": ("memory_max_bytes", "memory_high_bytes", "swap_max_bytes"),
        "cpu": ("cpu_milli", "cpu_weight"),
        "pids": ("pids_max",),
    }
    return tuple(
        f"{name}: no {controller} controller in cgroup v2 on this host"
        for controller, names in fields.items()
        if controller not in controllers
        for name in names
    )


def is_populated(cgroup: Cgroup) -> bool:
    """Whether a live process is in the cgroup or below; one that is gone has none."""
    try:
        return cgroup.is_populated()
    except CgroupGone:
        return False


def usage_of(cgroup: Cgroup) -> Usage:
    """What the cgroup, with everything below, has consumed. A cgroup that is gone has no figures."""
    try:
        cpu = cgroup.read(files.CPU_STAT)
        events = cgroup.read(files.MEMORY_EVENTS)
        pids = cgroup.read(files.PIDS_EVENTS)
        memory_pressure = cgroup.read(files.MEMORY_PRESSURE)
        cpu_pressure = cgroup.read(files.CPU_PRESSURE)
        io = cgroup.read(files.IO_STAT)
        return Usage(
            memory_current_bytes=cgroup.read(files.MEMORY_CURRENT),
            memory_peak_bytes=cgroup.read(files.MEMORY_PEAK),
            swap_peak_bytes=cgroup.read(files.MEMORY_SWAP_PEAK),
            cpu_usage_us=cpu.usage_usec if cpu else None,
            cpu_user_us=cpu.user_usec if cpu else None,
            cpu_system_us=cpu.system_usec if cpu else None,
            cpu_throttled_us=cpu.throttled_usec if cpu else None,
            pids_current=cgroup.read(files.PIDS_CURRENT),
            pids_peak=cgroup.read(files.PIDS_PEAK),
            pids_max_events=pids.max if pids else None,
            memory_high_events=events.high if events else None,
            memory_max_events=events.max if events else None,
            oom_kill_events=events.oom_kill if events else None,
            memory_stall_us=stalled_us(memory_pressure),
            cpu_stall_us=stalled_us(cpu_pressure),
            io_read_bytes=_total(device.rbytes for device in io) if io is not None else None,
            io_write_bytes=_total(device.wbytes for device in io) if io is not None else None,
        )
    except CgroupGone:
        return Usage()


def stalled_us(pressure: Pressure | None) -> int | None:
    """Time in which some task waited; None: this kernel or host does not tell (PSI)."""
    return pressure.some.total_us if pressure is not None and pressure.some is not None else None


def memory_of(cgroup: Cgroup) -> CallMemory:
    """What the cgroup has charged, and how much of that reclaim cannot take (memory.stat, cgroup-v2.rst)."""
    try:
        current, stat = cgroup.read(files.MEMORY_CURRENT), cgroup.read(files.MEMORY_STAT)
    except CgroupGone:
        return CallMemory()
    if stat is None or stat.anon is None:
        return CallMemory(current)
    # `anon` has what is mapped of shared memory not in it; `kernel` has slabs of both kinds.
    parts = (stat.anon, stat.shmem, stat.kernel, stat.sock)
    held = sum(part for part in parts if part is not None) - (stat.slab_reclaimable or 0)
    return CallMemory(current, min(held, current) if current is not None else held)


def _total(counts: Iterable[int | None]) -> int:
    """The sum over all devices; a call that has touched none has read and written nothing."""
    return sum(count for count in counts if count is not None)


def _oom_local(cgroup: Cgroup) -> int | None:
    events = cgroup.read(files.MEMORY_EVENTS_LOCAL)
    return events.oom if events else None


def _oom_locals(cgroups: Iterable[Cgroup]) -> int | None:
    hits = [hit for hit in map(_oom_local, cgroups) if hit is not None]
    return sum(hits) if hits else None


class CallGroup:
    """The cgroup of one call."""

    __slots__ = ("_controllers", "_leaf", "cgroup", "parent")

    def __init__(self, cgroup: Cgroup, parent: "CallGroup | None", controllers: frozenset[str]) -> None:
        """`controllers` are those of `cgroup` itself and, once it is split, of its children."""
        self.cgroup = cgroup
        self._controllers = controllers
        self.parent = parent
        self._leaf: Cgroup | None = None

    @classmethod
    def reopen(cls, cgroup: Cgroup, parent: "CallGroup | None", controllers: frozenset[str]) -> "CallGroup":
        """A call that an earlier daemon has made, with what lasts only as long as a daemon sees to it taken back."""
        group = cls(cgroup, parent, controllers)
        if SELF in cgroup.child_names():
            group._leaf = cgroup.open_child(SELF)
        cgroup.write_if_present(files.MEMORY_LOW, 0)
        return group

    def apply(self, limits: CallLimits, old: CallLimits | None = None) -> None:
        """Writes `limits`; with `old` given only what differs from it."""
        # On the path of every launch: nothing is tried of a controller that is not there, nor written that is so already.
        write = self.cgroup.write_if_present
        if "memory" in self._controllers:
            if old is None:
                write(files.MEMORY_OOM_GROUP, True)
            if old is None or limits.memory_max_bytes != old.memory_max_bytes:
                write(files.MEMORY_MAX, _limit(limits.memory_max_bytes))
            if limits.memory_high_bytes != (old.memory_high_bytes if old else None):
                write(files.MEMORY_HIGH, _limit(limits.memory_high_bytes), nonblocking=True)
            if limits.swap_max_bytes != (old.swap_max_bytes if old else None):
                write(files.MEMORY_SWAP_MAX, _limit(limits.swap_max_bytes))
        if "pids" in self._controllers and limits.pids_max != (old.pids_max if old else None):
            write(files.PIDS_MAX, _limit(limits.pids_max))
        if "cpu" in self._controllers:
            if limits.cpu_milli != (old.cpu_milli if old else None):
                write(files.CPU_MAX, _cpu_max(limits.cpu_milli))
            if limits.cpu_weight != (old.cpu_weight if old else 100):
                write(files.CPU_WEIGHT, limits.cpu_weight)

    def limit_softly(self, high_bytes: int | None) -> None:
        self.cgroup.write_if_present(files.MEMORY_HIGH, _limit(high_bytes), nonblocking=True)

    def place(self, pid: int) -> None:
        (self._leaf or self.cgroup).place(pid)

    def split(self) -> Cgroup:
        """Makes room for nested calls: the call's own processes go to a leaf. Returns the cgroup nested calls go into."""
        if self._leaf is None:
            leaf = self.cgroup.create_child(SELF)
            evacuate(self.cgroup, leaf)
            self.cgroup.enable_controllers(self._controllers)
            self._leaf = leaf
        return self.cgroup

    def oom_counters(self, session: "SessionGroup") -> OomCounters:
        try:
            events = self.cgroup.read(files.MEMORY_EVENTS)
            local = _oom_local(self.cgroup)
            # Its own processes stand in the leaf once there are nested calls.
            own = self._leaf.read(files.MEMORY_EVENTS) if self._leaf is not None else events
        except CgroupGone:
            return OomCounters()
        around = []
        outer = self.parent
        while outer is not None:
            around.append(outer.cgroup)
            outer = outer.parent
        return OomCounters(
            call_oom_kill=events.oom_kill if events else None,
            call_oom_local=local,
            session_oom_local=_oom_locals([session.calls, session.cgroup]),
            own_oom_kill=own.oom_kill if own else None,
            outer_oom_local=_oom_locals(around),
        )

    def kill(self) -> int:
        """Kills everything in the call; how many processes there were."""
        try:
            if not self.cgroup.is_populated():
                return 0
            count = len(self.cgroup.all_process_ids())
            self.cgroup.kill()
        except CgroupGone:
            return 0
        return count

    def remove(self) -> bool:
        if self._leaf is not None:
            self._leaf.close()
        removed = self.cgroup.try_remove_tree()
        self.cgroup.close()
        return removed


@dataclass(slots=True)
class SessionGroup:
    """The cgroups of one session. `is_adopted`: the outermost one is a container's and stays when the session ends."""

    cgroup: Cgroup
    agent: Cgroup
    calls: Cgroup
    is_adopted: bool = False

    @classmethod
    def create(cls, root: Cgroup, name: str, budget: Budget, controllers: frozenset[str]) -> "SessionGroup":
        """Makes the session's tree; leaves nothing behind when a step fails."""
        cgroup = root.create_child(name)
        try:
            return cls._furnish(cgroup, budget, controllers, is_adopted=False)
        except BaseException:
            cgroup.try_remove_tree()
            cgroup.close()
            raise

    @classmethod
    def adopt(cls, cgroup: Cgroup, budget: Budget, controllers: frozenset[str]) -> "SessionGroup":
        """The session's tree inside a container's cgroup; the container's processes become the agent runtime."""
        return cls._furnish(cgroup, budget, controllers, is_adopted=True)

    @classmethod
    def reopen(cls, root: Cgroup, name: str, budget: Budget, controllers: frozenset[str]) -> "SessionGroup":
        """The tree that an earlier daemon has made, with what lasts only as long as a daemon sees to it taken back."""
        cgroup = root.open_child(name)
        group = cls(cgroup, cgroup.open_child(AGENT), cgroup.open_child(CALLS))
        for one in (group.cgroup, group.calls):
            one.enable_controllers(controllers)
        group.settle()
        group.apply(budget, None)
        return group

    def settle(self) -> None:
        """Takes back a mark and protection."""
        self.calls.write_if_present(files.MEMORY_HIGH, MAX)
        for cgroup in (self.cgroup, self.calls):
            cgroup.write_if_present(files.MEMORY_LOW, 0)

    @classmethod
    def _furnish(
        cls, cgroup: Cgroup, budget: Budget, controllers: frozenset[str], *, is_adopted: bool
    ) -> "SessionGroup":
        agent = _child(cgroup, AGENT, may_exist=is_adopted)
        if is_adopted:
            evacuate(cgroup, agent)
        cgroup.enable_controllers(controllers)
        calls = _child(cgroup, CALLS, may_exist=is_adopted)
        calls.enable_controllers(controllers)
        group = cls(cgroup, agent, calls, is_adopted)
        if is_adopted:
            # An earlier daemon may have had it.
            group.settle()
        agent.write_if_present(files.CPU_WEIGHT, _AGENT_WEIGHT)
        group.apply(budget, None)
        return group

    def apply(self, budget: Budget, old: Budget | None) -> None:
        """Writes the budget. A parent grows before its children and shrinks after them."""
        grows = old is None or budget.memory_max_bytes >= old.memory_max_bytes
        own = [(self.cgroup, budget.memory_max_bytes), (self.calls, budget.calls_memory_bytes)]
        for cgroup, memory_max_bytes in own if grows else reversed(own):
            cgroup.write_if_present(files.MEMORY_MAX, memory_max_bytes)
        for cgroup in (self.cgroup, self.agent):
            cgroup.write_if_present(files.MEMORY_MIN, budget.agent_memory_bytes)
        for cgroup in (self.cgroup, self.calls):
            cgroup.write_if_present(files.MEMORY_SWAP_MAX, _limit(budget.swap_max_bytes))
        self.cgroup.write_if_present(files.PIDS_MAX, _limit(budget.pids_max))
        self.cgroup.write_if_present(files.CPU_MAX, _cpu_max(budget.cpu_milli))
        self.cgroup.write_if_present(files.CPU_WEIGHT, budget.cpu_weight)

    def freeze(self, frozen: bool, include_agent: bool) -> None:
        for cgroup in (self.calls, self.agent) if include_agent else (self.calls,):
            if frozen:
                cgroup.freeze()
            else:
                cgroup.thaw()

    def kill(self) -> None:
        for cgroup in (self.calls, self.agent):
            with contextlib.suppress(CgroupGone):
                cgroup.kill()

    def try_remove(self) -> bool:
        """Removes what was made here, killing what is in it; False: something is still dying, try again.

        Of a container only the calls go: its processes live in the agent leaf now and leave with it.
        """
        return self.calls.try_remove_tree() if self.is_adopted else self.cgroup.try_remove_tree()

    def close(self) -> None:
        for cgroup in (self.calls, self.agent, self.cgroup):
            cgroup.close()


def _child(parent: Cgroup, name: str, *, may_exist: bool) -> Cgroup:
    try:
        return parent.create_child(name)
    except CgroupExists:
        if not may_exist:
            raise
        return parent.open_child(name)
