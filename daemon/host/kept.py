"""What an earlier daemon left in the kernel: cgroups, and on each the record it wrote there.

A record is an extended attribute of its cgroup, so it goes when that goes and never means another one. `trusted.*`
takes CAP_SYS_ADMIN to read as well as to write (xattr(7)): no agent sees what others declared, or changes what it was given.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone
from agentcgroup.daemon.host.groups import AGENT, CALLS, SELF
from agentcgroup.daemon.ports import Kept

__all__ = ["RECORD", "kept_calls", "kept_sessions", "read_record", "write_record"]

RECORD: Final = "trusted.agentcgroup"


def write_record(cgroup: Cgroup, record: bytes) -> None:
    """Raises CgroupError."""
    cgroup.set_xattr(RECORD, record)


def read_record(cgroup: Cgroup) -> bytes | None:
    """None: there is none, or it cannot be read."""
    try:
        return cgroup.get_xattr(RECORD)
    except CgroupError:
        return None


def kept_sessions(root: Cgroup) -> Iterator[Kept]:
    """Every session below `root`; what is no session's cgroup is left out."""
    for name in root.child_names():
        try:
            with root.open_child(name) as session:
                if AGENT in session.child_names():
                    with session.open_child(CALLS) as calls:
                        yield replace(_kept(session), is_frozen=_is_frozen(calls))
        except CgroupGone:
            continue


def kept_calls(calls: Cgroup, parent: str = "") -> Iterator[Kept]:
    """Every call below, a call before those nested in it."""
    for name in calls.child_names():
        if name == SELF:
            continue
        try:
            with calls.open_child(name) as call:
                yield replace(_kept(call), parent=parent)
                yield from kept_calls(call, name)
        except CgroupGone:
            continue


def _is_frozen(cgroup: Cgroup) -> bool:
    return cgroup.read(files.CGROUP_FREEZE) is True


def _kept(cgroup: Cgroup) -> Kept:
    cpu = cgroup.read(files.CPU_STAT)
    memory_max, pids_max = cgroup.read(files.MEMORY_MAX), cgroup.read(files.PIDS_MAX)
    return Kept(
        name=cgroup.name,
        record=read_record(cgroup),
        pids=cgroup.all_process_ids(),
        has_run=cpu is not None and bool(cpu.usage_usec),
        is_frozen=_is_frozen(cgroup),
        memory_max_bytes=memory_max if isinstance(memory_max, int) else None,
        pids_max=pids_max if isinstance(pids_max, int) else None,
    )
