"""What an earlier daemon left in the kernel: cgroups, and on each the record it wrote there.

A record is an extended attribute of its cgroup, so it goes when that goes and never means another one. `trusted.*`
takes CAP_SYS_ADMIN to read as well as to write (xattr(7)): no agent sees what others declared, or changes what it was given.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Final

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone
from agentcgroup.daemon.host.groups import AGENT, CALLS, SELF, CallGroup, SessionGroup
from agentcgroup.daemon.ports import Kept

__all__ = ["RECORD", "CgroupRecords", "read_record", "write_record"]

log = logging.getLogger("agentcgroup.host")

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


class CgroupRecords:
    """`sessions` and `calls` are the host's own, as they are at each moment; what is not among them is another daemon's."""

    def __init__(
        self, root: Cgroup, sessions: Mapping[str, SessionGroup], calls: Mapping[str, CallGroup]
    ) -> None:
        self._root = root
        self._sessions = sessions
        self._calls = calls
        self._has_failed = False

    def keep_session(self, session: str, record: bytes) -> None:
        if session in self._sessions:
            self._keep(self._sessions[session].cgroup, record)

    def keep_call(self, call_id: str, record: bytes) -> None:
        if call_id in self._calls:
            self._keep(self._calls[call_id].cgroup, record)

    def _keep(self, cgroup: Cgroup, record: bytes) -> None:
        try:
            write_record(cgroup, record)
        except CgroupError as error:
            if not self._has_failed and cgroup.is_alive():
                log.warning("the next daemon will not know what runs now: %s", error)
                self._has_failed = True

    def sessions(self) -> tuple[Kept, ...]:
        return tuple(one for one in _sessions_in(self._root) if one.name not in self._sessions)

    def calls(self, session: str) -> tuple[Kept, ...]:
        calls = self._sessions[session].calls
        return tuple(one for one in _calls_in(calls, "") if one.name not in self._calls)


def _sessions_in(root: Cgroup) -> Iterator[Kept]:
    for name in root.child_names():
        try:
            with root.open_child(name) as session:
                if AGENT not in session.child_names():
                    continue
                with session.open_child(CALLS) as calls:
                    is_frozen = calls.read(files.CGROUP_FREEZE) is True
                yield _kept(session, is_frozen=is_frozen)
        except CgroupError as error:
            _say(error)


def _calls_in(calls: Cgroup, parent: str) -> Iterator[Kept]:
    for name in calls.child_names():
        if name == SELF:
            continue
        try:
            with calls.open_child(name) as call:
                cpu = call.read(files.CPU_STAT)
                yield _kept(
                    call,
                    parent=parent,
                    pids=call.all_process_ids(),
                    has_run=cpu is not None and bool(cpu.usage_usec),
                    is_frozen=call.read(files.CGROUP_FREEZE) is True,
                )
                yield from _calls_in(call, name)
        except CgroupError as error:
            _say(error)


def _kept(
    cgroup: Cgroup, *, is_frozen: bool, parent: str = "", pids: tuple[int, ...] = (), has_run: bool = False
) -> Kept:
    memory_max, pids_max = cgroup.read(files.MEMORY_MAX), cgroup.read(files.PIDS_MAX)
    return Kept(
        name=cgroup.name,
        record=read_record(cgroup),
        parent=parent,
        pids=pids,
        has_run=has_run,
        is_frozen=is_frozen,
        memory_max_bytes=memory_max if isinstance(memory_max, int) else None,
        pids_max=pids_max if isinstance(pids_max, int) else None,
    )


def _say(error: CgroupError) -> None:
    if not isinstance(error, CgroupGone):
        log.error("a cgroup of an earlier daemon is left alone: %s", error)
