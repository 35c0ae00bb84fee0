"""The values that interface files hold, as frozen dataclasses.

Attribute names are the kernel's own keys; ``_usec``/``_us`` is microseconds and memory is bytes unless a
line says otherwise. ``None`` means that this kernel does not print that line: unknown is never zero.
:data:`MAX` is the kernel's word ``max``: no limit. Source: Documentation/admin-guide/cgroup-v2.rst, chapter
5.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class Max(Enum):
    """The type of :data:`MAX`.

    It is greater than every number, so ``min(limit, 512)`` means what it says.
    """

    MAX = "max"

    def __str__(self) -> str:
        return "max"

    def __lt__(self, other: object) -> bool:
        return False if isinstance(other, int | float | Max) else NotImplemented

    def __le__(self, other: object) -> bool:
        return isinstance(other, Max) if isinstance(other, int | float | Max) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return not isinstance(other, Max) if isinstance(other, int | float | Max) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return True if isinstance(other, int | float | Max) else NotImplemented


MAX: Final = Max.MAX
"""No limit: the word ``max`` of an interface file."""

Limit = int | Max
"""A number, or :data:`MAX`."""


class Controller(StrEnum):
    """The controllers whose interface files this package describes.

    Kernels list others too; those stay strings.
    """

    CPU = "cpu"
    CPUSET = "cpuset"
    IO = "io"
    MEMORY = "memory"
    PIDS = "pids"


class CgroupType(StrEnum):
    """cgroup.type."""

    DOMAIN = "domain"
    DOMAIN_THREADED = "domain threaded"
    DOMAIN_INVALID = "domain invalid"
    THREADED = "threaded"


@dataclass(frozen=True, slots=True)
class CgroupEvents:
    """cgroup.events. ``populated``: a live process is in this cgroup or below it."""

    populated: bool
    frozen: bool | None = None


@dataclass(frozen=True, slots=True)
class SubsystemCount:
    """Live and dying cgroups of one controller at and below a cgroup (kernel 6.12)."""

    controller: str
    live: int | None = None
    dying: int | None = None


@dataclass(frozen=True, slots=True)
class CgroupStat:
    """cgroup.stat. Dying cgroups were removed but still hold memory that the kernel has not let go."""

    nr_descendants: int | None = None
    nr_dying_descendants: int | None = None
    subsystems: tuple[SubsystemCount, ...] = ()


@dataclass(frozen=True, slots=True)
class CgroupStatLocal:
    """cgroup.stat.local (kernel 6.18)."""

    frozen_usec: int | None = None


@dataclass(frozen=True, slots=True)
class CpuMax:
    """cpu.max: at most ``quota_us`` of CPU time in every ``period_us``; :data:`MAX` is no limit."""

    quota_us: Limit
    period_us: int = 100_000

    @classmethod
    def from_cpus(cls, cpu_milli: int, period_us: int = 100_000) -> "CpuMax":
        """``cpu_milli`` thousandths of one CPU.

        1500 is one and a half. The kernel's smallest quota is 1000 us.
        """
        return cls(max(1_000, cpu_milli * period_us // 1_000), period_us)


@dataclass(frozen=True, slots=True)
class CpuStat:
    """cpu.stat. The first four exist without the controller; the rest are None unless it is enabled here."""

    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    nice_usec: int | None = None
    core_sched_force_idle_usec: int | None = None
    nr_periods: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    nr_bursts: int | None = None
    burst_usec: int | None = None


@dataclass(frozen=True, slots=True)
class CpuStatLocal:
    """cpu.stat.local: throttling by this cgroup or an ancestor, without its descendants (kernel 6.6)."""

    throttled_usec: int | None = None


class PartitionKind(StrEnum):
    """The states of cpuset.cpus.partition."""

    MEMBER = "member"
    ROOT = "root"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True)
class CpusetPartition:
    """cpuset.cpus.partition. ``invalid_reason`` is the kernel's text when the partition is not in effect."""

    kind: PartitionKind
    invalid_reason: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """memory.events and memory.events.local: how often each thing happened.

    ``high``: throttled over memory.high. ``max``: charge failed at memory.max. ``oom``: reclaim could not
    help. ``oom_kill``: processes killed. ``oom_group_kill``: whole cgroups killed (kernel 5.17).
    """

    low: int | None = None
    high: int | None = None
    max: int | None = None
    oom: int | None = None
    oom_kill: int | None = None
    oom_group_kill: int | None = None
    sock_throttled: int | None = None


