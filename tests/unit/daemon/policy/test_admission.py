"""Admission promises no more than session, host and parent have, and says why."""

import dataclasses

import pytest
from hypothesis import given, strategies as st

from agentcgroup.daemon.model import Budget, Decision, Intent, OnExceed, Reason, SessionState
from agentcgroup.daemon.policy.admission import (
    CallDefaults,
    HostView,
    ParentView,
    SessionView,
    admit,
    limits_with_room,
    memory_available_bytes,
)

MIB = 1 << 20
DEFAULTS = CallDefaults(
    memory_bytes=256 * MIB,
    memory_max_bytes=None,
    pids_max=1024,
    deadline_ms=None,
    on_exceed=OnExceed.STOP,
    throttle_limit_ms=30_000,
)
BUDGET = Budget(
    memory_max_bytes=4096 * MIB,
    agent_memory_bytes=512 * MIB,
    swap_max_bytes=0,
    cpu_milli=2000,
    cpu_weight=100,
    pids_max=500,
    calls_max=8,
)
SESSION = SessionView(SessionState.OPEN, BUDGET, memory_reserved_bytes=0, calls_live=0)
HOST = HostView(
    memory_capacity_bytes=8192 * MIB,
    memory_reserved_bytes=512 * MIB,
    cpu_capacity_milli=4000,
    calls_live=0,
    calls_max=100,
)


def test_an_intent_that_fits_is_granted_as_asked() -> None:
    intent = Intent(
        memory_bytes=1024 * MIB, memory_max_bytes=2048 * MIB, cpu_milli=1500, pids_max=100, cpu_weight=200
    )
    ruling = admit(intent, SESSION, HOST, None, DEFAULTS)
    assert ruling.decision is Decision.GRANTED
    assert ruling.limits is not None
    assert (ruling.limits.memory_bytes, ruling.limits.memory_max_bytes) == (1024 * MIB, 2048 * MIB)
    assert (ruling.limits.cpu_milli, ruling.limits.pids_max, ruling.limits.cpu_weight) == (1500, 100, 200)
    assert ruling.limits.swap_max_bytes == 0
    assert not ruling.trims and ruling.reason is None


def test_a_throttle_limit_that_nothing_heeds_is_said() -> None:
    alone = Intent(memory_bytes=MIB, throttle_limit_ms=5000)
    told = admit(alone, SESSION, HOST, None, DEFAULTS)
    assert told.limits is not None and told.limits.throttle_limit_ms is None
    assert "has no effect" in told.notices[0]
    heeded = dataclasses.replace(alone, on_exceed=OnExceed.THROTTLE)
    assert not admit(heeded, SESSION, HOST, None, DEFAULTS).notices


@pytest.mark.parametrize("state", list(SessionState))
@pytest.mark.parametrize("is_draining", [False, True])
@pytest.mark.parametrize("calls_max", [0, 8])
@pytest.mark.parametrize("parent", [None, ParentView("c-1", 64 * MIB, 60 * MIB, None, None)])
@pytest.mark.parametrize("memory_bytes", [None, 32 * MIB, 3000 * MIB])
def test_whatever_may_wait_would_be_granted_if_it_were_alone(
    state: SessionState,
    is_draining: bool,
    calls_max: int,
    parent: ParentView | None,
    memory_bytes: int | None,
) -> None:
    budget = dataclasses.replace(BUDGET, calls_max=calls_max)
    session = SessionView(state, budget, memory_reserved_bytes=2000 * MIB, calls_live=8)
    host = dataclasses.replace(HOST, is_draining=is_draining)
    intent = Intent(memory_bytes=memory_bytes)
    ruling = admit(intent, session, host, parent, DEFAULTS)
    assert ruling.limits is None
    if ruling.could_wait:
        assert limits_with_room(intent, session, host, parent, DEFAULTS).memory_bytes > 0


def test_in_a_frozen_session_nothing_begins_and_what_could_fit_may_wait() -> None:
    frozen = dataclasses.replace(SESSION, state=SessionState.FROZEN)
    ruling = admit(Intent(memory_bytes=MIB), frozen, HOST, None, DEFAULTS)
    assert (ruling.limits, ruling.reason, ruling.could_wait) == (None, Reason.SESSION_FROZEN, True)
    assert not admit(Intent(memory_bytes=8192 * MIB), frozen, HOST, None, DEFAULTS).could_wait
    # A drain ends every wait.
    emptied = dataclasses.replace(HOST, is_draining=True)
    assert admit(Intent(memory_bytes=MIB), frozen, emptied, None, DEFAULTS).reason is Reason.HOST_DRAINING


