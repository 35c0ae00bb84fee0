"""Whose a process is: the session and the call that the cgroup it stands in belongs to."""

from collections.abc import Mapping

from agentcgroup.cgroups.errors import ProcessGone
from agentcgroup.cgroups.membership import cgroup_of
from agentcgroup.daemon.host.pidfd import cgroup_id
from agentcgroup.daemon.ports import Location, Process


class Homes:
    """The places where processes of sessions live, below one root and in containers."""

    def __init__(self, root: str) -> None:
        """Paths are as /proc/PID/cgroup has them."""
        self._root = root
        self._by_id: dict[int, Location] = {}
        self._sessions: set[str] = set()
        self._containers: dict[str, str] = {}
        self._session_of_call: dict[str, str] = {}

    @property
    def by_id(self) -> Mapping[int, Location]:
        """Agent leaves and calls by the ids of their cgroups; changes with them."""
        return self._by_id

    def add_session(self, name: str, agent_id: int, container: str | None) -> None:
        """`agent_id`: of the agent leaf's cgroup; `container`: path of the cgroup that became the session."""
        self._sessions.add(name)
        self._by_id[agent_id] = Location(name)
        if container is not None:
            self._containers[container] = name

    def forget_session(self, name: str, agent_id: int) -> None:
        self._sessions.discard(name)
        self._by_id.pop(agent_id, None)
        self._containers = {path: each for path, each in self._containers.items() if each != name}

    def add_call(self, call_id: str, session: str, its_cgroup_id: int) -> None:
        self._session_of_call[call_id] = session
        self._by_id[its_cgroup_id] = Location(session, call_id)

    def forget_call(self, call_id: str, its_cgroup_id: int) -> None:
        self._session_of_call.pop(call_id, None)
        self._by_id.pop(its_cgroup_id, None)

    def session_of(self, call_id: str) -> str:
        """The empty name when there is no such call."""
        return self._session_of_call.get(call_id, "")

    def locate(self, process: Process) -> Location:
        """Where the process lives; nowhere when it has ended, or stands outside of every session."""
        # One ioctl where the kernel tells and the cgroup is one of ours; else by the path, which also knows what others
        # made inside ours, and containers.
        known = self._by_id.get(cgroup_id(process.pidfd) or 0)
        if known is not None:
            return known
        try:
            path = cgroup_of(process.pid)
        except ProcessGone:
            return Location()
        session = self._session_at(path)
        if session not in self._sessions:
            return Location()
        # The innermost call of the path; a nested call's parent stands before it.
        for part in reversed(path.split("/")):
            if self._session_of_call.get(part) == session:
                return Location(session, part)
        return Location(session)

    def _session_at(self, path: str) -> str:
        if path.startswith(self._root + "/"):
            return path[len(self._root) + 1 :].partition("/")[0]
        for container, name in self._containers.items():
            if path == container or path.startswith(container + "/"):
                return name
        return ""
