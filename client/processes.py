"""Naming a process so that the daemon cannot mistake another one for it: pidfd_open(2), proc(5)."""

import os
import re

from agentcgroup.client.errors import NotFound
from agentcgroup.client.values import ProcessRef


def reference(pid: int) -> ProcessRef:
    """The running process `pid`, with what guards against reuse of its pid. Raises NotFound when it is gone.

    The pidfd's inode is unique for the process since kernel 6.9 (pidfs); before that, every pidfd had the same one.
    """
    try:
        pidfd = os.pidfd_open(pid)
    # No pid_t holds what overflows.
    except (ProcessLookupError, OverflowError):
        raise NotFound(f"there is no process {pid}", "Name a process that is running", field="pid") from None
    except OSError:
        # No pidfd_open (a seccomp filter, an old kernel): the start time alone guards.
        return ProcessRef(pid=pid, start_time_ticks=_start_time_ticks(pid))
    try:
        is_pidfs = os.readlink(f"/proc/self/fd/{pidfd}").startswith("pidfd:")
        return ProcessRef(
            pid=pid,
            pidfd_inode=os.fstat(pidfd).st_ino if is_pidfs else None,
            start_time_ticks=_start_time_ticks(pid),
        )
    except FileNotFoundError:
        return ProcessRef(pid=pid)
    finally:
        os.close(pidfd)


def _start_time_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; the name in field 2 may hold blanks and brackets. None without /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            text = stat.read()
    except OSError:
        return None
    match = re.fullmatch(r"\d+ \(.*\)((?: \S+){20}).*", text, re.DOTALL)
    return int(match.group(1).split()[19]) if match else None
