"""What BPF programs and the daemon tell each other, as ctypes: the twin of abi.h, field by field.

A test compares every structure with the type information of the compiled programs. Times are in ns of CLOCK_BOOTTIME.
"""

import ctypes
from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "ARGUMENTS_BYTES",
    "COMM_BYTES",
    "FILENAME_BYTES",
    "STRUCTURES",
    "Account",
    "AccountId",
    "AttachEvent",
    "Door",
    "PassageHold",
    "DoorSource",
    "EventHeader",
    "EventKind",
    "ExecEvent",
    "ExecFlag",
    "ExitEvent",
    "ForkEvent",
    "LifecycleKnobs",
    "Losses",
    "Mark",
    "OomEvent",
    "Passage",
    "ThrottleEvent",
]

COMM_BYTES: Final = 16
ARGUMENTS_BYTES: Final = 1024
FILENAME_BYTES: Final = 128

_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64
_comm = ctypes.c_char * COMM_BYTES


class EventKind(IntEnum):
    FORK = 0
    EXEC = 1
    EXIT = 2
    ATTACH = 3
    OOM_VICTIM = 4
    THROTTLE = 5


class ExecFlag(IntFlag):
    AT_DOOR = 1
    FROM_OUTSIDE = 2
    HELD = 4
    VISITOR = 8


class DoorSource(IntFlag):
    """Whose execs a door asks about."""

    AGENT = 1
    OUTSIDE = 2


class PassageHold(IntEnum):
    """How the hold of a process at its door was when it was let through."""

    NEVER_BEGAN = 0
    RAN_OUT = 1
    LASTED = 2


class EventHeader(ctypes.Structure):
    kind: int
    pid: int
    at_ns: int
    account_id: int
    cgroup_id: int
    _fields_ = [("kind", _u32), ("pid", _u32), ("at_ns", _u64), ("account_id", _u64), ("cgroup_id", _u64)]


class ForkEvent(ctypes.Structure):
    header: EventHeader
    parent_pid: int
    is_born_inside: int
    comm: bytes
    _fields_ = [("header", EventHeader), ("parent_pid", _u32), ("is_born_inside", _u32), ("comm", _comm)]


class ExecEvent(ctypes.Structure):
    header: EventHeader
    parent_pid: int
    flags: int
    process_group: int
    parent_process_group: int
    arguments_length: int
    arguments_total: int
    comm: bytes
    filename: bytes
    _fields_ = [
        ("header", EventHeader),
        ("parent_pid", _u32),
        ("flags", _u32),
        ("process_group", _u32),
        ("parent_process_group", _u32),
        ("arguments_length", _u32),
        ("arguments_total", _u32),
        ("comm", _comm),
        ("filename", ctypes.c_char * FILENAME_BYTES),
        ("arguments", ctypes.c_char * ARGUMENTS_BYTES),
    ]


class ExitEvent(ctypes.Structure):
    header: EventHeader
    wait_status: int
    is_child: int
    lifetime_ns: int
    comm: bytes
    _fields_ = [
        ("header", EventHeader),
        ("wait_status", _u32),
        ("is_child", _u32),
        ("lifetime_ns", _u64),
        ("comm", _comm),
    ]


class AttachEvent(ctypes.Structure):
    header: EventHeader
    previous_account_id: int
    comm: bytes
    _fields_ = [("header", EventHeader), ("previous_account_id", _u64), ("comm", _comm)]


class OomEvent(ctypes.Structure):
    header: EventHeader
    limit_cgroup_id: int
    anonymous_bytes: int
    trigger_pid: int
    comm: bytes
    trigger_comm: bytes
    _fields_ = [
        ("header", EventHeader),
        ("limit_cgroup_id", _u64),
        ("anonymous_bytes", _u64),
        ("trigger_pid", _u32),
        ("reserved", _u32),
        ("comm", _comm),
        ("trigger_comm", _comm),
    ]


class ThrottleEvent(ctypes.Structure):
    header: EventHeader
    duration_ns: int
    comm: bytes
    _fields_ = [("header", EventHeader), ("duration_ns", _u64), ("comm", _comm)]


class Account(ctypes.Structure):
    forks: int
    arrivals: int
    execs: int
    exits: int
    throttles: int
    throttled_ns: int
    longest_child_ns: int
    oom_victims: int
    oom_limit_cgroup_id: int
    oom_anonymous_bytes: int
    oom_victim_pid: int
    oom_trigger_pid: int
    oom_victim_comm: bytes
    oom_trigger_comm: bytes
    _fields_ = [
        ("forks", _u64),
        ("arrivals", _u64),
        ("execs", _u64),
        ("exits", _u64),
        ("throttles", _u64),
        ("throttled_ns", _u64),
        ("longest_child_ns", _u64),
        ("oom_victims", _u64),
        ("oom_limit_cgroup_id", _u64),
        ("oom_anonymous_bytes", _u64),
        ("oom_victim_pid", _u32),
        ("oom_trigger_pid", _u32),
        ("oom_victim_comm", _comm),
        ("oom_trigger_comm", _comm),
    ]


class Door(ctypes.Structure):
    hold_ns: int
    sources: int
    _fields_ = [("hold_ns", _u64), ("sources", _u32), ("reserved", _u32)]


class Mark(ctypes.Structure):
    """The value of a map in which only the key counts."""

    _fields_ = [("is_set", _u32)]


class AccountId(ctypes.Structure):
    value: int
    _fields_ = [("value", _u64)]


class Passage(ctypes.Structure):
    pid: int
    hold: int
    waited_ns: int
    _fields_ = [("pid", _u32), ("hold", _u32), ("waited_ns", _u64)]


class Losses(ctypes.Structure):
    records: "ctypes.Array[ctypes.c_uint64]"
    homes: int
    arguments: int
    depth: int
    _fields_ = [
        ("records", _u64 * len(EventKind)),
        ("homes", _u64),
        ("arguments", _u64),
        ("depth", _u64),
    ]


class LifecycleKnobs(ctypes.Structure):
    _fields_ = [
        ("reported_kinds", _u32),
        ("reports_children", _u32),
        ("daemon_pid", _u32),
        ("reserved", _u32),
    ]


# C name -> twin.
STRUCTURES: Final[dict[str, type[ctypes.Structure]]] = {
    "event_header": EventHeader,
    "fork_event": ForkEvent,
    "exec_event": ExecEvent,
    "exit_event": ExitEvent,
    "attach_event": AttachEvent,
    "oom_event": OomEvent,
    "throttle_event": ThrottleEvent,
    "account": Account,
    "door": Door,
    "passage": Passage,
    "losses": Losses,
    "lifecycle_knobs": LifecycleKnobs,
}
