"""The sched_ext scheduler: loaded, attached, its counters read, its end told.

Interface: Documentation/scheduler/sched-ext.rst.

Nothing is pinned: the kernel gives every task back to its own scheduler as soon as the process that holds the link is
gone, however it ended. The structures are the twins of scheduler.h; times are in ns of CLOCK_MONOTONIC.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final

from agentcgroup.bpf import libbpf, map_entries
from agentcgroup.bpf.maps import HashMap
from agentcgroup.bpf.programs import Programs, object_path
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps

__all__ = [
    "COUNTERS",
    "STRUCTURES",
    "CpuScheduler",
    "ForeignScheduler",
    "LatencyClass",
    "SchedulerEnd",
    "SchedulerHold",
    "SchedulerKnobs",
    "SchedulerMode",
    "SchedulerTask",
    "attached_scheduler",
    "default_knobs",
    "possible_cpus",
]

NAME: Final = "agentcgroup"
_SYSFS: Final = Path("/sys/kernel/sched_ext")
_POSSIBLE: Final = Path("/sys/devices/system/cpu/possible")
# In the order of enum scheduler_counter.
COUNTERS: Final = (
    *("placed_idle", "placed_queued", "placed_pinned", "placed_kernel_thread"),
    *("placed_preempting", "placed_prompt", "placed_rescued", "placed_kept", "placed_straight"),
    *("pick_empty", "pick_raced", "idle_retries"),
    *("throttles", "unthrottles"),
    *("holds", "holds_released", "holds_refused_total"),
    *("groups_made", "groups_freed", "groups_missing", "tasks_unknown"),
)
_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64


class SchedulerMode(StrEnum):
    """FULL: every ordinary task of the host. PARTIAL: those of policy SCHED_EXT, in what time the others leave."""

    PARTIAL = "partial"
    FULL = "full"


class LatencyClass(IntEnum):
    """How soon a wake-up is served; never how much CPU time there is."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2
    # An agent runtime: interactive, and ahead of the tools of its own session.
    AGENT = 3


class SchedulerKnobs(ctypes.Structure):
    _fields_ = [
        ("slice_ns", _u64 * len(LatencyClass)),
        ("prompt_allowance_ns", _u64),
        ("rescue_after_ns", _u64),
        ("hold_max_ns", _u64),
        ("hold_total_max_ns", _u64),
        ("cpus", _u32),
        ("reserved", _u32),
    ]


class SchedulerHold(ctypes.Structure):
    until_ns: int
    begun_at_ns: int
    total_ns: int
    holds: int
    on_way_back: int
    asked_at_ns: int
    waited_ns: int
    _fields_ = [
        ("until_ns", _u64),
        ("begun_at_ns", _u64),
        ("total_ns", _u64),
        ("holds", _u32),
        ("on_way_back", _u32),
        ("asked_at_ns", _u64),
        ("waited_ns", _u64),
    ]


class SchedulerTask(ctypes.Structure):
    _fields_ = [
        ("vtime_ns", _u64),
        ("charged_ns", _u64),
        ("queued_at_ns", _u64),
        ("group", _u32),
        ("queued_in", _u32),
        ("runnable_in", _u32),
        ("may_park", _u32),
    ]


class SchedulerEndRecord(ctypes.Structure):
    kind: int
    code: int
    reason: bytes
    message: bytes
    _fields_ = [
        ("kind", _u32),
        ("reserved", _u32),
        ("code", ctypes.c_int64),
        ("reason", ctypes.c_char * 128),
        ("message", ctypes.c_char * 384),
    ]


class _Class(ctypes.Structure):
    value: int
    _fields_ = [("value", _u32)]


# By the name in scheduler.h, for the test that compares both.
STRUCTURES: Final[dict[str, type[ctypes.Structure]]] = {
    "scheduler_knobs": SchedulerKnobs,
    "scheduler_hold": SchedulerHold,
    "scheduler_task": SchedulerTask,
    "scheduler_end": SchedulerEndRecord,
}


@dataclass(frozen=True, slots=True)
class SchedulerEnd:
    """Why the kernel took the scheduler off. `kind` is enum scx_exit_kind: below 1024 somebody asked for it."""

    kind: int
    code: int
    reason: str
    message: str

    def __str__(self) -> str:
        detail = f": {self.message}" if self.message else ""
        return f"{self.reason or 'no reason given'} (kind {self.kind}){detail}"


class ForeignScheduler(Exception):
    """Somebody else's scheduler is loaded; ours does not replace it."""


def attached_scheduler(directory: Path = _SYSFS) -> str | None:
    """Name of the scheduler that the kernel runs now, None: its own. Raises OSError without sched_ext."""
    if (directory / "state").read_text(encoding="ascii").strip() == "disabled":
        return None
    try:
        return (directory / "root" / "ops").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        # It went away between the two reads, or is not yet there.
        return None


