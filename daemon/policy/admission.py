"""Admission: an intent and what is free become limits, or a refusal that says what would be granted.

Memory is two numbers. What a call *needs* (`memory_bytes`) is reserved for it: the needs of all calls fit into the session
and, with the agents' shares, into the host. What a call may *reach* (`memory_max_bytes`) is its cap: caps may overlap,
because bursts are short and rarely meet, but none exceeds what its session's calls may use together. CPU and pids are
caps throughout.
"""

from dataclasses import dataclass, replace
from typing import Final

from agentcgroup.daemon.model import (
    Budget,
    CallLimits,
    Decision,
    Intent,
    OnExceed,
    Reason,
    SessionState,
    Trim,
)
from agentcgroup.proto.quantity import format_cpu, format_size

# Below this a call could not even load a shell and a compiler; an undeclared call is not begun with less.
LEAST_MEMORY_BYTES: Final = 16 << 20
_NO_THROTTLE: Final = "The throttle limit has no effect where on_exceed is stop: declare throttle or extend."


@dataclass(frozen=True, slots=True)
class CallDefaults:
    """What a call gets that declares nothing. `memory_max_bytes` None: all that its surroundings allow."""

    memory_bytes: int
    memory_max_bytes: int | None
    pids_max: int
    deadline_ms: int | None
    on_exceed: OnExceed
    throttle_limit_ms: int


@dataclass(frozen=True, slots=True)
class SessionView:
    state: SessionState
    budget: Budget
    memory_reserved_bytes: int
    calls_live: int

    def thawed(self) -> "SessionView":
        """As it would be if the operator had not frozen it: for what is there already, and stands still with it."""
        return replace(self, state=SessionState.OPEN) if self.state is SessionState.FROZEN else self


@dataclass(frozen=True, slots=True)
class HostView:
    memory_capacity_bytes: int
    memory_reserved_bytes: int
    cpu_capacity_milli: int
    calls_live: int
    calls_max: int
    # The operator lets no new call begin; why.
    is_draining: bool = False
    drain_reason: str = ""


@dataclass(frozen=True, slots=True)
class ParentView:
    """The call around a nested call."""

    id: str
    memory_max_bytes: int | None
    memory_reserved_bytes: int
    cpu_milli: int | None
    pids_max: int | None


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision about one intent; `limits` is None exactly when it is refused."""

    decision: Decision
    message: str
    limits: CallLimits | None = None
    trims: tuple[Trim, ...] = ()
    reason: Reason | None = None
    suggestion: str = ""
    notices: tuple[str, ...] = ()
    # Refused for want of room that may come free: it may be queued.
    could_wait: bool = False


@dataclass(frozen=True, slots=True)
class _Room:
    """Memory at the tightest level around the call."""

    free_bytes: int
    total_bytes: int
    reason: Reason
    place: str


def _refused(reason: Reason, message: str, suggestion: str, could_wait: bool = True) -> Ruling:
    return Ruling(Decision.REFUSED, message, reason=reason, suggestion=suggestion, could_wait=could_wait)


def drained(reason: str) -> Ruling:
    """The ruling on everything new while the operator empties the host; `reason` is the operator's."""
    why = f": {reason}" if reason else ""
    return _refused(
        Reason.HOST_DRAINING,
        f"Refused: the operator is emptying this host{why}. Running calls may finish, new ones do not begin.",
        "Save your work and stop, or ask the operator when the host is back.",
        could_wait=False,
    )


def _closed(session: SessionView, host: HostView, is_nested: bool) -> Ruling | None:
    if session.state is SessionState.CLOSING:
        return _refused(
            Reason.SESSION_CLOSING, "Refused: the session is being removed.", "", could_wait=False
        )
    # What is nested is part of a call that may finish.
    if host.is_draining and not is_nested:
        return drained(host.drain_reason)
    if session.state is SessionState.FROZEN:
        return _refused(
            Reason.SESSION_FROZEN,
            "Refused: the operator has frozen this session, and nothing begins in it before it is thawed.",
            "Declare it with --wait 10m, so that it begins when the session is thawed, or ask the operator.",
            could_wait=session.budget.calls_max > 0,
        )
    if session.calls_live >= session.budget.calls_max:
        return _refused(
            Reason.SESSION_CALLS,
            f"Refused: {session.calls_live} calls are live in this session, its limit.",
            "Wait for one to end (`agentcg call tree`), then declare again.",
            could_wait=session.budget.calls_max > 0,
        )
    if host.calls_live >= host.calls_max:
        return _refused(
            Reason.HOST_CALLS,
            f"Refused: {host.calls_live} calls are live on this host, its limit.",
            "Declare again in a few seconds.",
        )
    return None


