"""Questions to the kernel and to this process's surroundings that take no cgroup."""

import ctypes
import errno
import os
import socket
import struct
from typing import Final

from agentcgroup.daemon.host.capabilities.trial import Found
from agentcgroup.daemon.host.exits import ExitSource, probe_exit_source

__all__ = ["try_clone_into_cgroup", "try_docker", "try_exit_status", "try_peer_pidfd"]

_SYS_CLONE3: Final = 435
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000
_CLONE_ARGS_SIZE: Final = 88
_SO_PEERPIDFD: Final = 77


def try_clone_into_cgroup() -> Found:
    """Whether processes can be born in a cgroup.

    clone3(2) into a descriptor that is not open: EBADF from a kernel that knows the
    flag, and no child.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # struct clone_args: flags first, cgroup last; a number no descriptor can have, as the limit is lower.
    arguments = struct.pack("=11Q", _CLONE_INTO_CGROUP, *[0] * 9, 0x7FFF_FFFF)
    libc.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_long(_CLONE_ARGS_SIZE))
    code = ctypes.get_errno()
    if code == errno.EBADF:
        return Found(True, "clone3 knows CLONE_INTO_CGROUP")
    return Found(False, f"clone3 with CLONE_INTO_CGROUP: {os.strerror(code)}")


def try_exit_status() -> Found:
    """Whether the exit status of processes that are not our children can be had, and where from."""
    match probe_exit_source():
        case ExitSource.PIDFD_INFO:
            return Found(True, "the kernel keeps the exit status with the pidfd")
        case ExitSource.PROC_CONNECTOR:
            return Found(
                True, "from the process connector (the kernel keeps none with the pidfd before 6.15)"
            )
        case ExitSource.ZOMBIE:
            return Found(False, "neither pidfds nor the process connector tell it")
        case ExitSource.KERNEL_EVENTS:
            raise AssertionError("the programs are loaded by the daemon, not found by a probe")


def try_peer_pidfd() -> Found:
    """Whether a socket gives a pidfd of its peer (kernel 6.5)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            pidfd = ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            return Found(False, f"SO_PEERPIDFD: {error.strerror}")
    os.close(pidfd)
    return Found(True, "sockets give a pidfd of their peer")


def try_docker(socket_path: str) -> Found:
    """Whether a Docker daemon listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(socket_path)
        except OSError as error:
            return Found(False, f"{socket_path}: {error.strerror or error}")
    return Found(True, f"dockerd listens on {socket_path}")
