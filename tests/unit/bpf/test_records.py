"""Records: bytes of the ring to values."""

import ctypes

import pytest

from agentcgroup.bpf import abi
from agentcgroup.bpf.abi import EventKind, ExecFlag
from agentcgroup.bpf.records import (
    Arrival,
    BadRecord,
    Exec,
    Exit,
    Fork,
    OomVictim,
    Throttle,
    command_name,
    decode,
)


def header(kind: EventKind) -> abi.EventHeader:
    return abi.EventHeader(kind, 42, 1_000, 7, 8)


def test_a_fork_tells_parent_and_place() -> None:
    event = abi.ForkEvent(header(EventKind.FORK), 41, 1, b"make")
    assert decode(bytes(event)) == Fork(42, 1_000, 7, 8, "make", 41, True)


def exec_bytes(arguments: bytes, total: int) -> bytes:
    event = abi.ExecEvent(
        header(EventKind.EXEC),
        41,
        int(ExecFlag.AT_DOOR),
        42,
        41,
        len(arguments),
        total,
        b"cc",
        b"/usr/bin/cc",
    )
    return bytes(event)[: ctypes.sizeof(abi.ExecEvent) - abi.ARGUMENTS_BYTES] + arguments


def test_an_exec_tells_its_arguments_one_by_one() -> None:
    record = decode(exec_bytes(b"cc\0-c\0a file.c\0\0", 17))
    where = (42, 1_000, 7, 8, "cc", 41, 42, 41, b"/usr/bin/cc")
    assert record == Exec(*where, (b"cc", b"-c", b"a file.c", b""), 17, ExecFlag.AT_DOOR)


def test_an_argument_list_that_was_cut_says_how_long_it_was() -> None:
    record = decode(exec_bytes(b"cc\0-o\0outp", 4000))
    assert isinstance(record, Exec)
    assert record.arguments == (b"cc", b"-o", b"outp") and record.arguments_bytes == 4000


def test_arguments_that_could_not_be_read_are_none() -> None:
    record = decode(exec_bytes(b"", 30))
    assert isinstance(record, Exec) and record.arguments == ()


def test_an_exit_tells_status_and_life() -> None:
    event = abi.ExitEvent(header(EventKind.EXIT), 9, 1, 5_000_000, b"sleep")
    assert decode(bytes(event)) == Exit(42, 1_000, 7, 8, "sleep", 9, True, 5_000_000)


def test_an_arrival_from_outside_has_no_account_before() -> None:
    event = abi.AttachEvent(header(EventKind.ATTACH), 0, b"sh")
    assert decode(bytes(event)) == Arrival(42, 1_000, 7, 8, "sh", None)
    event.previous_account_id = 5
    assert decode(bytes(event)) == Arrival(42, 1_000, 7, 8, "sh", 5)


def test_an_oom_victim_is_told_with_its_trigger() -> None:
    event = abi.OomEvent(header(EventKind.OOM_VICTIM), 8, 1 << 20, 43, 0, b"python3", b"cc1plus")
    assert decode(bytes(event)) == OomVictim(42, 1_000, 7, 8, "python3", 43, "cc1plus", 8, 1 << 20)


def test_what_the_kernel_does_not_say_of_a_victim_is_none_and_not_a_number() -> None:
    event = abi.OomEvent(header(EventKind.OOM_VICTIM), 0, (1 << 64) - 1, 43, 0, b"a", b"b")
    record = decode(bytes(event))
    assert isinstance(record, OomVictim)
    assert record.limit_cgroup_id is None and record.anonymous_bytes is None


def test_a_throttle_tells_how_long() -> None:
    event = abi.ThrottleEvent(header(EventKind.THROTTLE), 12_345, b"sh")
    assert decode(bytes(event)) == Throttle(42, 1_000, 7, 8, "sh", 12_345)


@pytest.mark.parametrize(
    "data",
    [b"", b"short", bytes(abi.EventHeader(99, 1, 1, 1, 1)), bytes(header(EventKind.EXIT)), b"\xff" * 200],
)
def test_bytes_of_another_release_are_refused(data: bytes) -> None:
    with pytest.raises(BadRecord):
        decode(data)


def test_a_process_cannot_choose_a_name_that_breaks_a_line() -> None:
    assert command_name(b"a\nb\x1b[31m\xff") == "a?b?[31m\N{REPLACEMENT CHARACTER}"
