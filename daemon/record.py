"""What is kept with each cgroup for the daemon after this one: sessions and begun calls as bytes, and back. Pure.

Limits, freezing, processes and counters are not in it where the kernel has them: it says what the kernel cannot, that is
what was declared, granted and decided. JSON, so that an operator can read it (`getfattr -d -m trusted`). A field that is
new has a default and is ignored by older releases; VERSION rises only when an older release would misunderstand.
"""

import json
from typing import Final, TypeVar

import msgspec

from agentcgroup.daemon.model import (
    Budget,
    CallLimits,
    CallState,
    Decision,
    FreezeCause,
    Intent,
    KillReason,
    Labels,
    Placement,
    Priority,
    Session,
    ToolCall,
    TransparentRule,
)

VERSION: Final = 1

_Record = TypeVar("_Record", "_SessionRecord", "_CallRecord")


class BadRecord(Exception):
    """The bytes are no record that this release understands; the message says why."""


class _SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    name: str
    budget: Budget
    priority: Priority
    owner_uid: int
    owner_gid: int
    created_at_ns: int
    labels: Labels = ()
    container_id: str = ""
    ends_with_agent: bool = False
    transparent: TransparentRule = TransparentRule()
    transparent_placed: int = 0
    transparent_missed: int = 0
    transparent_left: int = 0
    calls_ended: int = 0
    oom_attributed: int = 0


class _CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    id: str
    parent_id: str
    intent: Intent
    limits: CallLimits
    decision: Decision
    declared_at_ns: int
    # None: prepared, and not begun when this was written.
    started_at_ns: int | None = None
    pid: int = 0
    frozen_by: tuple[FreezeCause, ...] = ()
    kill_reason: KillReason | None = None
    kill_note: str = ""
    placement: Placement | None = None
    # See Life.followed.
    followed: tuple[int, ...] = ()


def encode_session(session: Session) -> bytes:
    return _written(
        _SessionRecord(
            version=VERSION,
            name=session.name,
            budget=session.budget,
            priority=session.priority,
            owner_uid=session.owner_uid,
            owner_gid=session.owner_gid,
            created_at_ns=session.created_at_ns,
            labels=session.labels,
            container_id=session.container_id,
            ends_with_agent=session.ends_with_agent,
            transparent=session.transparent,
            transparent_placed=session.transparent_placed,
            transparent_missed=session.transparent_missed,
            transparent_left=session.transparent_left,
            calls_ended=session.calls_ended,
            oom_attributed=session.oom_attributed,
        )
    )


def decode_session(data: bytes, socket_dir: str) -> Session:
    """The session, open and without calls; where its sockets are is the new daemon's business. Raises BadRecord."""
    kept = _read(data, _SessionRecord)
    return Session(
        name=kept.name,
        budget=kept.budget,
        priority=kept.priority,
        owner_uid=kept.owner_uid,
        owner_gid=kept.owner_gid,
        created_at_ns=kept.created_at_ns,
        socket_dir=socket_dir,
        labels=kept.labels,
        container_id=kept.container_id,
        ends_with_agent=kept.ends_with_agent,
        transparent=kept.transparent,
        transparent_placed=kept.transparent_placed,
        transparent_missed=kept.transparent_missed,
        transparent_left=kept.transparent_left,
        calls_ended=kept.calls_ended,
        oom_attributed=kept.oom_attributed,
    )


def encode_call(call: ToolCall, followed: tuple[int, ...] = ()) -> bytes:
    """`followed`: pids of the processes that the call lives as long as."""
    return _written(
        _CallRecord(
            version=VERSION,
            id=call.id,
            parent_id=call.parent_id,
            intent=call.intent,
            limits=call.limits,
            decision=call.decision,
            declared_at_ns=call.declared_at_ns,
            started_at_ns=call.started_at_ns,
            pid=call.pid,
            frozen_by=tuple(sorted(call.frozen_by)),
            kill_reason=call.kill_reason,
            kill_note=call.kill_note,
            placement=call.placement,
            followed=followed,
        )
    )


def decode_call(data: bytes, session: str) -> tuple[ToolCall, tuple[int, ...]]:
    """The call, in state RUNNING, or DECLARED when it was only prepared; and whom it lives as long as. Raises BadRecord."""
    kept = _read(data, _CallRecord)
    call = ToolCall(
        id=kept.id,
        session=session,
        parent_id=kept.parent_id,
        intent=kept.intent,
        limits=kept.limits,
        decision=kept.decision,
        declared_at_ns=kept.declared_at_ns,
        state=CallState.DECLARED if kept.started_at_ns is None else CallState.RUNNING,
        pid=kept.pid,
        started_at_ns=kept.started_at_ns,
        frozen_by=set(kept.frozen_by),
        kill_reason=kept.kill_reason,
        kill_note=kept.kill_note,
        placement=kept.placement,
    )
    return call, kept.followed


def _written(record: _SessionRecord | _CallRecord) -> bytes:
    # Not msgspec's own JSON: arguments of a command may be any bytes, and arrive as surrogates.
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode("ascii")


def _read(data: bytes, kind: type[_Record]) -> _Record:
    try:
        found = json.loads(data)
        version = found["version"]
        if version != VERSION:
            raise BadRecord(
                f"its record is of version {str(version)[:20]}, and this release reads version {VERSION}"
            )
        return msgspec.convert(found, kind)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadRecord(f"its record cannot be understood: {error}") from error
