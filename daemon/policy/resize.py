"""Changing limits of what lives: a running call's, a session's budget. Never below what is in use now.

Shrinking memory.max under current use would make the kernel kill at once, so it is refused; growing is ruled on as a new
intent would be.
"""

import dataclasses

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Budget, BudgetRequest, CallLimits, Decision, Intent, Usage
from agentcgroup.daemon.policy.admission import (
    CallDefaults,
    HostView,
    ParentView,
    Ruling,
    SessionView,
    admit,
    nested_memory_bytes,
)
from agentcgroup.proto.quantity import format_size

# Use moves while the new limit is being written; keep this much above it.
_MARGIN_BYTES = 4 << 20


def resize(
    intent: Intent,
    limits: CallLimits,
    usage: Usage,
    session: SessionView,
    host: HostView,
    parent: ParentView | None,
    defaults: CallDefaults,
    held_bytes: int | None = None,
    inside_reserved_bytes: int = 0,
) -> Ruling:
    """Rules on other limits for a live call. The views must not count what the call itself has reserved.

    `intent` carries the call's own on_exceed and throttle_limit_ms, which do not change. `held_bytes`: what of its memory
    reclaim cannot take; None: nobody knows. `inside_reserved_bytes`: what calls nested in it have reserved.
    """
    declared_max = intent.memory_max_bytes
    if declared_max is None and intent.memory_bytes is not None and limits.memory_max_bytes is not None:
        declared_max = max(limits.memory_max_bytes, intent.memory_bytes)
    asked = dataclasses.replace(
        intent,
        memory_bytes=intent.memory_bytes if intent.memory_bytes is not None else min(
            limits.memory_bytes, declared_max if declared_max is not None else limits.memory_bytes
        ),
        memory_max_bytes=declared_max if declared_max is not None else limits.memory_max_bytes,
        cpu_milli=intent.cpu_milli or limits.cpu_milli,
        cpu_weight=intent.cpu_weight or limits.cpu_weight,
        pids_max=intent.pids_max or limits.pids_max,
        deadline_ms=intent.deadline_ms or limits.deadline_ms,
    )  # fmt: skip
    # The call is live already: it counts against no bound on the number of calls, and a drain or a freeze lets it be.
    here = dataclasses.replace(session.thawed(), calls_live=0)
    there = dataclasses.replace(host, calls_live=0, is_draining=False)
    ruling = admit(asked, here, there, parent, defaults)
    if ruling.limits is None:
        return ruling
    new_max, current = ruling.limits.memory_max_bytes, usage.memory_current_bytes
    if new_max is not None and current is not None and new_max < current + _MARGIN_BYTES:
        return Ruling(
            Decision.REFUSED,
            f"Refused: the call uses {format_size(current)} now, so a limit of {format_size(new_max)} would kill it.",
            suggestion=f"Ask for at least --memory-max {((current + _MARGIN_BYTES) >> 20) + 1}M, or release memory first.",
        )
    if new_max is not None and new_max < min(inside_reserved_bytes, limits.memory_max_bytes or new_max):
        return Ruling(
            Decision.REFUSED,
            f"Refused: calls inside it have reserved {format_size(inside_reserved_bytes)}, more than a limit of "
            f"{format_size(new_max)} leaves them.",
            suggestion=f"Ask for at least --memory-max {-(-inside_reserved_bytes >> 20)}M, or end some of them first "
            "(`agentcg call tree` shows them).",
        )
    high = ruling.limits.memory_high_bytes
    # Between a soft limit and a call that is over it stands nothing but its deadline.
    if high is not None and held_bytes is not None and _is_below_use(high, limits.memory_bytes, held_bytes):
        return Ruling(
            Decision.REFUSED,
            f"Refused: the call holds {format_size(held_bytes)} now, so with {format_size(high)} reserved it would be held "
            "back, and stopped if it stayed there.",
            suggestion=f"Ask for at least --memory {((held_bytes + _MARGIN_BYTES) >> 20) + 1}M, or release memory first.",
        )
    kept = dataclasses.replace(ruling.limits, swap_max_bytes=limits.swap_max_bytes)
    return dataclasses.replace(ruling, limits=kept)


def without(
    own_bytes: int, session: SessionView, host: HostView, parent: ParentView | None
) -> tuple[SessionView, HostView, ParentView | None]:
    """The views for `resize` of a call that has `own_bytes` reserved: at least that is free for it.

    Also where more is promised than there is, because some of it is lent or kept for others: to shrink must be possible.
    """
    if parent is not None:
        total = nested_memory_bytes(parent.memory_max_bytes, session.budget)
        others = min(parent.memory_reserved_bytes, total) - own_bytes
        return session, host, dataclasses.replace(parent, memory_reserved_bytes=others)
    here = min(session.memory_reserved_bytes, session.budget.calls_memory_bytes) - own_bytes
    there = min(host.memory_reserved_bytes, host.memory_capacity_bytes) - own_bytes
    return (
        dataclasses.replace(session, memory_reserved_bytes=here),
        dataclasses.replace(host, memory_reserved_bytes=there),
        None,
    )