def nested_memory_bytes(memory_max_bytes: int | None, budget: Budget) -> int:
    """What the calls inside a call that is stopped at `memory_max_bytes` may use together."""
    return min(memory_max_bytes or budget.calls_memory_bytes, budget.calls_memory_bytes)


def _memory_rooms(session: SessionView, host: HostView, parent: ParentView | None) -> list[_Room]:
    budget = session.budget
    levels = [
        _Room(
            budget.calls_memory_bytes - session.memory_reserved_bytes,
            budget.calls_memory_bytes,
            Reason.SESSION_MEMORY,
            "this session's calls",
        ),
        _Room(
            host.memory_capacity_bytes - host.memory_reserved_bytes,
            host.memory_capacity_bytes,
            Reason.HOST_MEMORY,
            "all sessions on this host",
        ),
    ]
    if parent is not None:
        # What a nested call needs is part of what its parent has reserved, so only the parent's cap bounds it.
        total = nested_memory_bytes(parent.memory_max_bytes, budget)
        levels = [
            _Room(
                total - parent.memory_reserved_bytes,
                total,
                Reason.PARENT_CALL,
                f"call {parent.id} around it",
            )
        ]
    return levels


def _tightest(rooms: list[_Room]) -> _Room:
    return min(rooms, key=lambda room: room.free_bytes)


def memory_available_bytes(session: SessionView, host: HostView, parent: ParentView | None = None) -> int:
    """What one more call could reserve now."""
    return max(0, _tightest(_memory_rooms(session, host, parent)).free_bytes)


def least_memory_bytes(intent: Intent, defaults: CallDefaults) -> int:
    """The least room that `intent` is granted with: what it declared; one that declared nothing makes do."""
    return _need_bytes(intent, LEAST_MEMORY_BYTES, defaults)


def _need_bytes(intent: Intent, free_bytes: int, defaults: CallDefaults) -> int:
    """What is reserved for `intent` where so much is free: what it declared, else as much of the default as there is."""
    if intent.memory_bytes is not None:
        return intent.memory_bytes
    wanted = min(defaults.memory_bytes, intent.memory_max_bytes or defaults.memory_bytes)
    return min(wanted, max(free_bytes, LEAST_MEMORY_BYTES))


def limits_with_room(
    intent: Intent, session: SessionView, host: HostView, parent: ParentView | None, defaults: CallDefaults
) -> CallLimits:
    """What `intent`, which could wait, would get if no other call were there."""
    ruling = admit(
        intent,
        replace(session, memory_reserved_bytes=0, calls_live=0, state=SessionState.OPEN),
        replace(host, memory_reserved_bytes=0, calls_live=0),
        replace(parent, memory_reserved_bytes=0) if parent else None,
        defaults,
    )
    if ruling.limits is None:
        raise ValueError(f"it can never fit: {ruling.message}")
    return ruling.limits


def _refused_memory(need_bytes: int, rooms: list[_Room]) -> Ruling:
    room = next((each for each in rooms if need_bytes > each.total_bytes), _tightest(rooms))
    free = max(0, room.free_bytes)
    message = (
        f"Refused: the call needs {format_size(need_bytes)}, but of the {format_size(room.total_bytes)} for {room.place} "
        f"{format_size(free)} are free now."
    )
    if need_bytes > room.total_bytes:
        most = format_size(room.total_bytes)
        suggestion = f"It can never fit here: need at most {most}, or ask the operator for a larger budget."
    elif free >= LEAST_MEMORY_BYTES:
        suggestion = (
            f"Declare --memory {free >> 20}M or less (fewer tests at a time, a smaller batch, a file streamed instead of "
            "loaded), or wait for a running call to end and declare again."
        )
    else:
        suggestion = "Wait for a running call to end (`agentcg call tree` shows them) and declare again."
    return _refused(room.reason, message, suggestion, could_wait=need_bytes <= room.total_bytes)