@given(
    need=st.none() | st.integers(1, 8192).map(lambda mib: mib * MIB),
    state=st.sampled_from(SessionState),
    calls_live=st.integers(0, 9),
    reserved=st.integers(0, BUDGET.calls_memory_bytes),
    is_draining=st.booleans(),
    is_nested=st.booleans(),
)
def test_what_may_wait_would_get_something_if_it_were_alone(
    need: int | None, state: SessionState, calls_live: int, reserved: int, is_draining: bool, is_nested: bool
) -> None:
    session = SessionView(state, BUDGET, memory_reserved_bytes=reserved, calls_live=calls_live)
    host = dataclasses.replace(HOST, is_draining=is_draining)
    parent = ParentView("c-1", 64 * MIB, 0, None, None) if is_nested else None
    intent = Intent(memory_bytes=need)
    if admit(intent, session, host, parent, DEFAULTS).could_wait:
        assert limits_with_room(intent, session, host, parent, DEFAULTS).memory_bytes > 0


def test_an_undeclared_call_gets_the_default_and_may_reach_what_all_calls_may() -> None:
    ruling = admit(Intent(), SESSION, HOST, None, DEFAULTS)
    assert ruling.limits is not None
    assert ruling.limits.memory_bytes == 256 * MIB
    assert ruling.limits.memory_max_bytes == BUDGET.calls_memory_bytes
    assert ruling.limits.pids_max == 500, "the session's bound is below the default"
    assert ruling.limits.cpu_milli is None


def test_an_undeclared_call_makes_do_with_what_is_left() -> None:
    crowded = dataclasses.replace(SESSION, memory_reserved_bytes=BUDGET.calls_memory_bytes - 100 * MIB)
    ruling = admit(Intent(), crowded, HOST, None, DEFAULTS)
    assert ruling.decision is Decision.GRANTED
    assert ruling.limits is not None and ruling.limits.memory_bytes == 100 * MIB


@pytest.mark.parametrize(
    ("intent", "field", "granted", "reason"),
    [
        (Intent(memory_max_bytes=5000 * MIB), "memory_max_bytes", 3584 * MIB, Reason.SESSION_MEMORY),
        (Intent(cpu_milli=3000), "cpu_milli", 2000, Reason.SESSION_CPU),
        (Intent(pids_max=501), "pids_max", 500, Reason.SESSION_PIDS),
    ],
)
def test_a_cap_above_the_session_is_trimmed_to_it(
    intent: Intent, field: str, granted: int, reason: Reason
) -> None:
    ruling = admit(intent, SESSION, HOST, None, DEFAULTS)
    assert ruling.decision is Decision.TRIMMED
    (trim,) = ruling.trims
    assert (trim.field, trim.granted, trim.reason) == (field, granted, reason)
    assert ruling.suggestion
    assert str(granted >> 20 if "memory" in field else "") in ruling.message or "3.5 GiB" in ruling.message


def test_cpu_is_trimmed_to_the_host_when_the_session_has_no_cap() -> None:
    free = dataclasses.replace(SESSION, budget=dataclasses.replace(BUDGET, cpu_milli=None))
    ruling = admit(Intent(cpu_milli=9000), free, HOST, None, DEFAULTS)
    assert ruling.trims[0].reason is Reason.HOST_CPU and ruling.trims[0].granted == 4000


def test_a_need_that_is_not_free_now_is_refused_with_what_would_be_granted() -> None:
    crowded = dataclasses.replace(SESSION, memory_reserved_bytes=3000 * MIB)
    ruling = admit(Intent(memory_bytes=1024 * MIB), crowded, HOST, None, DEFAULTS)
    assert ruling.decision is Decision.REFUSED and ruling.limits is None
    assert ruling.reason is Reason.SESSION_MEMORY
    assert "--memory 584M" in ruling.suggestion


def test_a_need_that_can_never_fit_is_told_so() -> None:
    ruling = admit(Intent(memory_bytes=9000 * MIB), SESSION, HOST, None, DEFAULTS)
    assert ruling.decision is Decision.REFUSED
    assert "never" in ruling.suggestion


def test_the_host_refuses_what_the_session_would_allow() -> None:
    full = dataclasses.replace(HOST, memory_reserved_bytes=8000 * MIB)
    ruling = admit(Intent(memory_bytes=512 * MIB), SESSION, full, None, DEFAULTS)
    assert ruling.reason is Reason.HOST_MEMORY
    assert "192" in ruling.suggestion


