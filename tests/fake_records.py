"""What an earlier daemon kept on the cgroups of FakeHost."""

import mmap
from typing import TYPE_CHECKING

from agentcgroup.daemon.ports import Kept

if TYPE_CHECKING:
    from tests.fakes import FakeHost


def _in_pages(limit_bytes: int | None) -> int | None:
    """As memory.max has it."""
    return None if limit_bytes is None else limit_bytes // mmap.PAGESIZE * mmap.PAGESIZE


class FakeRecords:
    """`kept`: by name, of sessions and calls; it outlives a daemon like the rest of the machine."""

    def __init__(self, host: "FakeHost") -> None:
        self._host = host
        self.kept: dict[str, bytes] = {}

    def keep_session(self, session: str, record: bytes) -> None:
        self.kept[session] = record

    def keep_call(self, call_id: str, record: bytes) -> None:
        if call_id in self._host.calls:
            self.kept[call_id] = record

    def sessions(self) -> tuple[Kept, ...]:
        return tuple(
            Kept(
                name,
                self.kept.get(name),
                is_frozen=name in self._host.frozen_sessions,
                memory_max_bytes=_in_pages(budget.memory_max_bytes),
            )
            for name, budget in self._host.sessions.items()
            if name not in self._host.reopened | self._host.containers
        )

    def calls(self, session: str) -> tuple[Kept, ...]:
        return tuple(
            Kept(
                call_id,
                self.kept.get(call_id),
                parent=group.call.parent_id,
                pids=group.live_pids,
                has_run=bool(group.pids),
                is_frozen=group.frozen,
                memory_max_bytes=_in_pages(group.limits.memory_max_bytes),
                pids_max=group.limits.pids_max,
            )
            for call_id, group in self._host.calls.items()
            if group.call.session == session and call_id not in self._host.reopened
        )
