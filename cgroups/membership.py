"""Which cgroup a process is in, and where cgroup2 is mounted: files of /proc.

Sources: cgroups(7), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst section 2-1.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentcgroup.cgroups.errors import BadFormat, NotCgroup2, ProcessGone

_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
# A path is at most PATH_MAX long and cgroup v1 adds a dozen lines; the kernel prints that much at once.
_PROC_BYTES: Final = 65536
_DELETED: Final = " (deleted)"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Membership:
    """Where a process is: ``path`` from the root of our cgroup namespace, beginning with a slash.

    A path that begins with ``/..`` is outside of our namespace. ``is_deleted``: the cgroup was removed and
    the process is a zombie.
    """

    path: str
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of the cgroup2 mount; a kernel that does not know one does not set it.

    ``favordynmods`` makes moving processes cheap and fork dearer (kernel 6.0). ``nsdelegate``: a cgroup
    namespace is a delegation boundary. ``memory_recursiveprot``: memory.low of a parent protects its
    children as well. ``memory_localevents``: memory.events is not hierarchical. ``pids_localevents``:
    pids.events is not hierarchical (kernel 6.11). ``memory_hugetlb_accounting``: huge pages count as memory
    (kernel 6.7).
    """

    favordynmods: bool = False
    nsdelegate: bool = False
    memory_recursiveprot: bool = False
    memory_localevents: bool = False
    memory_hugetlb_accounting: bool = False
    pids_localevents: bool = False


@dataclass(frozen=True, slots=True)
class Cgroup2Mount:
    """A cgroup2 mount. ``root`` is the cgroup shown at ``path``, ``/`` unless bind-mounted from below.

    ``is_hybrid``: cgroup v1 hierarchies are mounted too, so controllers may be bound there and missing here.
    """

    path: Path
    root: str
    is_read_only: bool
    is_hybrid: bool
    options: MountOptions


def parse_membership(text: str) -> Membership:
    """The ``0::PATH`` line of /proc/PID/cgroup; raises :class:`ValueError` when there is none."""
    for line in text.splitlines():
        if line.startswith("0::"):
            path = line[3:]
            is_deleted = path.endswith(_DELETED)
            return Membership(path.removesuffix(_DELETED), is_deleted)
    raise ValueError("there is no cgroup v2 line '0::'")


def membership(pid: int) -> Membership:
    """Where a process is.

    Raises :class:`ProcessGone`, or :class:`NotCgroup2` on a host without cgroup v2.
    """
    path = f"/proc/{pid}/cgroup"
    try:
        return parse_membership(_read_proc(path))
    except ValueError as error:
        raise NotCgroup2(path, f"{error}; mount cgroup2") from error


def cgroup_of(pid: int) -> str:
    """The path of a process's cgroup from the root of our cgroup namespace, without a mount point."""
    return membership(pid).path


def is_kernel_thread(pid: int) -> bool:
    """Whether it is a kernel thread, which cannot be moved. Raises :class:`ProcessGone`."""
    path = f"/proc/{pid}/stat"
    text = _read_proc(path)
    # PID (COMM) STATE PPID PGRP SESSION TTY TPGID FLAGS; COMM may hold spaces and parentheses.
    try:
        flags = int(text.rpartition(")")[2].split()[6])
    except (IndexError, ValueError) as error:
        raise BadFormat(path, f"cannot be understood: {text[:80]!r}") from error
    return bool(flags & _PF_KTHREAD)


def _read_proc(path: str) -> str:
    # By descriptor: a text file object costs more than all the rest of finding a process's cgroup.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _PROC_BYTES).decode(errors="surrogateescape")
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone(path, "there is no such process", error.errno or 0) from error


def parse_mounts(text: str) -> tuple[Cgroup2Mount, ...]:
    """The cgroup2 mounts of a mountinfo file, the one of the whole hierarchy first."""
    found = []
    is_hybrid = False
    for line in text.splitlines():
        # 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        if rest[0] == "cgroup":
            is_hybrid = True
        elif rest[0] == "cgroup2":
            found.append(
                (_unescape(fields[3]), _unescape(fields[4]), fields[5].split(","), rest[2].split(","))
            )
    mounts = [
        Cgroup2Mount(
            Path(point),
            root,
            "ro" in per_mount or "ro" in per_superblock,
            is_hybrid,
            _options(per_superblock),
        )
        for root, point, per_mount, per_superblock in found
    ]
    return tuple(sorted(mounts, key=lambda mount: mount.root != "/"))


def _options(words: list[str]) -> MountOptions:
    return MountOptions(**{name: name in words for name in MountOptions.__slots__})


def _unescape(text: str) -> str:
    # mountinfo writes space, tab, newline and backslash as three octal digits.
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def find_mount(mountinfo: str | os.PathLike[str] = "/proc/self/mountinfo") -> Cgroup2Mount:
    """The cgroup2 mount that shows the whole hierarchy, else the first one.

    Raises :class:`NotCgroup2` when none is mounted.
    """
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse_mounts(file.read())
    if not mounts:
        raise NotCgroup2(
            mountinfo, "no cgroup2 filesystem is mounted; try: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        )
    return mounts[0]


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified on a hybrid host."""
    return find_mount().path
