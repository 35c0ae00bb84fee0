"""One daemon after another: what the last one left running is taken over, and a stop leaves it for the next one.

The kernel kept limits, processes and counters meanwhile, and on each cgroup what the last daemon knew (daemon/record.py).
What was only promised, queued calls, grants, tickets, standing grants, is gone. What cannot be understood is left alone
and named in the log, with its limits in force.
"""

import asyncio
import dataclasses
import logging
import mmap
import os
from collections.abc import Iterable
from typing import Any, Final

from agentcgroup.daemon import record
from agentcgroup.daemon.controller.core import Life
from agentcgroup.daemon.controller.drain import Draining
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.ledger import is_call_id
from agentcgroup.daemon.model import (
    Action,
    Actor,
    CallLimits,
    CallState,
    Decision,
    FeedbackKind,
    FreezeCause,
    Intent,
    Session,
    SessionState,
    ToolCall,
)
from agentcgroup.daemon.ports import Kept
from agentcgroup.daemon.record import BadRecord
from agentcgroup.proto.transparent import OFF

log = logging.getLogger("agentcgroup.controller")

# What ends when the daemon stops is still reported, if it does not take longer.
_ENDS_WITHIN_S: Final = 5.0


class Adoption(Draining):
    # ---- the start

    async def take_over(self, left: Iterable[Kept]) -> None:
        """Goes on with `left`, every session of an earlier daemon. Before anybody is served."""
        for kept in left:
            if kept.record is None:
                continue  # The sweep has said so.
            try:
                await self._take_over(kept, kept.record)
            except (BadRecord, RequestError) as error:
                log.error(
                    "session %s of an earlier daemon is left alone, its limits hold: %s."
                    " Next step: end its processes and remove its cgroup, %s/%s",
                    kept.name,
                    error,
                    self._host.cgroup_root,
                    kept.name,
                )
            except Exception:
                # A daemon that does not start helps nobody.
                self.counters.internal_error()
                log.exception("session %s of an earlier daemon could not be taken over in full", kept.name)

    async def adopt_session(self, *arguments: Any, **options: Any) -> Session:
        """Of a container that was a session before: its calls go on, too."""
        session = await super().adopt_session(*arguments, **options)
        ended = self._take_over_calls(session)
        # It is the session that they were declared in; see Ledger.call.
        session.created_at_ns = min(
            (session.created_at_ns, *(call.declared_at_ns for call in session.calls.values()))
        )
        for call in ended:
            self._begin_end(call)
        return session

    async def _take_over(self, kept: Kept, data: bytes) -> None:
        session = record.decode_session(
            data, os.path.join(self.config.daemon.run_dir, "sessions", kept.name)
        )
        if session.name != kept.name:
            raise BadRecord(f"its record is that of session {session.name!r}")
        budget = session.budget
        memory_max_bytes = _in_force(kept.memory_max_bytes, budget.memory_max_bytes)
        if memory_max_bytes is not None and memory_max_bytes > budget.agent_memory_bytes:
            budget = dataclasses.replace(budget, memory_max_bytes=memory_max_bytes)
        session.budget = dataclasses.replace(budget, pids_max=kept.pids_max or budget.pids_max)
        session.cgroup = self._host.reopen_session(session)
        if kept.is_frozen:
            # Of all sessions only operators freeze the calls as a whole.
            session.state = SessionState.FROZEN
        self._keep_rule(session)
        self._ledger.add_session(session)
        ended = self._take_over_calls(session)
        self.counters.sessions_adopted += 1
        running = len(session.calls) - len(ended)
        words = f"Taken over from an earlier daemon: {running} calls run on, {len(ended)} ended while it was away."
        self._decided(
            Action.ADOPTED,
            session.name,
            words,
            actor=Actor.DAEMON,
            priority=session.priority,
            memory_max_bytes=session.budget.memory_max_bytes,
            agent_memory_bytes=session.budget.agent_memory_bytes,
            calls_running=running,
            calls_ended=len(ended),
        )
        self._remember_session(session)
        if self._doors is not None:
            try:
                await self._doors.open(session)
            except RequestError as error:
                log.error("session %s goes on without its sockets: %s", session.name, error)
        self._say(FeedbackKind.SESSION, session.name, words)
        for call in ended:
            self._begin_end(call)
        self._memory_shifted(session.name)
        if not self._host.has_agent(session.name):
            self.agent_gone(session.name)

    def _keep_rule(self, session: Session) -> None:
        try:
            self._set_rule(session, session.transparent)
        except RequestError as error:
            log.warning("session %s has no transparent door any more: %s", session.name, error)
            session.transparent = OFF

    # ---- its calls

    def _take_over_calls(self, session: Session) -> list[ToolCall]:
        """Goes on with every call in `session`; those that have ended meanwhile, whose end is still to be begun."""
        ended = []
        for kept in self._host.records.calls(session.name):
            try:
                call = self._take_over_call(session, kept)
            except (BadRecord, RequestError) as error:
                log.error(
                    "%s/%s of an earlier daemon is left alone, its limits hold: %s. It goes when its session is removed",
                    session.name,
                    kept.name,
                    error,
                )
                continue
            except Exception:
                self.counters.internal_error()
                log.exception("%s/%s of an earlier daemon is left alone", session.name, kept.name)
                continue
            if call is not None and not self._lives[call.id].followed:
                ended.append(call)
        return ended

    def _take_over_call(self, session: Session, kept: Kept) -> ToolCall | None:
        """The call, in the books and watched; None: it was prepared and nobody has had it."""
        followed: tuple[int, ...] = ()
        if kept.record is None:
            call = self._unrecorded(session, kept)
        else:
            call, followed = record.decode_call(kept.record, session.name)
        if (call.id, call.parent_id) != (kept.name, kept.parent):
            raise BadRecord(f"its record is that of call {call.id!r}")
        if call.parent_id and call.parent_id not in session.calls:
            raise BadRecord("the call around it is left alone")
        limits = call.limits
        memory_max_bytes = _in_force(kept.memory_max_bytes, limits.memory_max_bytes)
        call.limits = dataclasses.replace(
            limits,
            memory_bytes=min(limits.memory_bytes, memory_max_bytes or limits.memory_bytes),
            memory_max_bytes=memory_max_bytes,
            pids_max=kept.pids_max or limits.pids_max,
        )
        call.cgroup = self._host.reopen_call(call)
        if call.started_at_ns is None:
            if not kept.pids and not kept.has_run:
                self._host.remove_call(call.id)
                return None
            # Taken by a caller, and then the daemon was gone.
            call.started_at_ns, followed = call.declared_at_ns, kept.pids[:1]
        call.state = CallState.RUNNING
        self._keep_frozen(call, is_frozen=kept.is_frozen)
        self._ledger.add_call(call)
        life = self._lives[call.id] = Life()
        for pid in followed:
            process = self._host.reopen_process(call.id, pid)
            if process is not None:
                self._follow(call, process)
        if life.followed:
            self._resume_call(call)
        else:
            call.ended_unseen = True
            life.status_known.set()
        return call

    def _unrecorded(self, session: Session, kept: Kept) -> ToolCall:
        """A call whose daemon died between placing it and writing what it had declared; the kernel has its limits."""
        if not is_call_id(kept.name):
            raise BadRecord("no daemon made it")
        log.warning(
            "%s/%s: what it declared, and until when it may run, is not known", session.name, kept.name
        )
        return ToolCall(
            id=kept.name,
            session=session.name,
            parent_id=kept.parent,
            intent=Intent(),
            limits=CallLimits(self._defaults.memory_bytes),
            decision=Decision.GRANTED,
            declared_at_ns=self._clock.now_ns(),
        )

    def _keep_frozen(self, call: ToolCall, *, is_frozen: bool) -> None:
        """An operator's freeze stays. Whatever a policy froze goes on: it is looked at anew."""
        call.frozen_by &= {FreezeCause.OPERATOR} if is_frozen else set()
        if call.frozen_by:
            call.state = CallState.FROZEN
        elif is_frozen:
            self._host.freeze_call(call.id, False)

    def _resume_call(self, call: ToolCall) -> None:
        assert call.started_at_ns is not None
        self.counters.calls_adopted += 1
        left_ms = None
        if call.limits.deadline_ms is not None:
            left_ms = int(self._arm_deadline(call, call.limits.deadline_ms))
        self._decided(
            Action.ADOPTED,
            call.session,
            f"Taken over from an earlier daemon: process {call.pid} runs on.",
            call=call,
            actor=Actor.DAEMON,
            pid=call.pid,
            memory_bytes=call.limits.memory_bytes,
            memory_max_bytes=call.limits.memory_max_bytes,
            deadline_in_ms=left_ms,
        )
        self._remember_call(call)
        self._begin_ladder(call, anew=True)
        self._begin_samples(call)
        if call.kill_reason is not None:
            # The last daemon had told it to end.
            self._kill(call, call.kill_reason, call.kill_note)

    # ---- the stop

    async def leave(self) -> None:
        """A stop that sessions outlive: nobody is held back by a policy that nobody follows any more."""
        self.withdraw_standing()
        self._let_everybody_go()
        self._lift_session_marks()
        for call in self._ledger.calls(None):
            if call.started_at_ns is not None and call.is_live:
                self._thaw(call, FreezeCause.LADDER)
                self._remember_call(call)
        for session in self.sessions():
            self._remember_session(session)
            self._say(
                FeedbackKind.SESSION,
                session.name,
                "agentcgroupd is stopping. What runs goes on under its limits, and the next start takes it over.",
                advice="Until then nothing new begins. Watch again when the socket answers.",
            )
        try:
            async with asyncio.timeout(_ENDS_WITHIN_S):
                await self.settle()
        except TimeoutError:
            log.warning("some calls have not ended in %.0f s; the next start reports them", _ENDS_WITHIN_S)


def _in_force(kernel: int | None, recorded: int | None) -> int | None:
    """A memory limit as it stands in the kernel, which keeps whole pages; `recorded` where the kernel has none."""
    if kernel is None or (recorded is not None and 0 <= recorded - kernel < mmap.PAGESIZE):
        return recorded
    return kernel
