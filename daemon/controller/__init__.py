"""The verbs of the daemon: sessions and calls from opening to report, over the Protocols of agentcgroup.daemon.ports."""

import os

from agentcgroup import __version__
from agentcgroup.daemon.controller.adoption import Adoption
from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.standing import MOST_STANDING
from agentcgroup.daemon.model import HostStatus, Level, SessionLimits, SessionState, ToolCall
from agentcgroup.daemon.policy import admission, truth

# Free memory, as a share of what the session's calls may use, below which an agent should think of memory.
_TIGHT, _CRITICAL = 0.25, 0.05


class Controller(Adoption):
    """Everything the edges may ask for. Runs on one event loop; nothing here blocks but short cgroup file operations."""

    @property
    def not_enforced(self) -> tuple[str, ...]:
        """Limits that this host enforces not, each with the cause."""
        return self._host.not_enforced

    def limits_of(self, session: str, call_id: str = "") -> SessionLimits:
        """The truth for who lives in `session`, or in a live call of it: what is allowed, free, and not enforced."""
        found = self._ledger.session(session)
        call = self._ledger.live_call(session, call_id) if call_id else None
        total, milli = (
            found.budget.calls_memory_bytes,
            found.budget.cpu_milli or self._host.cpu_capacity_milli,
        )
        milli = min(milli, self._host.cpu_capacity_milli)
        usage = self.session_usage(found)
        pids = found.budget.pids_max if found.budget.pids_max is not None else self.config.host.pids_max
        pids_free = [pids - (usage.pids_current or 0)]
        if call is not None:
            around = self.surroundings(call)
            milli = truth.cpu_milli(call.limits, around)
            total = truth.memory_max_bytes(call.limits, around) or total
            for each in (self._ledger.call(session, one) for one in self._ledger.lineage(call)):
                if each.limits.pids_max is not None:
                    pids_free.append(each.limits.pids_max - (self.call_usage(each).pids_current or 0))
        available = admission.memory_available_bytes(
            self._session_view(found), self._host_view(), self._parent_view(call)
        )
        share = available / total
        return SessionLimits(
            session=session,
            budget=found.budget,
            priority=found.priority,
            usage=usage,
            memory_max_bytes=total,
            memory_available_bytes=min(available, total),
            cpu_available_milli=milli,
            pids_available=max(0, min(pids_free)),
            level=Level.CRITICAL if share < _CRITICAL else Level.TIGHT if share < _TIGHT else Level.AMPLE,
            not_enforced=self._host.not_enforced,
            call=call,
            is_frozen=found.state is SessionState.FROZEN,
            drain=self._drain,
        )

    def surroundings(self, call: ToolCall) -> truth.Surroundings:
        """The caps around a call, innermost first."""
        budget = self._ledger.session(call.session).budget
        outer = [self._ledger.call(call.session, each).limits for each in self._ledger.lineage(call)[1:]]
        return truth.Surroundings(
            cpu_milli=(*(each.cpu_milli for each in outer), budget.cpu_milli),
            host_cpu_milli=self._host.cpu_capacity_milli,
            memory_bytes=(*(each.memory_max_bytes for each in outer), budget.calls_memory_bytes),
        )

    def host(self) -> HostStatus:
        usage, rss_bytes = self._host.daemon_usage()
        return HostStatus(
            version=__version__,
            kernel=os.uname().release,
            tier=self._host.tier,
            capabilities=self._host.capabilities,
            memory_capacity_bytes=self._host.memory_capacity_bytes,
            memory_reserved_bytes=self._ledger.memory_reserved_bytes,
            memory_current_bytes=self._host.memory_current_bytes(),
            cpu_capacity_milli=self._host.cpu_capacity_milli,
            sessions=len(self._ledger.sessions),
            calls_live=self._ledger.calls_live,
            started_at_ns=self._started_at_ns,
            dry_run=self.config.daemon.dry_run,
            cgroup_root=self._host.cgroup_root,
            daemon_usage=usage,
            daemon_rss_bytes=rss_bytes,
            kernel_events_lost=self._host.kernel_events_lost(),
            memory_guard=self._host.guard.figures(),
            drain=self._drain,
            scheduler=self._host.scheduler(),
        )


__all__ = ["MOST_STANDING", "Controller", "World"]
