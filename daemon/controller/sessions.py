"""The verbs of a session's life: open, adopt, change, freeze, kill, remove."""

import dataclasses
import os
from typing import Final

from agentcgroup.daemon.controller.transparent import TransparentDoor
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    Action,
    Actor,
    Budget,
    BudgetRequest,
    FeedbackKind,
    KillReason,
    Labels,
    Level,
    Priority,
    ProcessRef,
    Session,
    SessionState,
    TransparentRule,
    Usage,
)
from agentcgroup.daemon.policy import pauses, resize
from agentcgroup.daemon.policy.bounds import check_name

# CPU shares between sessions; a budget's own cpu_weight goes before.
PRIORITY_WEIGHT: Final = {Priority.LOW: 10, Priority.NORMAL: 100, Priority.HIGH: 1000}


class Sessions(TransparentDoor):
    # ---- asking

    def sessions(self) -> list[Session]:
        return list(self._ledger.sessions.values())

    def session(self, name: str) -> Session:
        return self._ledger.session(name)

    def session_usage(self, session: Session) -> Usage:
        return self._host.session_usage(session.name)

    # ---- opening

    async def open_session(
        self,
        name: str,
        request: BudgetRequest,
        *,
        priority: Priority | None = None,
        owner_uid: int = 0,
        owner_gid: int = 0,
        labels: Labels = (),
        ends_with_agent: bool = False,
        transparent: TransparentRule | None = None,
    ) -> Session:
        """`transparent` None: the configured default."""
        rule = self._rule_for(transparent)
        session = self._new_session(name, request, priority, owner_uid, owner_gid, labels)
        session.ends_with_agent = ends_with_agent
        session.cgroup = self._host.open_session(session)
        return await self._admit_session(session, rule)

    async def adopt_session(
        self,
        name: str,
        request: BudgetRequest,
        *,
        cgroup_path: str,
        container_id: str,
        priority: Priority | None = None,
        owner_uid: int = 0,
        owner_gid: int = 0,
        labels: Labels = (),
        transparent: TransparentRule | None = None,
    ) -> Session:
        """A session on a running container's own cgroup, given relative to the cgroup2 mount."""
        rule = self._rule_for(transparent)
        session = self._new_session(name, request, priority, owner_uid, owner_gid, labels)
        session.container_id = container_id
        session.cgroup = self._host.adopt_session(session, cgroup_path)
        return await self._admit_session(session, rule)

    def _new_session(
        self,
        name: str,
        request: BudgetRequest,
        priority: Priority | None,
        uid: int,
        gid: int,
        labels: Labels,
    ) -> Session:
        check_name(name)
        self.withdraw_standing()
        if name in self._ledger.sessions or name in self._opening:
            raise RequestError(
                Kind.EXISTS,
                f"there is a session {name!r} already",
                "choose another name, or remove that one first",
                "name",
            )
        if self._drain is not None:
            raise RequestError(
                Kind.STATE,
                f"this host is being drained{': ' + self._drain.reason if self._drain.reason else ''}",
                "take another host, or end the drain first (`agentcg host resume`)",
            )
        if len(self._ledger.sessions) >= self.config.host.sessions_max:
            raise RequestError(
                Kind.EXHAUSTED,
                f"{self.config.host.sessions_max} sessions are open, the limit of this host",
                "remove one (`agentcg session list`), or raise host.sessions_max in the configuration",
            )
        chosen = priority or self.config.session.priority
        host = self._host_view()
        budget = resize.decide_budget(
            request, self._default_budget(chosen, host.memory_capacity_bytes), host
        )
        if host.memory_reserved_bytes + budget.agent_memory_bytes > host.memory_capacity_bytes:
            raise RequestError(
                Kind.EXHAUSTED,
                "the host has no memory left to promise to another agent runtime",
                "remove a session, wait for calls to end, or ask for a smaller --agent-memory",
            )
        return Session(
            name=name,
            budget=budget,
            priority=chosen,
            owner_uid=uid,
            owner_gid=gid,
            created_at_ns=self._clock.now_ns(),
            socket_dir=os.path.join(self.config.daemon.run_dir, "sessions", name),
            labels=labels,
        )

    def _default_budget(self, priority: Priority, capacity_bytes: int) -> Budget:
        defaults = self.config.session
        memory = min(defaults.memory, capacity_bytes)
        return Budget(
            memory_max_bytes=memory,
            agent_memory_bytes=defaults.agent_memory,
            swap_max_bytes=defaults.swap,
            cpu_milli=defaults.cpu or None,
            cpu_weight=PRIORITY_WEIGHT[priority],
            pids_max=min(defaults.pids_max, self.config.host.pids_max),
            calls_max=defaults.calls_max,
        )

    async def _admit_session(self, session: Session, rule: TransparentRule) -> Session:
        """The cgroup stands; opens the sockets and lets the session in, or takes everything back."""
        self._opening.add(session.name)
        try:
            self._set_rule(session, rule)
            if self._doors is not None:
                await self._doors.open(session)
        except BaseException:
            await self._host.close_session(session.name)
            raise
        finally:
            self._opening.discard(session.name)
        self._ledger.add_session(session)
        self._remember_session(session)
        self.counters.session_opened()
        self._memory_shifted(session.name)
        self._decided(
            Action.OPENED,
            session.name,
            "Session opened.",
            actor=Actor.OPERATOR,
            priority=session.priority,
            memory_max_bytes=session.budget.memory_max_bytes,
            agent_memory_bytes=session.budget.agent_memory_bytes,
            container_id=session.container_id or None,
        )
        self._say(FeedbackKind.SESSION, session.name, "Session opened.")
        return session

    def place_agent(self, name: str, process: ProcessRef) -> Session:
        """Moves a process of the operator's choice into the session's agent leaf."""
        session = self._open_session(name)
        found = self._host.open_process(session, process)
        try:
            location = self._host.locate(found)
            if location.session not in ("", name):
                raise RequestError(
                    Kind.STATE,
                    f"process {process.pid} belongs to session {location.session!r} already",
                    "",
                    "process",
                )
            self._host.place_agent(name, found.pid)
        finally:
            self._host.forget_process(found.pidfd)
        return session

    def _open_session(self, name: str) -> Session:
        session = self._ledger.session(name)
        if session.state is SessionState.CLOSING:
            raise RequestError(Kind.STATE, f"session {name!r} is being removed", "", "name")
        return session

    # ---- changing

    def update_session(
        self,
        name: str,
        request: BudgetRequest,
        priority: Priority | None,
        transparent: TransparentRule | None = None,
    ) -> Session:
        """What is None stays as it is."""
        session = self._open_session(name)
        rule = None if transparent is None else self._rule_for(transparent)
        self.withdraw_standing()
        host = self._host_view()
        old = session.budget
        if priority is not None and request.cpu_weight is None:
            request = dataclasses.replace(request, cpu_weight=PRIORITY_WEIGHT[priority])
        budget = resize.decide_budget(request, old, host)
        promised = max(
            (
                session.memory_reserved_bytes,
                *(each.children_reserved_bytes for each in session.calls.values()),
            )
        )
        used = [
            self.call_usage(each).memory_current_bytes
            for each in session.calls.values()
            if not each.parent_id and each.started_at_ns is not None
        ]
        known = [each for each in used if each is not None]
        resize.check_shrink(
            budget, old, promised, self.session_usage(session), sum(known) if known else None, host
        )
        # Children first, when it shrinks; what they may reach does not grow with the session.
        self._shrink_within(
            list(session.calls.values()), budget.calls_memory_bytes, budget.cpu_milli, budget.pids_max
        )
        self._host.apply_budget(session, budget)
        self._ledger.rebudget(session, budget.agent_memory_bytes)
        told = []
        if priority is not None and priority is not session.priority:
            words = f"The operator changed the session's priority from {session.priority} to {priority}."
            told.append(words)
            self._decided(Action.PRIORITISED, name, words, actor=Actor.OPERATOR, priority=priority)
        if budget != old:
            words = f"The operator changed the session's limits: {budget.memory_max_bytes >> 20} MiB in all."
            if not told or budget != dataclasses.replace(old, cpu_weight=budget.cpu_weight):
                told.append(words)
            self._decided(
                Action.RELIMITED,
                name,
                words,
                actor=Actor.OPERATOR,
                old_memory_max_bytes=old.memory_max_bytes,
                memory_max_bytes=budget.memory_max_bytes,
                agent_memory_bytes=budget.agent_memory_bytes,
                cpu_milli=budget.cpu_milli,
                cpu_weight=budget.cpu_weight,
                pids_max=budget.pids_max,
            )
        session.budget = budget
        session.priority = priority or session.priority
        self._promised(session)
        if rule is not None and rule != session.transparent:
            words = (
                f"The operator changed the session's transparent door from {session.transparent} to {rule}."
            )
            told.append(words)
            self._set_rule(session, rule)
            self._decided(Action.RELIMITED, name, words, actor=Actor.OPERATOR, transparent=str(rule))
        self._remember_session(session)
        self._memory_shifted(name)
        if told:
            shrank = budget.memory_max_bytes < old.memory_max_bytes
            level = Level.TIGHT if shrank else Level.AMPLE
            self._say(FeedbackKind.SESSION, name, " ".join(told), level=level)
        return session

    def freeze_session(self, name: str, reason: str, include_agent: bool) -> Session:
        session = self._open_session(name)
        self.withdraw_standing(name)
        self._host.freeze_session(name, True, include_agent)
        session.state = SessionState.FROZEN
        words = pauses.frozen(reason)
        self._decided(Action.FROZEN, name, words, actor=Actor.OPERATOR, include_agent=int(include_agent))
        self._say(FeedbackKind.FROZEN, name, words)
        return session

    def thaw_session(self, name: str) -> Session:
        session = self._open_session(name)
        self._host.freeze_session(name, False, True)
        session.state = SessionState.OPEN
        self._room_came_free()
        words = "The operator thawed the session; its calls go on."
        self._decided(Action.THAWED, name, words, actor=Actor.OPERATOR)
        self._say(FeedbackKind.THAWED, name, words)
        return session

    # ---- ending

    async def kill_session(self, name: str, reason: str, include_agent: bool) -> int:
        """Kills the session's calls, and its agent runtime when asked; how many calls."""
        session = self._open_session(name)
        self._hear()
        killed = await self._end_calls(session, KillReason.OPERATOR, reason)
        if include_agent:
            words = f"The operator killed the agent{': ' + reason if reason else ''}."
            self._decided(Action.KILLED, name, words, actor=Actor.OPERATOR, calls_killed=killed)
            self._host.kill_agent(name)
        return killed

    def _hear(self) -> None:
        """Before calls are ended: which have begun, and which of them are over already and need no end from us."""
        if self._doors is not None:
            self._doors.hear()
        self._host.hear_ends()

    async def _end_calls(self, session: Session, why: KillReason, note: str = "") -> int:
        begun = [call for call in session.calls.values() if call.started_at_ns is not None]
        for call in list(session.calls.values()):
            if not call.parent_id or call.started_at_ns is None:
                self._kill(call, why, note)
        for call in begun:
            await self._until_ended(call)
        return len(begun)

    async def remove_session(self, name: str, reason: str) -> None:
        await self._close_session(self._open_session(name), KillReason.SESSION_END, reason)

    async def _close_session(self, session: Session, why: KillReason, note: str) -> None:
        self._hear()
        self._refuse_new_calls(session)
        await self._end_calls(session, why, note)
        words = f"Session ended{': ' + note if note else ''}."
        self._decided(
            Action.CLOSED, session.name, words, actor=Actor.DAEMON, calls_ended=session.calls_ended
        )
        self._say(FeedbackKind.SESSION, session.name, words)
        self.feed.end_session(session.name)
        if self._doors is not None:
            await self._doors.close(session.name)
        await self._host.close_session(session.name)
        self._jobs.pop(session.name, None)
        self._ledger.remove_session(session)
        self.counters.session_closed()
        self._memory_shifted(session.name)

    async def close(self) -> None:
        """A stop that ends every session; see Adoption.leave for one that they outlive."""
        for session in self.sessions():
            if session.state is not SessionState.CLOSING:
                await self._close_session(session, KillReason.SESSION_END, "the daemon is stopping")
        await self.settle()

    # ---- what the machine tells

    def agent_gone(self, session: str) -> None:
        found = self._ledger.sessions.get(session)
        if found is not None and found.ends_with_agent:
            self._close_soon(found, "its agent has ended")

    def session_gone(self, session: str) -> None:
        found = self._ledger.sessions.get(session)
        if found is not None:
            self._close_soon(found, "its container has ended")

    def _close_soon(self, session: Session, note: str) -> None:
        # Before it closes: what has begun and is over until now ended by itself.
        self._hear()
        if session.state is not SessionState.CLOSING:
            session.state = SessionState.CLOSING
            self._spawn(self._close_session(session, KillReason.SESSION_END, note))
