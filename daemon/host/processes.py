"""Processes of callers: found, held by a pidfd, and checked before anything is done to them."""

import os
from collections.abc import Iterable
from typing import Final

from agentcgroup.cgroups.errors import ProcessGone
from agentcgroup.cgroups.membership import is_kernel_thread
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import ProcessRef
from agentcgroup.daemon.ports import Process

_LARGEST_PID: Final = 4 << 20  # PID_MAX_LIMIT, include/linux/threads.h


def _gone(pid: int, how: str) -> RequestError:
    return RequestError(
        Kind.NOT_FOUND, f"process {pid} {how}", "begin the call with a process that is alive", "process.pid"
    )


def hold(process: ProcessRef, container_pids: Iterable[int] | None = None) -> Process:
    """The process that is meant, held by a pidfd which the caller closes. Raises RequestError.

    `container_pids`: host pids of the caller's container; `process.pid` is then read in the container's pid namespace.
    """
    if not 1 <= process.pid <= _LARGEST_PID:
        raise RequestError(
            Kind.INVALID, f"{process.pid} is no process id", "name a process by its pid", "process.pid"
        )
    pid = process.pid if container_pids is None else _in_container(process.pid, container_pids)
    if pid in (1, os.getpid()):
        raise RequestError(
            Kind.DENIED,
            f"process {process.pid} is not to be moved",
            "name a process of your own",
            "process.pid",
        )
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise _gone(process.pid, "does not exist (any more)") from None
    except OSError as error:
        # EINVAL, or ENOENT from 6.9 on: a thread, not a process.
        raise RequestError(
            Kind.INVALID,
            f"{process.pid} is a thread, not a process: {error.strerror}",
            "name the thread group's leader",
            "process.pid",
        ) from error
    try:
        _check(process, pid, pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    return Process(pid, pidfd)


def _check(process: ProcessRef, pid: int, pidfd: int) -> None:
    try:
        if is_kernel_thread(pid):
            raise RequestError(
                Kind.DENIED, f"{process.pid} is a kernel thread", "name a process of your own", "process.pid"
            )
    except ProcessGone:
        raise _gone(process.pid, "has just ended") from None
    if process.pidfd_inode is not None and os.fstat(pidfd).st_ino != process.pidfd_inode:
        raise _gone(process.pid, "is another one by now: the pid was reused")
    if process.start_time_ticks is not None and _start_time_ticks(pid) != process.start_time_ticks:
        raise _gone(process.pid, "is another one by now: the pid was reused")


def _start_time_ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            # PID (COMM) STATE ...; start time is field 22, COMM may hold spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid, "has just ended") from None


def _in_container(pid: int, host_pids: Iterable[int]) -> int:
    """The host pid of the process which its own pid namespace calls `pid` (NSpid of proc_pid_status(5))."""
    for host_pid in host_pids:
        try:
            with open(f"/proc/{host_pid}/status", encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    if line.startswith("NSpid:"):
                        if int(line.split()[-1]) == pid:
                            return host_pid
                        break
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise _gone(pid, "is not in this session's container")


def prefer_as_victim(pid: int, oom_score_adj: int) -> None:
    """Makes the OOM killer of session or host choose the process, and what it forks, before an agent runtime.

    Best effort: the process may have ended.
    """
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"%d" % oom_score_adj)
    except OSError:
        return
    finally:
        os.close(fd)