def _cap(
    name: str, asked: int | None, levels: list[tuple[int | None, Reason]]
) -> tuple[int | None, Trim | None]:
    """The least of what was asked and what each level allows; a Trim when that is less than asked."""
    bounds = [(bound, reason) for bound, reason in levels if bound is not None]
    least, reason = min(bounds, key=lambda level: level[0]) if bounds else (None, None)
    if asked is None:
        return None, None
    if least is None or reason is None or asked <= least:
        return asked, None
    return least, Trim(name, asked, least, reason)


def _trim_text(trim: Trim) -> str:
    shown = {"memory_max_bytes": format_size, "cpu_milli": format_cpu}.get(trim.field, str)
    option = {"memory_max_bytes": "memory-max", "cpu_milli": "cpu", "pids_max": "pids"}[trim.field]
    return f"{option} {shown(trim.granted)} instead of {shown(trim.asked)} ({trim.reason.replace('_', ' ')})"


def admit(
    intent: Intent, session: SessionView, host: HostView, parent: ParentView | None, defaults: CallDefaults
) -> Ruling:
    """Rules on `intent`, which has passed `policy.intent.check`. Never promises more than session, host or parent have."""
    closed = _closed(session, host, is_nested=parent is not None)
    rooms = _memory_rooms(session, host, parent)
    if closed is not None:
        # To wait for other calls to end is of no use to one that never fits.
        least = least_memory_bytes(intent, defaults)
        never_fits = closed.could_wait and any(least > room.total_bytes for room in rooms)
        return _refused_memory(least, rooms) if never_fits else closed
    room = _tightest(rooms)
    declared_max = intent.memory_max_bytes
    need = _need_bytes(intent, room.free_bytes, defaults)
    if need > room.free_bytes:
        return _refused_memory(need, rooms)

    budget = session.budget
    parent_max = parent.memory_max_bytes if parent else None
    reach, memory_trim = _cap(
        "memory_max_bytes",
        declared_max,
        [
            (budget.calls_memory_bytes, Reason.SESSION_MEMORY),
            (host.memory_capacity_bytes, Reason.HOST_MEMORY),
            (parent_max, Reason.PARENT_CALL),
        ],
    )
    if reach is None:
        bounds = [
            budget.calls_memory_bytes,
            host.memory_capacity_bytes,
            parent_max,
            defaults.memory_max_bytes,
        ]
        reach = max(need, min(bound for bound in bounds if bound is not None))
    cpu, cpu_trim = _cap(
        "cpu_milli",
        intent.cpu_milli,
        [
            (budget.cpu_milli, Reason.SESSION_CPU),
            (host.cpu_capacity_milli, Reason.HOST_CPU),
            (parent.cpu_milli if parent else None, Reason.PARENT_CALL),
        ],
    )
    pids_levels = [
        (budget.pids_max, Reason.SESSION_PIDS),
        (parent.pids_max if parent else None, Reason.PARENT_CALL),
    ]
    pids, pids_trim = _cap("pids_max", intent.pids_max, pids_levels)
    if pids is None:
        pids = min([defaults.pids_max, *(bound for bound, _ in pids_levels if bound is not None)])

    on_exceed = intent.on_exceed or defaults.on_exceed
    # memory.high holds a call back at what it has reserved until it is released, extended or stopped; see policy/ladder.py.
    brakes = on_exceed is not OnExceed.STOP
    limits = CallLimits(
        memory_bytes=need,
        memory_max_bytes=reach,
        memory_high_bytes=need if brakes and need < reach else None,
        swap_max_bytes=budget.swap_max_bytes,
        cpu_milli=cpu,
        cpu_weight=intent.cpu_weight or 100,
        pids_max=pids,
        deadline_ms=intent.deadline_ms or defaults.deadline_ms,
        throttle_limit_ms=(intent.throttle_limit_ms or defaults.throttle_limit_ms) if brakes else None,
    )
    notices = (_NO_THROTTLE,) if intent.throttle_limit_ms is not None and not brakes else ()
    trims = tuple(trim for trim in (memory_trim, cpu_trim, pids_trim) if trim is not None)
    granted = f"{format_size(need)} reserved, stopped at {format_size(reach)}"
    if not trims:
        return Ruling(Decision.GRANTED, f"Granted: {granted}.", limits, notices=notices)
    return Ruling(
        Decision.TRIMMED,
        f"Granted with less than asked: {'; '.join(map(_trim_text, trims))}. {granted}.",
        limits,
        trims,
        trims[0].reason,
        "Fit the call to these limits, or ask the operator for a larger budget.",
        notices,
    )