def possible_cpus(path: Path = _POSSIBLE) -> int:
    """One more than the largest CPU number that can exist ("0-3,8-11" is 12)."""
    return 1 + int(path.read_text(encoding="ascii").strip().replace(",", "-").split("-")[-1])


def default_knobs(cpus: int) -> SchedulerKnobs:
    """What suits a host of agents; every number is one of scheduler.bpf.c."""
    milli = 1_000_000
    slices = (_u64 * len(LatencyClass))(2 * milli, 3 * milli, 7 * milli, 2 * milli)
    return SchedulerKnobs(slices, 20 * milli, 5000 * milli, 500 * milli, 5000 * milli, cpus, 0)


class CpuScheduler(Programs):
    """Loaded with the object, attached by `attach_scheduler`; use as a context manager.

    Raises ForeignScheduler before it loads anything while another scheduler is there, BpfError for what the kernel
    refuses, OSError where there is no sched_ext.
    """

    def __init__(
        self,
        path: Path | None = None,
        knobs: SchedulerKnobs | None = None,
        shared: SharedMaps | None = None,
    ) -> None:
        other = attached_scheduler()
        if other is not None:
            raise ForeignScheduler(
                f'the scheduler {other!r} is loaded: stop the service that loaded it, or set scheduler.mode = "off"'
            )
        self._cpus: Final = possible_cpus()
        super().__init__(
            path or object_path("scheduler"),
            knobs={"knobs": knobs or default_knobs(self._cpus)},
            shared=shared,
        )
        self._classes = self.hash_map("latency_classes", _Class)
        self._class_changes = 0
        # What it says is in `scheduler_ends`; the ring only wakes up who waits.
        self._bell = self.ring("scheduler_bell", lambda record: None)

    def __enter__(self) -> "CpuScheduler":
        return self

    def attach_scheduler(self, mode: SchedulerMode) -> None:
        """From now on tasks are scheduled by it. Raises BpfError."""
        library = libbpf.library()
        library.bpf_map__attach_struct_ops.restype = ctypes.c_void_p
        library.bpf_map__attach_struct_ops.argtypes = (ctypes.c_void_p,)
        name = f"agentcg_{mode.value}"
        table = libbpf.find_map(self._open(), name)
        ctypes.set_errno(0)
        link = library.bpf_map__attach_struct_ops(table)
        if not link:
            code = ctypes.get_errno()
            raise libbpf.BpfError(f"attaching the scheduler in mode {mode.value}", code)
        self._links[name] = link

    def set_class(self, cgroup_id: int, latency: LatencyClass) -> None:
        """Best before the first process of the cgroup; forgotten by itself when the cgroup goes."""
        self._classes.put(cgroup_id, _Class(int(latency)))
        # Only now, or the program would keep what it found before.
        self._class_changes += 1
        map_entries.update(self.map_fd("latency_changes"), _u32(0), _Class(self._class_changes))

    def hold(self, pidfd: int, until_ns: int) -> None:
        """Keep the thread of `pidfd` off its CPU until then, as holds.bpf.h says; 0 lets it go. Raises BpfError."""
        hold = self.held(pidfd)
        hold.until_ns = until_ns
        map_entries.update(self._holds_fd(), ctypes.c_int(pidfd), hold)

    def held(self, pidfd: int) -> SchedulerHold:
        """What is known of the holds of that thread; all 0 when nobody ever wanted it held."""
        hold = SchedulerHold()
        map_entries.lookup(self._holds_fd(), ctypes.c_int(pidfd), hold)
        return hold

    def _holds_fd(self) -> int:
        return libbpf.map_fd(libbpf.find_map(self._open(), HOLDS))

    def groups(self) -> HashMap[_Class]:
        """Cgroup id to group number, for tests and `agentcg check`."""
        return self.hash_map("scheduler_groups", _Class)

    def fileno(self) -> int:
        """Becomes readable when the kernel has taken the scheduler off; stays so."""
        return self._bell.fileno()

    def end(self) -> SchedulerEnd | None:
        """None while it runs."""
        record = self.array_map("scheduler_ends", SchedulerEndRecord)[0]
        if not record.kind:
            return None
        return SchedulerEnd(
            record.kind,
            record.code,
            record.reason.decode(errors="replace"),
            record.message.decode(errors="replace"),
        )

    def counters(self) -> Mapping[str, int]:
        """What it did since it was attached, over all CPUs; the names are explained in scheduler.h."""
        per_cpu = type("_PerCpu", (ctypes.Structure,), {"_fields_": [("values", _u64 * self._cpus)]})
        fd = libbpf.map_fd(libbpf.find_map(self._open(), "scheduler_counters"))
        found = {}
        for number, name in enumerate(COUNTERS):
            value = per_cpu()
            map_entries.lookup(fd, _u32(number), value)
            found[name] = sum(value.values)
        return found
