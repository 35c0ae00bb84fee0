"""What a pidfd tells about its process: whether it lives and, by ioctl PIDFD_GET_INFO (kernel 6.13), its cgroup and its end.

Source: include/uapi/linux/pidfd.h, struct pidfd_info as of VER0, 64 bytes: mask, cgroupid, 11 ids, exit_code.
"""

import fcntl
import select
import struct
from typing import Final

_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO: Final = 0xC000_0000 | _INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_CGROUPID: Final = 1 << 2
_PIDFD_INFO_EXIT: Final = 1 << 3


def _info(pidfd: int, wanted: int) -> tuple[int, ...] | None:
    request = bytearray(_INFO.size)
    _INFO.pack_into(request, 0, wanted, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request, True)
    except OSError:
        # ENOTTY and EINVAL: a kernel before 6.13; ESRCH: reaped, and this kernel kept nothing.
        return None
    fields: tuple[int, ...] = _INFO.unpack(request)
    return fields if fields[0] & wanted else None


def has_ended(pidfd: int) -> bool:
    """Whether the last thread of the process has ended, reaped or not (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def cgroup_id(pidfd: int) -> int | None:
    """The id of the process's cgroup v2; None when this kernel does not tell, or the process is gone."""
    fields = _info(pidfd, _PIDFD_INFO_CGROUPID)
    return fields[1] if fields else None


def wait_status(pidfd: int) -> int | None:
    """The wait status of a process that has been reaped; None before, and where the kernel keeps none (before 6.15)."""
    fields = _info(pidfd, _PIDFD_INFO_EXIT)
    return fields[13] if fields else None
