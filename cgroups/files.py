"""Every interface file of the core, cpu, cpuset, io, memory and pids, one row each.

A row is the whole knowledge about a file: its name, the controller that must be enabled for it to exist
(None: it exists in every cgroup), its type, and its text format. ``cgroup.read(files.MEMORY_EVENTS)`` is a
``MemoryEvents | None``. Source: Documentation/admin-guide/cgroup-v2.rst sections 4-3 and 5; releases in
comments are the first that have the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeVar

from agentcgroup.cgroups import device_formats, formats
from agentcgroup.cgroups.values import (
    CgroupStatLocal,
    CgroupType,
    Controller,
    CpuStat,
    CpuStatLocal,
    IoPriorityClass,
    Limit,
    Max,
    MemoryEvents,
    MemoryStat,
    MemorySwapEvents,
    PidsEvents,
    Pressure,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InterfaceFile(Generic[T]):
    """One interface file whose content is a ``T``.

    ``parse`` and ``format`` raise :class:`ValueError` for text or values that do not fit.
    ``is_line_by_line``: the kernel takes one line per write(2), so a value of several lines needs several
    writes.
    """

    name: str
    controller: Controller | None
    parse: Callable[[str], T]
    format: Callable[[T], str]
    writable: bool = True
    readable: bool = True
    is_line_by_line: bool = False

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _unwritable(value: object) -> NoReturn:
    raise ValueError(f"the kernel takes no value here, so not {value!r} either")


def _unreadable(text: str) -> NoReturn:
    raise ValueError("the kernel gives no value here")


def _read_only(name: str, controller: Controller | None, parse: Callable[[str], T]) -> InterfaceFile[T]:
    return InterfaceFile(name, controller, parse, _unwritable, writable=False)


def _count(name: str, controller: Controller | None) -> InterfaceFile[int]:
    return InterfaceFile(name, controller, formats.parse_count, formats.format_count)


def _limit(name: str, controller: Controller | None) -> InterfaceFile[Limit]:
    return InterfaceFile(name, controller, formats.parse_limit, formats.format_limit)


def _switch(name: str, controller: Controller | None) -> InterfaceFile[bool]:
    return InterfaceFile(name, controller, formats.parse_switch, formats.format_switch)


def _percent(name: str) -> InterfaceFile[float | Max]:
    return InterfaceFile(name, Controller.CPU, formats.parse_percent, formats.format_percent)


def _ids(name: str) -> InterfaceFile[tuple[int, ...]]:
    return InterfaceFile(name, None, formats.parse_ids, formats.format_ids, is_line_by_line=True)


def _ranges(name: str) -> InterfaceFile[frozenset[int]]:
    return InterfaceFile(name, Controller.CPUSET, formats.parse_ranges, formats.format_ranges)


def _pressure(name: str) -> InterfaceFile[Pressure]:
    # The kernel also takes writes here; they make a trigger that lives as long as the open file. See
    # watch.PsiTrigger.
    return _read_only(name, None, formats.parse_pressure)


_cpu, _cpuset, _io, _memory, _pids = (
    Controller.CPU,
    Controller.CPUSET,
    Controller.IO,
    Controller.MEMORY,
    Controller.PIDS,
)
_parse_type, _format_type = formats.choice(CgroupType)
_parse_priority, _format_priority = formats.choice(IoPriorityClass)
_parse_memory_events = formats.flat_keyed(MemoryEvents)
_parse_pids_events = formats.flat_keyed(PidsEvents)

# ---- core -------------------------------------------------------------------------------------------------

CGROUP_TYPE: Final = InterfaceFile("cgroup.type", None, _parse_type, _format_type)
CGROUP_PROCS: Final = _ids("cgroup.procs")
CGROUP_THREADS: Final = _ids("cgroup.threads")
CGROUP_CONTROLLERS: Final = _read_only("cgroup.controllers", None, formats.parse_words)
CGROUP_SUBTREE_CONTROL: Final = InterfaceFile(
    "cgroup.subtree_control", None, formats.parse_words, formats.format_enable
)
"""Writing a set enables its controllers and disables none."""
CGROUP_EVENTS: Final = _read_only("cgroup.events", None, formats.parse_cgroup_events)
CGROUP_MAX_DESCENDANTS: Final = _limit("cgroup.max.descendants", None)
CGROUP_MAX_DEPTH: Final = _limit("cgroup.max.depth", None)
CGROUP_STAT: Final = _read_only("cgroup.stat", None, formats.parse_cgroup_stat)
CGROUP_STAT_LOCAL: Final = _read_only("cgroup.stat.local", None, formats.flat_keyed(CgroupStatLocal))  # 6.18
CGROUP_FREEZE: Final = _switch("cgroup.freeze", None)  # 5.2
CGROUP_KILL: Final[InterfaceFile[bool]] = InterfaceFile(  # 5.14
    "cgroup.kill", None, _unreadable, formats.format_trigger, readable=False
)
CGROUP_PRESSURE: Final = _switch("cgroup.pressure", None)  # 6.1
IRQ_PRESSURE: Final = _pressure("irq.pressure")  # 6.1, with CONFIG_IRQ_TIME_ACCOUNTING

# ---- cpu --------------------------------------------------------------------------------------------------

CPU_STAT: Final = _read_only(  # in every cgroup; the controller only adds lines
    "cpu.stat",
    None,
    formats.flat_keyed(CpuStat, [("core_sched.force_idle_usec", "core_sched_force_idle_usec")]),
)
CPU_STAT_LOCAL: Final = _read_only("cpu.stat.local", None, formats.flat_keyed(CpuStatLocal))  # 6.6
CPU_WEIGHT: Final = _count("cpu.weight", _cpu)
"""1 to 10000, 100 when not set; while cpu.idle is on it reads as 0 or, on newer kernels, as 1."""
CPU_WEIGHT_NICE: Final = InterfaceFile("cpu.weight.nice", _cpu, formats.parse_signed, formats.format_signed)
CPU_MAX: Final = InterfaceFile("cpu.max", _cpu, formats.parse_cpu_max, formats.format_cpu_max)
CPU_MAX_BURST: Final = _count("cpu.max.burst", _cpu)  # 5.14
CPU_IDLE: Final = _switch("cpu.idle", _cpu)  # 5.15
CPU_UCLAMP_MIN: Final = _percent("cpu.uclamp.min")
CPU_UCLAMP_MAX: Final = _percent("cpu.uclamp.max")
CPU_PRESSURE: Final = _pressure("cpu.pressure")

# ---- memory -----------------------------------------------------------------------------------------------

MEMORY_CURRENT: Final = _read_only("memory.current", _memory, formats.parse_count)
MEMORY_MIN: Final = _limit("memory.min", _memory)
MEMORY_LOW: Final = _limit("memory.low", _memory)
MEMORY_HIGH: Final = _limit("memory.high", _memory)
MEMORY_MAX: Final = _limit("memory.max", _memory)
MEMORY_RECLAIM: Final[InterfaceFile[int]] = InterfaceFile(  # 5.19
    "memory.reclaim", _memory, _unreadable, formats.format_count, readable=False
)
# Since 6.12 a write resets the peak, but only for later reads through the same open file, which this row
# never has.
MEMORY_PEAK: Final = _read_only("memory.peak", _memory, formats.parse_count)  # 5.19
MEMORY_OOM_GROUP: Final = _switch("memory.oom.group", _memory)
# With memory.oom.group the task that was chosen first is counted by oom_kill a second time when the group is
# killed and its memory is not gone yet (seen on 7.3), so oom_kill is at least, not exactly, the number of
# processes killed.
MEMORY_EVENTS: Final = _read_only("memory.events", _memory, _parse_memory_events)
MEMORY_EVENTS_LOCAL: Final = _read_only("memory.events.local", _memory, _parse_memory_events)
MEMORY_STAT: Final = _read_only("memory.stat", _memory, formats.flat_keyed(MemoryStat))
MEMORY_NUMA_STAT: Final = _read_only("memory.numa_stat", _memory, formats.parse_numa_stat)
MEMORY_SWAP_CURRENT: Final = _read_only("memory.swap.current", _memory, formats.parse_count)
MEMORY_SWAP_HIGH: Final = _limit("memory.swap.high", _memory)
MEMORY_SWAP_MAX: Final = _limit("memory.swap.max", _memory)
MEMORY_SWAP_PEAK: Final = _read_only("memory.swap.peak", _memory, formats.parse_count)  # 6.5
MEMORY_SWAP_EVENTS: Final = _read_only("memory.swap.events", _memory, formats.flat_keyed(MemorySwapEvents))
MEMORY_ZSWAP_CURRENT: Final = _read_only("memory.zswap.current", _memory, formats.parse_count)
MEMORY_ZSWAP_MAX: Final = _limit("memory.zswap.max", _memory)
MEMORY_ZSWAP_WRITEBACK: Final = _switch("memory.zswap.writeback", _memory)  # 6.8
MEMORY_PRESSURE: Final = _pressure("memory.pressure")

# ---- io ---------------------------------------------------------------------------------------------------

IO_STAT: Final = _read_only("io.stat", _io, device_formats.parse_io_stat)
IO_MAX: Final = InterfaceFile(
    "io.max", _io, device_formats.parse_io_max, device_formats.format_io_max, is_line_by_line=True
)
IO_WEIGHT: Final = InterfaceFile(
    "io.weight", _io, device_formats.parse_io_weight, device_formats.format_io_weight, is_line_by_line=True
)
IO_BFQ_WEIGHT: Final = InterfaceFile(
    "io.bfq.weight",
    _io,
    device_formats.parse_io_weight,
    device_formats.format_io_weight,
    is_line_by_line=True,
)
IO_LATENCY: Final = InterfaceFile(
    "io.latency",
    _io,
    device_formats.parse_io_latency,
    device_formats.format_io_latency,
    is_line_by_line=True,
)
IO_PRIO_CLASS: Final = InterfaceFile("io.prio.class", _io, _parse_priority, _format_priority)
IO_COST_QOS: Final = InterfaceFile(  # in the root cgroup only, as the next one
    "io.cost.qos",
    _io,
    device_formats.parse_device_settings,
    device_formats.format_device_settings,
    is_line_by_line=True,
)
IO_COST_MODEL: Final = InterfaceFile(
    "io.cost.model",
    _io,
    device_formats.parse_device_settings,
    device_formats.format_device_settings,
    is_line_by_line=True,
)
IO_PRESSURE: Final = _pressure("io.pressure")

# ---- pids -------------------------------------------------------------------------------------------------

PIDS_CURRENT: Final = _read_only("pids.current", _pids, formats.parse_count)
PIDS_MAX: Final = _limit("pids.max", _pids)
PIDS_PEAK: Final = _read_only("pids.peak", _pids, formats.parse_count)  # 6.1
PIDS_EVENTS: Final = _read_only("pids.events", _pids, _parse_pids_events)
PIDS_EVENTS_LOCAL: Final = _read_only("pids.events.local", _pids, _parse_pids_events)  # 6.11

# ---- cpuset -----------------------------------------------------------------------------------------------

CPUSET_CPUS: Final = _ranges("cpuset.cpus")
CPUSET_CPUS_EFFECTIVE: Final = _read_only("cpuset.cpus.effective", _cpuset, formats.parse_ranges)
CPUSET_CPUS_EXCLUSIVE: Final = _ranges("cpuset.cpus.exclusive")  # 6.7
CPUSET_CPUS_EXCLUSIVE_EFFECTIVE: Final = _read_only(
    "cpuset.cpus.exclusive.effective", _cpuset, formats.parse_ranges
)
CPUSET_CPUS_ISOLATED: Final = _read_only("cpuset.cpus.isolated", _cpuset, formats.parse_ranges)  # root only
CPUSET_CPUS_PARTITION: Final = InterfaceFile(
    "cpuset.cpus.partition", _cpuset, formats.parse_partition, formats.format_partition
)
CPUSET_MEMS: Final = _ranges("cpuset.mems")
CPUSET_MEMS_EFFECTIVE: Final = _read_only("cpuset.mems.effective", _cpuset, formats.parse_ranges)

ALL: Final[tuple[InterfaceFile[Any], ...]] = tuple(
    value for value in globals().copy().values() if isinstance(value, InterfaceFile)
)
"""Every row above."""

BY_NAME: Final[dict[str, InterfaceFile[Any]]] = {one.name: one for one in ALL}

MEMORY_STAT_INACTIVE_FILE: Final = _read_only("memory.stat", _memory, formats.flat_number("inactive_file"))
"""One number of memory.stat, for reads in a hurry; no row of its own."""


def by_name(name: str) -> InterfaceFile[Any] | None:
    """The row of a kernel file name such as ``memory.max``; None when this package does not describe it."""
    return BY_NAME.get(name)
