"""Records of the lifecycle programs as values: bytes in, frozen dataclasses out; nothing here touches the kernel.

Times are ns of CLOCK_BOOTTIME. `account_id` is the innermost cgroup with books that the process lives in.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentcgroup.bpf import abi
from agentcgroup.bpf.abi import EventKind, ExecFlag

__all__ = [
    "Arrival",
    "BadRecord",
    "Exec",
    "Exit",
    "Fork",
    "OomVictim",
    "Record",
    "Throttle",
    "command_name",
    "decode",
]

_UNKNOWN: Final = (1 << 64) - 1
_ARGUMENTS_AT: Final = ctypes.sizeof(abi.ExecEvent) - abi.ARGUMENTS_BYTES


class BadRecord(ValueError):
    """Bytes that no program of ours has written: the object and this code are of different releases."""


@dataclass(frozen=True, slots=True)
class _Happened:
    """What every record says: the process it is about, when, and where."""

    pid: int
    at_ns: int
    account_id: int
    cgroup_id: int
    command: str


@dataclass(frozen=True, slots=True)
class Fork(_Happened):
    """A process was born. `is_born_inside` False: in another cgroup than its parent's (CLONE_INTO_CGROUP)."""

    parent_pid: int
    is_born_inside: bool


@dataclass(frozen=True, slots=True)
class Exec(_Happened):
    """A process became another program. `arguments` may be cut: `arguments_bytes` is the length of the whole list.

    `filename` is the path as given to execve(2), cut at abi.FILENAME_BYTES. Process groups as the kernel numbers them.
    """

    parent_pid: int
    process_group: int
    parent_process_group: int
    filename: bytes
    arguments: tuple[bytes, ...]
    arguments_bytes: int
    flags: ExecFlag = ExecFlag(0)


@dataclass(frozen=True, slots=True)
class Exit(_Happened):
    """The last thread of a process ended. `is_child`: it was forked inside its account."""

    wait_status: int
    is_child: bool
    lifetime_ns: int


@dataclass(frozen=True, slots=True)
class Arrival(_Happened):
    """A process was moved in. `previous_account_id` None: from where no books are kept."""

    previous_account_id: int | None


@dataclass(frozen=True, slots=True)
class OomVictim(_Happened):
    """The OOM killer chose this process. None: this kernel does not say."""

    trigger_pid: int
    trigger_command: str
    limit_cgroup_id: int | None
    anonymous_bytes: int | None


@dataclass(frozen=True, slots=True)
class Throttle(_Happened):
    """A thread was held back for being over memory.high; the record comes when it goes on."""

    duration_ns: int


Record = Fork | Exec | Exit | Arrival | OomVictim | Throttle


def command_name(comm: bytes) -> str:
    """The kernel's 15-byte name of a process as text that can be printed anywhere: a process chooses its own name."""
    text = comm.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def decode(data: bytes) -> Record:
    """One record of the ring. Raises BadRecord."""
    if len(data) < ctypes.sizeof(abi.EventHeader):
        raise BadRecord(f"a record of {len(data)} bytes is shorter than its header")
    kind = abi.EventHeader.from_buffer_copy(data).kind
    try:
        return _DECODERS[EventKind(kind)](data)
    except (ValueError, KeyError) as error:
        raise BadRecord(f"a record of kind {kind} and {len(data)} bytes: {error}") from error


def _where(header: abi.EventHeader, comm: bytes) -> tuple[int, int, int, int, str]:
    return header.pid, header.at_ns, header.account_id, header.cgroup_id, command_name(comm)


def _fork(data: bytes) -> Fork:
    event = abi.ForkEvent.from_buffer_copy(data)
    return Fork(*_where(event.header, event.comm), event.parent_pid, bool(event.is_born_inside))


def _exec(data: bytes) -> Exec:
    event = abi.ExecEvent.from_buffer_copy(data.ljust(ctypes.sizeof(abi.ExecEvent), b"\0"))
    kept = data[_ARGUMENTS_AT : _ARGUMENTS_AT + event.arguments_length]
    # Each argument ends with a NUL, but for one that was cut.
    arguments = tuple(kept.removesuffix(b"\0").split(b"\0")) if kept else ()
    return Exec(
        *_where(event.header, event.comm),
        event.parent_pid,
        event.process_group,
        event.parent_process_group,
        event.filename,
        arguments,
        event.arguments_total,
        ExecFlag(event.flags),
    )


def _exit(data: bytes) -> Exit:
    event = abi.ExitEvent.from_buffer_copy(data)
    return Exit(
        *_where(event.header, event.comm), event.wait_status, bool(event.is_child), event.lifetime_ns
    )


def _attach(data: bytes) -> Arrival:
    event = abi.AttachEvent.from_buffer_copy(data)
    return Arrival(*_where(event.header, event.comm), event.previous_account_id or None)


def _oom_victim(data: bytes) -> OomVictim:
    event = abi.OomEvent.from_buffer_copy(data)
    return OomVictim(
        *_where(event.header, event.comm),
        event.trigger_pid,
        command_name(event.trigger_comm),
        event.limit_cgroup_id or None,
        None if event.anonymous_bytes == _UNKNOWN else event.anonymous_bytes,
    )


def _throttle(data: bytes) -> Throttle:
    event = abi.ThrottleEvent.from_buffer_copy(data)
    return Throttle(*_where(event.header, event.comm), event.duration_ns)


_DECODERS: Final[dict[EventKind, Callable[[bytes], Record]]] = {
    EventKind.FORK: _fork,
    EventKind.EXEC: _exec,
    EventKind.EXIT: _exit,
    EventKind.ATTACH: _attach,
    EventKind.OOM_VICTIM: _oom_victim,
    EventKind.THROTTLE: _throttle,
}
