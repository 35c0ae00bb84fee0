"""Knocks at the transparent door over a fake machine: what becomes of each, what is told, what is left."""

import asyncio
import dataclasses
import os
import signal

import grpc
import pytest

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    BudgetRequest,
    CallState,
    DoorHold,
    FeedbackKind,
    Knock,
    Placement,
    TransparentRule,
)
from agentcgroup.proto.transparent import parse_rule
from agentcgroup.proto.v1 import operator_pb2 as pb, types_pb2
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon, descriptors, refusal


async def opened(daemon: Daemon, rule: str = "all", **budget: int) -> None:
    request = BudgetRequest(memory_max_bytes=4 * GIB, agent_memory_bytes=256 * MIB, **budget)
    await daemon.controller.open_session("web", request, transparent=parse_rule(rule))


def knock(daemon: Daemon, pid: int, *command: str, **differences: object) -> Knock:
    plain = Knock(
        session="web",
        pid=pid,
        parent_pid=1,
        process_group=1,
        parent_process_group=1,
        filename="/bin/sleep",
        command=command or ("sleep", "600"),
        is_from_outside=False,
        executed_at_ns=daemon.controller._clock.now_ns() - 7_000_000,
    )
    return dataclasses.replace(plain, **differences)  # type: ignore[arg-type]


async def until_no_call_is_left(daemon: Daemon) -> None:
    messages = daemon.controller.feed.subscribe("web")
    async with asyncio.timeout(DEADLINE_S):
        while daemon.controller.calls("web"):
            await anext(messages)


async def test_a_knock_becomes_a_call_that_says_how_late(daemon: Daemon) -> None:
    await opened(daemon)
    pid = daemon.process("web")
    daemon.host.door.hold = DoorHold(300, True)
    messages = daemon.controller.feed.subscribe("web")
    daemon.controller.knocked(knock(daemon, pid))
    started = await asyncio.wait_for(anext(messages), DEADLINE_S)
    (call,) = daemon.controller.calls("web")
    assert (call.pid, call.state, call.intent.command) == (pid, CallState.RUNNING, ("sleep", "600"))
    assert call.placement == Placement(7, DoorHold(300, True))
    assert started.kind is FeedbackKind.STARTED and "7 ms after its exec" in started.message
    assert daemon.host.door.released == [pid] and daemon.host.door.gathered == [(call.id, pid)]
    os.kill(pid, signal.SIGKILL)
    await until_no_call_is_left(daemon)
    said = "placed 7 ms after its exec; the scheduler held it from 0.3 ms on."
    assert said in daemon.history.entries[0].report.message


async def test_a_job_goes_on_until_its_last_process_has_ended(daemon: Daemon) -> None:
    await opened(daemon)
    first, last = sorted((daemon.process("web"), daemon.process("web")))
    daemon.controller.knocked(knock(daemon, first, process_group=first))
    daemon.controller.knocked(knock(daemon, last, process_group=first))
    (call,) = daemon.controller.calls("web")
    assert call.pid == last and daemon.host.calls[call.id].pids == {first, last}
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.05)
    assert [each.id for each in daemon.controller.calls("web")] == [call.id]
    os.kill(last, signal.SIGKILL)
    await until_no_call_is_left(daemon)
    assert len(daemon.history.entries) == 1


async def test_a_process_that_has_ended_is_counted_and_leaves_nothing(daemon: Daemon) -> None:
    await opened(daemon)
    before = descriptors()
    daemon.controller.knocked(knock(daemon, daemon.ended_process()))
    session = daemon.controller.session("web")
    assert (session.transparent_placed, session.transparent_missed) == (0, 1)
    assert session.memory_reserved_bytes == 0 and descriptors() == before
    assert daemon.controller.calls("web") == [] and daemon.history.entries == []


async def test_what_ends_while_it_is_placed_leaves_nothing(daemon: Daemon) -> None:
    await opened(daemon)
    before = descriptors()
    daemon.host.failures["place"] = RequestError(Kind.NOT_FOUND, "moving process: the process has ended")
    pid = daemon.process("web")
    daemon.controller.knocked(knock(daemon, pid))
    session = daemon.controller.session("web")
    assert session.transparent_missed == 1 and session.memory_reserved_bytes == 0
    assert descriptors() == before and daemon.host.door.released == [pid]


