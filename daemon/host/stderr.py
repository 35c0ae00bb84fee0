"""The last word about a limited call, on the standard error of its tool: one line, and nothing is waited for.

The launcher has become the tool, so nobody of ours is left in the call to say why it was stopped. While a limited call still
lives, its main process's descriptor 2 is taken (pidfd_getfd(2)) and kept until its end. Not before: whoever keeps the write
end of a pipe keeps its reader from seeing the end, and an honest call's harness is not to wait for this daemon.

What is written comes from a process with more rights than the tool's, to a file of the tool's choice. So only what the tool
could write itself is written to: a descriptor open for writing; a pipe, a socket, a terminal or a file of an ordinary file
system, because a write to a file of proc, sysfs or cgroupfs means something else when it comes from here.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import socket
import stat
from typing import Final

from agentcgroup.daemon.ports import Process

log = logging.getLogger("agentcgroup.host")

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD: Final = 438  # the same on every architecture, kernel 5.6
_STDERR: Final = 2
# Below PIPE_BUF, so that a line is written whole or not at all (pipe(7)).
MOST_BYTES: Final = 2048
# statfs(2): ext4, xfs, btrfs, tmpfs, overlayfs, f2fs.
_ORDINARY: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0xF2F52010})
_PTS_MAJORS: Final = frozenset({4, 5, *range(136, 144)})  # consoles, /dev/tty, pseudo-terminals


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("_rest", ctypes.c_char * 248))


def _file_system(fd: int) -> int:
    buffer = _Statfs()
    return buffer.f_type if _libc.fstatfs(fd, ctypes.byref(buffer)) == 0 else 0


def _is_fit(fd: int) -> bool:
    """Whether a line may be written to `fd`: open for writing, and a thing where bytes are only bytes."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
        return False
    status = os.fstat(fd)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFCHR:
        return os.major(status.st_rdev) in _PTS_MAJORS
    if kind == stat.S_IFREG:
        return _file_system(fd) in _ORDINARY
    return kind in (stat.S_IFIFO, stat.S_IFSOCK)


def take(pidfd: int) -> int | None:
    """A duplicate of the process's standard error, the caller's to close; None: it has none that is fit, or is gone.

    Raises OSError where the kernel, or a filter of system calls, does not let this daemon have it.
    """
    fd: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, _STDERR, 0)
    if fd < 0:
        number = ctypes.get_errno()
        if number in (errno.ESRCH, errno.EBADF):
            return None
        raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    try:
        if _is_fit(fd):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def write_line(fd: int, text: str) -> bool:
    """Writes one line to what `take` gave, whole or not at all, and never waits; whether it is written."""
    data = (
        text.replace("\n", " ").encode(errors="replace")[: MOST_BYTES - 1].decode(errors="ignore").encode()
        + b"\n"
    )
    with contextlib.suppress(OSError):
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFSOCK:
            return _send(fd, data)
        if kind == stat.S_IFREG:
            # Where the tool's own output goes on, or at the end if it is open so; a local file takes a line at once.
            return os.write(fd, data) == len(data)
        # A description of our own: to set O_NONBLOCK on the tool's would be to set it for the tool.
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.write(own, data) == len(data)
        finally:
            os.close(own)
    return False


def _finish(fd: int, text: str) -> None:
    """Writes the line, if there is one, and closes what `take` gave. For a thread: a full disk is nobody else's business."""
    try:
        if text:
            write_line(fd, text)
    finally:
        os.close(fd)


def _send(fd: int, data: bytes) -> bool:
    duplicate = socket.socket(fileno=os.dup(fd))
    try:
        return duplicate.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EPIPE, errno.ENOTCONN):
            return False
        raise
    finally:
        duplicate.close()


class LastWords:
    """What is kept of the main processes of limited calls. Lives on the event loop."""

    def __init__(self) -> None:
        self._pidfds: dict[int, int] = {}
        self._taken: dict[str, int] = {}
        self._has_failed = False

    def know(self, process: Process) -> None:
        """`process.pidfd` stays open until `forget`."""
        self._pidfds[process.pid] = process.pidfd

    def forget(self, process: Process) -> None:
        if self._pidfds.get(process.pid) == process.pidfd:
            del self._pidfds[process.pid]

    def hold(self, call_id: str, pid: int) -> None:
        """Takes the standard error of a known process for `call_id`, when it has one that is fit and none is taken yet."""
        pidfd = self._pidfds.get(pid)
        if pidfd is None or call_id in self._taken:
            return
        try:
            fd = take(pidfd)
        except OSError as error:
            if not self._has_failed:
                log.warning("tools that are stopped do not say why on their standard error: %s", error)
            self._has_failed = True
            return
        if fd is not None:
            self._taken[call_id] = fd

    def say(self, call_id: str, line: str) -> None:
        """Writes the line, when there is one and something is taken for the call, and lets go of it; waits for nothing."""
        fd = self._taken.pop(call_id, None)
        if fd is not None:
            asyncio.get_running_loop().run_in_executor(None, _finish, fd, line)