def test_a_nested_call_stays_inside_its_parent_and_reserves_nothing_more() -> None:
    parent = ParentView("c-1", 600 * MIB, memory_reserved_bytes=500 * MIB, cpu_milli=1000, pids_max=50)
    full_session = dataclasses.replace(SESSION, memory_reserved_bytes=BUDGET.calls_memory_bytes)
    fits = admit(
        Intent(memory_bytes=100 * MIB, memory_max_bytes=900 * MIB), full_session, HOST, parent, DEFAULTS
    )
    assert fits.decision is Decision.TRIMMED
    assert fits.limits is not None and fits.limits.memory_max_bytes == 600 * MIB
    assert fits.limits.pids_max == 50
    too_big = admit(Intent(memory_bytes=101 * MIB), SESSION, HOST, parent, DEFAULTS)
    assert too_big.reason is Reason.PARENT_CALL


@pytest.mark.parametrize(
    ("session", "host", "reason"),
    [
        (dataclasses.replace(SESSION, state=SessionState.CLOSING), HOST, Reason.SESSION_CLOSING),
        (dataclasses.replace(SESSION, calls_live=8), HOST, Reason.SESSION_CALLS),
        (SESSION, dataclasses.replace(HOST, calls_live=100), Reason.HOST_CALLS),
    ],
)
def test_a_closed_door_names_itself(session: SessionView, host: HostView, reason: Reason) -> None:
    ruling = admit(Intent(), session, host, None, DEFAULTS)
    assert (ruling.decision, ruling.reason) == (Decision.REFUSED, reason)


def test_throttling_sets_memory_high_at_the_need_with_a_time_limit() -> None:
    intent = Intent(
        memory_bytes=100 * MIB,
        memory_max_bytes=200 * MIB,
        on_exceed=OnExceed.THROTTLE,
        throttle_limit_ms=5000,
    )
    limits = admit(intent, SESSION, HOST, None, DEFAULTS).limits
    assert limits is not None
    assert (limits.memory_high_bytes, limits.throttle_limit_ms) == (100 * MIB, 5000)
    stop = admit(dataclasses.replace(intent, on_exceed=OnExceed.STOP), SESSION, HOST, None, DEFAULTS).limits
    assert stop is not None and stop.memory_high_bytes is None and stop.throttle_limit_ms is None


_sizes = st.integers(min_value=1, max_value=20_000 * MIB)


@given(
    intent=st.builds(
        Intent,
        memory_bytes=st.none() | _sizes,
        memory_max_bytes=st.none() | _sizes,
        cpu_milli=st.none() | st.integers(10, 100_000),
        pids_max=st.none() | st.integers(1, 100_000),
    ),
    reserved=st.integers(0, BUDGET.calls_memory_bytes),
    host_reserved=st.integers(0, HOST.memory_capacity_bytes),
    parent=st.none()
    | st.builds(
        ParentView,
        id=st.just("c-p"),
        memory_max_bytes=st.none() | _sizes,
        memory_reserved_bytes=_sizes,
        cpu_milli=st.none() | st.integers(10, 5000),
        pids_max=st.none() | st.integers(1, 5000),
    ),
)
def test_no_ruling_exceeds_what_is_there(
    intent: Intent, reserved: int, host_reserved: int, parent: ParentView | None
) -> None:
    if intent.memory_bytes and intent.memory_max_bytes and intent.memory_max_bytes < intent.memory_bytes:
        intent = dataclasses.replace(intent, memory_max_bytes=intent.memory_bytes)
    session = dataclasses.replace(SESSION, memory_reserved_bytes=reserved)
    host = dataclasses.replace(HOST, memory_reserved_bytes=host_reserved)
    ruling = admit(intent, session, host, parent, DEFAULTS)
    assert ruling.message
    if ruling.limits is None:
        assert ruling.decision is Decision.REFUSED and ruling.reason is not None
        return
    limits = ruling.limits
    assert limits.memory_bytes <= memory_available_bytes(session, host, parent)
    assert limits.memory_max_bytes is not None
    assert limits.memory_bytes <= limits.memory_max_bytes <= BUDGET.calls_memory_bytes
    assert limits.pids_max is not None and limits.pids_max <= (BUDGET.pids_max or 0)
    assert limits.cpu_milli is None or limits.cpu_milli <= 2000
    if parent is not None:
        assert parent.memory_max_bytes is None or limits.memory_max_bytes <= parent.memory_max_bytes
        assert parent.pids_max is None or limits.pids_max <= parent.pids_max
    asked = [(intent.memory_max_bytes, limits.memory_max_bytes), (intent.cpu_milli, limits.cpu_milli)]
    assert all(got is not None and got <= wanted for wanted, got in asked if wanted is not None)
    assert (ruling.decision is Decision.TRIMMED) == bool(ruling.trims)