def decide_budget(request: BudgetRequest, base: Budget, host: HostView) -> Budget:
    """`base` with what the request changes. Raises RequestError(INVALID) when it contradicts itself or the host."""
    budget = Budget(
        memory_max_bytes=request.memory_max_bytes
        if request.memory_max_bytes is not None
        else base.memory_max_bytes,
        agent_memory_bytes=request.agent_memory_bytes
        if request.agent_memory_bytes is not None
        else base.agent_memory_bytes,
        swap_max_bytes=request.swap_max_bytes if request.swap_max_bytes is not None else base.swap_max_bytes,
        cpu_milli=request.cpu_milli if request.cpu_milli is not None else base.cpu_milli,
        cpu_weight=request.cpu_weight if request.cpu_weight is not None else base.cpu_weight,
        pids_max=request.pids_max if request.pids_max is not None else base.pids_max,
        calls_max=request.calls_max if request.calls_max is not None else base.calls_max,
    )
    # A small session given without --agent-memory keeps a quarter for its agent rather than being refused.
    if request.agent_memory_bytes is None and budget.agent_memory_bytes > budget.memory_max_bytes // 4:
        budget = dataclasses.replace(budget, agent_memory_bytes=budget.memory_max_bytes // 4)
    if budget.agent_memory_bytes >= budget.memory_max_bytes:
        raise RequestError(
            Kind.INVALID,
            f"the agent's memory of {format_size(budget.agent_memory_bytes)} leaves nothing of the session's "
            f"{format_size(budget.memory_max_bytes)} for its calls",
            "ask for a larger --memory or a smaller --agent-memory",
            "budget.agent_memory_bytes",
        )
    if budget.memory_max_bytes > host.memory_capacity_bytes:
        raise RequestError(
            Kind.INVALID,
            f"the session's {format_size(budget.memory_max_bytes)} are more than the "
            f"{format_size(host.memory_capacity_bytes)} that all sessions of this host may use",
            "ask for less, or raise host.memory in the configuration",
            "budget.memory_max_bytes",
        )
    return budget


def within(limits: CallLimits, memory_bytes: int, cpu_milli: int | None, pids_max: int | None) -> CallLimits:
    """`limits` of a live call where what is around it has shrunk: nothing that it may reach is more than what there is."""

    def capped(limit: int | None, bound: int | None) -> int | None:
        return limit if limit is None or bound is None else min(limit, bound)

    reach = capped(limits.memory_max_bytes, max(memory_bytes, limits.memory_bytes))
    return dataclasses.replace(
        limits,
        memory_max_bytes=reach,
        memory_high_bytes=None if reach == limits.memory_bytes else limits.memory_high_bytes,
        cpu_milli=capped(limits.cpu_milli, cpu_milli),
        pids_max=capped(limits.pids_max, pids_max),
    )


def _is_below_use(new_bytes: int, old_bytes: int, current_bytes: int) -> bool:
    """Whether a limit shrinks to where the kernel would have to kill."""
    return new_bytes < old_bytes and new_bytes < current_bytes + _MARGIN_BYTES


def check_shrink(
    budget: Budget,
    old: Budget,
    memory_reserved_bytes: int,
    usage: Usage,
    calls_current_bytes: int | None,
    host: HostView,
) -> None:
    """Raises RequestError(STATE) when the new budget is below what the session, or its calls, use or were promised."""
    # What is lent may be promised beyond the budget; that is no reason against a change that takes nothing away.
    if budget.calls_memory_bytes < min(memory_reserved_bytes, old.calls_memory_bytes):
        raise RequestError(
            Kind.STATE,
            f"running calls have reserved {format_size(memory_reserved_bytes)}; the new budget leaves them "
            f"{format_size(budget.calls_memory_bytes)}",
            "wait for calls to end, give them less (`agentcg call set`) or kill some (`agentcg call list`), then change it",
            "budget.memory_max_bytes",
        )
    current = usage.memory_current_bytes
    if current is not None and _is_below_use(budget.memory_max_bytes, old.memory_max_bytes, current):
        raise RequestError(
            Kind.STATE,
            f"the session uses {format_size(current)}: a budget of {format_size(budget.memory_max_bytes)} would kill in it",
            "ask for more, or free memory first",
            "budget.memory_max_bytes",
        )
    if calls_current_bytes is not None and _is_below_use(
        budget.calls_memory_bytes, old.calls_memory_bytes, calls_current_bytes
    ):
        raise RequestError(
            Kind.STATE,
            f"the session's calls use {format_size(calls_current_bytes)}: {format_size(budget.calls_memory_bytes)} "
            "for them would kill one",
            "ask for more, or free memory first",
            "budget.memory_max_bytes",
        )
    grown = budget.agent_memory_bytes - old.agent_memory_bytes
    if grown > 0 and host.memory_reserved_bytes + grown > host.memory_capacity_bytes:
        raise RequestError(
            Kind.STATE,
            f"the host has {format_size(max(0, host.memory_capacity_bytes - host.memory_reserved_bytes))} left to promise",
            "ask for a smaller --agent-memory",
            "budget.agent_memory_bytes",
        )
