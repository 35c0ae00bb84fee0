"""Processes that the kernel refused at a pids.max, and at whose: of a call, of a call around it, of the session.

Since Linux 6.11 pids.events of a cgroup counts what was refused at its limit or below, and pids.events.local at its own
(cgroup-v2.rst, PID). So one watch on a session tells of all its calls, and a launch costs nothing. Older kernels count where
it was forked and tell nobody above: there a call's report has the count and nothing is told before.
"""

import logging
from collections.abc import Callable

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone
from agentcgroup.daemon.host.changes import Changes
from agentcgroup.daemon.host.groups import CallGroup, SessionGroup
from agentcgroup.daemon.model import Refusals

log = logging.getLogger("agentcgroup.host")


def _refused_in(cgroup: Cgroup) -> int:
    """What was refused at this cgroup's limit or below."""
    try:
        events = cgroup.read(files.PIDS_EVENTS)
    except CgroupGone:
        return 0
    return (events.max if events else None) or 0


def refused_at(cgroup: Cgroup) -> int | None:
    """What was refused at this cgroup's own limit; None: this kernel does not tell levels apart, or it is gone."""
    try:
        events = cgroup.read(files.PIDS_EVENTS_LOCAL)
    except CgroupGone:
        return None
    return events.max if events else None


class RefusalWatch:
    """Lives on the event loop. `calls` are the host's own, looked at, never changed."""

    def __init__(
        self, calls: dict[str, CallGroup], session_of: Callable[[str], str], changes: Changes
    ) -> None:
        self._calls = calls
        self._session_of = session_of
        self._changes = changes
        self._sessions: dict[str, SessionGroup] = {}
        self._watches: dict[str, int] = {}
        # What a session's cgroup had counted at its own limit when it was opened: of an earlier daemon.
        self._before: dict[str, int] = {}
        self._seen: dict[str, tuple[int, Refusals]] = {}

    def open(self, session: str, group: SessionGroup) -> None:
        """From now on `read` answers for the session."""
        self._sessions[session] = group
        self._before[session] = refused_at(group.cgroup) or 0

    def forget(self, session: str) -> None:
        self.ignore(session)
        for kept in (self._sessions, self._before, self._seen):
            kept.pop(session, None)

    def listen(self, session: str, refused: Callable[[], None]) -> None:
        """Calls `refused` when the kernel has refused a process; what happened before is not told."""
        group = self._sessions.get(session)
        if group is None or session in self._watches:
            return
        try:
            self._watches[session] = self._changes.watch(group.cgroup, files.PIDS_EVENTS, refused)
        except CgroupError as error:
            if not isinstance(error, CgroupGone):
                log.warning("session %s: refused processes are told at the end only: %s", session, error)

    def ignore(self, session: str) -> None:
        watch_id = self._watches.pop(session, None)
        if watch_id is not None:
            self._changes.forget(watch_id)

    def read(self, session: str) -> Refusals:
        """Reads one file when nothing was refused since the last time."""
        group = self._sessions.get(session)
        if group is None:
            return Refusals()
        total = _refused_in(group.cgroup)
        known = self._seen.get(session)
        if known is not None and known[0] == total:
            return known[1]
        calls = {
            call_id: count
            for call_id, call in self._calls.items()
            if self._session_of(call_id) == session and (count := refused_at(call.cgroup))
        }
        own = (refused_at(group.cgroup) or 0) - self._before[session]
        found = Refusals(own, calls)
        self._seen[session] = total, found
        return found
