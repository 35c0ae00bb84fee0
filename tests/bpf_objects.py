"""Which BPF programs, maps and links the kernel holds (bpf(2), *_GET_NEXT_ID), and which of them a process holds."""

import ctypes
import os
import platform
import re
from pathlib import Path

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
# enum bpf_cmd: BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID
_NEXT_ID = {"prog": 11, "map": 12, "link": 31}

_libc = ctypes.CDLL(None, use_errno=True)


class _GetId(ctypes.Structure):
    _fields_ = [
        ("start_id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    ]


def in_kernel() -> set[tuple[str, int]]:
    """Every object of the host: ("prog", 17), ..."""
    found = set()
    for kind, command in _NEXT_ID.items():
        attributes = _GetId()
        while True:
            result = _libc.syscall(
                ctypes.c_long(_SYSCALL_NUMBERS[platform.machine()]),
                ctypes.c_long(command),
                ctypes.byref(attributes),
                ctypes.c_long(ctypes.sizeof(attributes)),
            )
            if result < 0:
                break
            found.add((kind, attributes.next_id))
            attributes.start_id = attributes.next_id
    return found


def of_process(pid: int) -> set[tuple[str, int]]:
    """The objects behind a process's descriptors (proc_pid_fdinfo(5): prog_id, map_id, link_id)."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            text = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
        except FileNotFoundError:
            continue
        # A link tells the id of its program, too, which is held by a descriptor of its own.
        for kind, number in re.findall(r"^(prog|map|link)_id:\s*(\d+)$", text, re.MULTILINE):
            found.add((kind, int(number)))
    return found