@dataclass(frozen=True, slots=True)
class MemorySwapEvents:
    """memory.swap.events. ``fail``: no swap slot could be had."""

    high: int | None = None
    max: int | None = None
    fail: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryStat:
    """memory.stat. First amounts in bytes, then (from ``workingset_``) counts of pages or events."""

    anon: int | None = None
    file: int | None = None
    kernel: int | None = None
    kernel_stack: int | None = None
    pagetables: int | None = None
    sec_pagetables: int | None = None
    percpu: int | None = None
    sock: int | None = None
    vmalloc: int | None = None
    shmem: int | None = None
    zswap: int | None = None
    zswapped: int | None = None
    file_mapped: int | None = None
    file_dirty: int | None = None
    file_writeback: int | None = None
    swapcached: int | None = None
    anon_thp: int | None = None
    file_thp: int | None = None
    shmem_thp: int | None = None
    inactive_anon: int | None = None
    active_anon: int | None = None
    inactive_file: int | None = None
    active_file: int | None = None
    unevictable: int | None = None
    slab_reclaimable: int | None = None
    slab_unreclaimable: int | None = None
    slab: int | None = None
    hugetlb: int | None = None
    workingset_refault_anon: int | None = None
    workingset_refault_file: int | None = None
    workingset_activate_anon: int | None = None
    workingset_activate_file: int | None = None
    workingset_restore_anon: int | None = None
    workingset_restore_file: int | None = None
    workingset_nodereclaim: int | None = None
    pswpin: int | None = None
    pswpout: int | None = None
    pgscan: int | None = None
    pgsteal: int | None = None
    pgscan_kswapd: int | None = None
    pgscan_direct: int | None = None
    pgscan_khugepaged: int | None = None
    pgscan_proactive: int | None = None
    pgsteal_kswapd: int | None = None
    pgsteal_direct: int | None = None
    pgsteal_khugepaged: int | None = None
    pgsteal_proactive: int | None = None
    pgfault: int | None = None
    pgmajfault: int | None = None
    pgrefill: int | None = None
    pgactivate: int | None = None
    pgdeactivate: int | None = None
    pglazyfree: int | None = None
    pglazyfreed: int | None = None
    swpin_zero: int | None = None
    swpout_zero: int | None = None
    zswpin: int | None = None
    zswpout: int | None = None
    zswpwb: int | None = None
    zswap_incomp: int | None = None
    thp_fault_alloc: int | None = None
    thp_collapse_alloc: int | None = None
    thp_swpout: int | None = None
    thp_swpout_fallback: int | None = None
    numa_pages_migrated: int | None = None
    numa_pte_updates: int | None = None
    numa_hint_faults: int | None = None
    pgpromote_success: int | None = None
    pgdemote_kswapd: int | None = None
    pgdemote_direct: int | None = None
    pgdemote_khugepaged: int | None = None
    pgdemote_proactive: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryNumaStat:
    """One line of memory.numa_stat: a key of memory.stat and its amount on each node, as (node, value)."""

    key: str
    nodes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Reclaim:
    """What one write to memory.reclaim came to.

    ``is_complete`` is False when the kernel answered EAGAIN: it freed less than was asked. ``freed_bytes``
    is the fall of memory.current over the write, so what the cgroup allocated meanwhile counts against it;
    None when unreadable.
    """

    requested_bytes: int
    is_complete: bool
    freed_bytes: int | None


@dataclass(frozen=True, slots=True)
class PidsEvents:
    """pids.events and pids.events.local. ``max``: forks refused at pids.max."""

    max: int | None = None


class PressureKind(StrEnum):
    """The two lines of a pressure file: some tasks stalled, or all of them at once."""

    SOME = "some"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class PressureLine:
    """Share of wall time stalled, in percent over 10, 60 and 300 seconds, and the total in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """A ``*.pressure`` file (Documentation/accounting/psi.rst).

    A line this kernel does not print is None.
    """

    some: PressureLine | None = None
    full: PressureLine | None = None


@dataclass(frozen=True, slots=True, order=True)
class DeviceNumber:
    """A block device as the io files name it: ``major:minor``."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class IoStat:
    """One line of io.stat.

    ``device`` None is one that was removed. Times of the cost model are microseconds.
    """

    device: DeviceNumber | None
    rbytes: int | None = None
    wbytes: int | None = None
    rios: int | None = None
    wios: int | None = None
    dbytes: int | None = None
    dios: int | None = None
    cost_usage: int | None = None
    cost_wait: int | None = None
    cost_indebt: int | None = None
    cost_indelay: int | None = None


@dataclass(frozen=True, slots=True)
class IoMax:
    """One line of io.max: bytes and operations per second. None leaves that limit as it is when written."""

    device: DeviceNumber
    rbps: Limit | None = None
    wbps: Limit | None = None
    riops: Limit | None = None
    wiops: Limit | None = None


@dataclass(frozen=True, slots=True)
class IoWeight:
    """One line of io.weight, 1 to 10000.

    ``device`` None is the default; ``weight`` None removes an override.
    """

    device: DeviceNumber | None
    weight: int | None


@dataclass(frozen=True, slots=True)
class IoLatency:
    """One line of io.latency: the latency target of a device; 0 removes it."""

    device: DeviceNumber
    target_us: Limit


class IoPriorityClass(StrEnum):
    """io.prio.class."""

    NO_CHANGE = "no-change"
    PROMOTE_TO_RT = "promote-to-rt"
    RESTRICT_TO_BE = "restrict-to-be"
    IDLE = "idle"
    NONE_TO_RT = "none-to-rt"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """One line of io.cost.qos or io.cost.model.

    The keys of a device as text, since the set of keys is open.
    """

    device: DeviceNumber
    settings: tuple[tuple[str, str], ...]