async def test_a_refused_tool_runs_on_and_what_it_starts_is_let_be(daemon: Daemon) -> None:
    await opened(daemon, calls_max=1)
    daemon.controller.knocked(knock(daemon, daemon.process("web")))
    before = descriptors()
    pid = daemon.process("web")
    daemon.controller.knocked(knock(daemon, pid, "make", "test"))
    assert daemon.host.door.let_alone == [pid] and daemon.host.door.released[-1] == pid
    assert len(daemon.controller.calls("web")) == 1 and descriptors() == before
    session = daemon.controller.session("web")
    assert (session.transparent_placed, session.transparent_missed, session.transparent_left) == (1, 0, 1)
    assert daemon.controller.counters.transparent_left == 1
    (listed,) = (await daemon.operator.ListSessions(pb.ListSessionsRequest())).sessions
    assert listed.transparent_left == 1
    os.kill(pid, 0)


async def test_what_the_kernel_will_not_place_runs_on(daemon: Daemon) -> None:
    await opened(daemon)
    daemon.host.failures["create_call"] = RequestError(Kind.HOST, "no room for a cgroup")
    before = descriptors()
    pid = daemon.process("web")
    daemon.controller.knocked(knock(daemon, pid))
    assert daemon.controller.calls("web") == [] and descriptors() == before
    session = daemon.controller.session("web")
    assert (session.transparent_missed, session.transparent_left) == (0, 1)
    os.kill(pid, 0)


async def test_what_is_in_a_call_already_stays_there(daemon: Daemon) -> None:
    await opened(daemon)
    pid = daemon.process("web")
    daemon.controller.knocked(knock(daemon, pid))
    daemon.controller.knocked(knock(daemon, pid, "other", "program"))
    (call,) = daemon.controller.calls("web")
    assert call.intent.command == ("sleep", "600")


async def test_a_knock_at_a_session_that_is_gone_is_let_through(daemon: Daemon) -> None:
    await opened(daemon)
    pid = daemon.process("web")
    await daemon.controller.remove_session("web", "")
    daemon.controller.knocked(knock(daemon, pid))
    assert daemon.host.door.released == [pid]


async def test_a_rule_is_set_told_and_changed_over_the_wire(daemon: Daemon) -> None:
    rule = types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_ALL, exclude=["git", "rg*"])
    made = await daemon.operator.CreateSession(pb.CreateSessionRequest(name="web", transparent=rule))
    assert made.session.transparent == rule
    assert daemon.host.door.scopes == {"web": "all"}
    off = types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_OFF)
    changed = await daemon.operator.UpdateSession(pb.UpdateSessionRequest(name="web", transparent=off))
    assert changed.session.transparent == off
    kept = await daemon.operator.UpdateSession(pb.UpdateSessionRequest(name="web"))
    assert kept.session.transparent == off


@pytest.mark.parametrize(
    "rule",
    [
        types_pb2.TransparentRule(),
        types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_ALL, exclude=["/bin/git"]),
        types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_ALL, exclude=["a,exclude=b"]),
        types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_OFF, include=["make"]),
    ],
)
async def test_a_wrong_rule_makes_no_session(daemon: Daemon, rule: types_pb2.TransparentRule) -> None:
    error = await refusal(
        daemon.operator.CreateSession(pb.CreateSessionRequest(name="web", transparent=rule))
    )
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT and "transparent" in error.message
    assert daemon.controller.sessions() == []


async def test_a_host_without_a_door_refuses_a_rule_and_makes_sessions_without(daemon: Daemon) -> None:
    daemon.host.door.why_not = "there are no kernel events on this host"
    rule = types_pb2.TransparentRule(scope=types_pb2.TRANSPARENT_SCOPE_ALL)
    error = await refusal(
        daemon.operator.CreateSession(pb.CreateSessionRequest(name="web", transparent=rule))
    )
    assert "no kernel events" in error.message
    await opened(daemon, "off")
    assert daemon.controller.session("web").transparent == TransparentRule()
