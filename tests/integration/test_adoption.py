"""A daemon after another on the same machine: what it takes over, what it takes back, and what it leaves alone."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import (
    Action,
    BudgetRequest,
    CallState,
    ExitStatus,
    FreezeCause,
    Intent,
    KillReason,
    OomCounters,
    Priority,
    SessionState,
    ToolCall,
    Verdict,
)
from agentcgroup.proto.launch import Request, Status
from agentcgroup.proto.v1.agent_pb2 import GetCallTreeRequest, WatchFeedbackRequest
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon


async def begun(daemon: Daemon, session: str, intent: Intent | None = None, parent: str = "") -> ToolCall:
    """A running call of a process of its own, with all said about its beginning."""
    answer = daemon.controller.declare(session, intent or Intent(), parent)
    pid = daemon.process(session)
    if parent:
        daemon.host.place(parent, pid)
    call = daemon.controller.begin_pidfd(session, answer.call_id, pid, os.pidfd_open(pid))
    await daemon.settled()
    return call


@contextlib.asynccontextmanager
async def next_daemon(before: Daemon) -> AsyncIterator[Daemon]:
    """`before` is gone without a word, and another one starts on its machine, with its history and its clock."""
    await before.crash()
    after = Daemon(before.run_dir, before.config, before.host)
    try:
        await after.follow(before)
        yield after
    finally:
        await after.stop()


def actions(daemon: Daemon, call_id: str) -> list[Action]:
    return [event.action for event in daemon.history.noted if event.call_id == call_id]


async def test_a_session_goes_on_with_all_that_was_decided_about_it(daemon: Daemon) -> None:
    session = await daemon.controller.open_session(
        "web",
        BudgetRequest(memory_max_bytes=2 * GIB, agent_memory_bytes=256 * MIB, calls_max=7),
        priority=Priority.HIGH,
        labels=(("project", "shop"),),
    )
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=3 * GIB + 1), None)
    before = session.budget, session.created_at_ns
    async with next_daemon(daemon) as after:
        (taken,) = after.controller.sessions()
        assert (taken.budget, taken.created_at_ns) == before
        assert (taken.priority, taken.labels) == (Priority.HIGH, (("project", "shop"),))
        assert after.controller.host().memory_reserved_bytes == 256 * MIB
        assert after.host.guard.promises["web"] == (Priority.HIGH, 256 * MIB)
        assert after.controller.counters.sessions_adopted == 1
        assert Action.ADOPTED in [event.action for event in after.history.noted if event.session == "web"]
        with pytest.raises(RequestError, match="already"):
            await after.open("web")


async def test_a_running_call_goes_on_and_ends_like_any_other(daemon: Daemon) -> None:
    await daemon.open("s")
    intent = Intent(
        memory_bytes=100 * MIB, memory_max_bytes=100 * MIB + 1, pids_max=9, command=("make", "caf\udce9")
    )
    call = await begun(daemon, "s", intent)
    async with next_daemon(daemon) as after:
        taken = after.controller.call("s", call.id)
        assert taken.state is CallState.RUNNING
        assert (taken.intent, taken.limits, taken.pid) == (call.intent, call.limits, call.pid)
        assert after.controller.session("s").memory_reserved_bytes == 100 * MIB
        after.host.statuses[call.pid] = ExitStatus(exit_code=3)
        os.kill(call.pid, signal.SIGTERM)
        report = await after.report(call.id)
        assert (report.verdict, report.exit_status.exit_code) == (Verdict.EXIT_CODE, 3)
        assert report.started_at_ns == call.started_at_ns
        assert after.controller.session("s").memory_reserved_bytes == 0
        assert actions(after, call.id)[-2:] == [Action.ADOPTED, Action.ENDED]


async def test_a_call_that_ended_meanwhile_is_reported_without_a_guess(daemon: Daemon) -> None:
    await daemon.open("s")
    calls = [await begun(daemon, "s") for _ in range(2)]
    daemon.host.calls[calls[1].id].oom = OomCounters(1, 1, 0)
    await daemon.crash()
    for call in calls:
        daemon.end(call.pid)
    async with next_daemon(daemon) as after:
        plain, killed = [await after.report(call.id) for call in calls]
        assert plain.verdict is Verdict.UNKNOWN and plain.exit_status == ExitStatus()
        assert "while agentcgroupd was away" in plain.message and "at most" in plain.message
        assert killed.verdict is Verdict.MEMORY_LIMIT_CALL, "the kernel's counters are still there"
        assert not after.host.calls and not after.controller.session("s").calls


async def test_a_kill_that_was_decided_is_carried_out_and_named(daemon: Daemon) -> None:
    await daemon.open("s")
    call = await begun(daemon, "s")
    daemon.controller._kill(call, KillReason.OPERATOR, "enough")
    assert not daemon.host.done["kill_call"], "the daemon dies between decision and deed"
    async with next_daemon(daemon) as after:
        report = await after.report(call.id)
        assert report.verdict is Verdict.OPERATOR and "enough" in report.message


async def test_deadlines_go_on_from_when_the_call_began(daemon: Daemon) -> None:
    await daemon.open("s")
    late, early = [await begun(daemon, "s", Intent(deadline_ms=ms)) for ms in (3_600_000, 60_000)]
    daemon.clock.time_ns += 120 * 10**9
    async with next_daemon(daemon) as after:
        report = await after.report(early.id)
        assert report.verdict is Verdict.DEADLINE
        (taken,) = [
            event
            for event in after.history.noted
            if event.action is Action.ADOPTED and event.call_id == late.id
        ]
        left_ms = dict(taken.inputs)["deadline_in_ms"]
        assert isinstance(left_ms, int) and 3_400_000 < left_ms < 3_480_001
        assert after.controller.call("s", late.id).is_live


async def test_what_policies_did_is_taken_back_and_what_operators_did_stays(daemon: Daemon) -> None:
    await daemon.open("s")
    by_policy, by_operator, by_both = [await begun(daemon, "s") for _ in range(3)]
    daemon.controller._freeze(by_policy, FreezeCause.PROTECTION)
    daemon.controller.freeze_call(by_operator.id, "a look")
    daemon.controller.freeze_call(by_both.id, "a look")
    daemon.controller._freeze(by_both, FreezeCause.LADDER)
    machine = daemon.host.calls[by_policy.id]
    soft_bytes, machine.high_bytes = machine.high_bytes, 5 * MIB
    async with next_daemon(daemon) as after:
        states = {call.id: (call.state, call.frozen_by) for call in after.controller.calls("s")}
        assert states == {
            by_policy.id: (CallState.RUNNING, set()),
            by_operator.id: (CallState.FROZEN, {FreezeCause.OPERATOR}),
            by_both.id: (CallState.FROZEN, {FreezeCause.OPERATOR}),
        }
        assert not after.host.calls[by_policy.id].frozen and after.host.calls[by_both.id].frozen
        assert machine.high_bytes == soft_bytes
        after.controller.thaw_call(by_both.id)
        assert not after.host.calls[by_both.id].frozen


async def test_nested_calls_stay_inside_and_inside_what_was_reserved(daemon: Daemon) -> None:
    await daemon.open("s")
    outer = await begun(daemon, "s", Intent(memory_bytes=200 * MIB, memory_max_bytes=400 * MIB))
    inner = await begun(daemon, "s", Intent(memory_bytes=50 * MIB), outer.id)
    async with next_daemon(daemon) as after:
        taken = after.controller.call("s", inner.id)
        assert taken.parent_id == outer.id
        assert after.controller.call("s", outer.id).children_reserved_bytes == 50 * MIB
        assert after.controller.session("s").memory_reserved_bytes == 200 * MIB
        report = await after.controller.kill_call(outer.id, "")
        assert report.verdict is Verdict.OPERATOR
        assert (await after.report(inner.id)).verdict is Verdict.OPERATOR


async def test_limits_are_what_the_kernel_says_they_are(daemon: Daemon) -> None:
    await daemon.open("s")
    call = await begun(daemon, "s", Intent(memory_bytes=100 * MIB, memory_max_bytes=100 * MIB))
    # Written, and the daemon died before it had noted it.
    daemon.controller.adjust("s", call.id, Intent(memory_max_bytes=300 * MIB))
    daemon.host.records.kept[call.id] = daemon.host.records.kept[call.id].replace(
        str(300 * MIB).encode(), str(100 * MIB).encode()
    )
    async with next_daemon(daemon) as after:
        assert after.controller.call("s", call.id).limits.memory_max_bytes == 300 * MIB


async def test_a_frozen_session_stays_frozen(daemon: Daemon) -> None:
    await daemon.open("s")
    daemon.controller.freeze_session("s", "", include_agent=False)
    async with next_daemon(daemon) as after:
        assert after.controller.session("s").state is SessionState.FROZEN
        after.controller.thaw_session("s")
        assert not after.host.frozen_sessions


async def test_a_session_whose_agent_ended_meanwhile_ends_with_its_calls_reported(daemon: Daemon) -> None:
    for name in ("gone", "stays"):
        session = await daemon.controller.open_session(name, BudgetRequest(), ends_with_agent=name == "gone")
        assert session.name == name
    call = await begun(daemon, "gone")
    daemon.host.homes.clear()
    async with next_daemon(daemon) as after:
        report = await after.report(call.id)
        assert report.verdict is Verdict.SESSION_END
        await after.controller.settle()
        assert [session.name for session in after.controller.sessions()] == ["stays"]
        assert set(after.host.sessions) == {"stays"}


@pytest.mark.parametrize(
    "record",
    [b"", b"\xff", b"{}", b"[]", b'{"version":2}', b'{"version":1,"name":"s"}', b"[" * 100_000, None],
)
async def test_a_session_that_cannot_be_understood_is_left_alone_and_harms_no_other(
    daemon: Daemon, record: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.open("s")
    await daemon.open("other")
    if record is None:
        del daemon.host.records.kept["s"]
    else:
        daemon.host.records.kept["s"] = record
    async with next_daemon(daemon) as after:
        assert [session.name for session in after.controller.sessions()] == ["other"]
        assert set(after.host.sessions) == {"s", "other"}
    if record is not None:
        assert "session s of an earlier daemon is left alone" in caplog.text and "Next step" in caplog.text


async def test_a_record_is_good_only_where_it_was_written(daemon: Daemon) -> None:
    await daemon.open("s")
    await daemon.open("t")
    one, other = await begun(daemon, "s"), await begun(daemon, "s")
    daemon.host.records.kept["t"] = daemon.host.records.kept["s"]
    daemon.host.records.kept[other.id] = daemon.host.records.kept[one.id]
    async with next_daemon(daemon) as after:
        assert [session.name for session in after.controller.sessions()] == ["s"]
        assert [call.id for call in after.controller.calls("s")] == [one.id]


async def test_a_call_whose_daemon_died_before_it_could_write_goes_on_with_the_kernels_limits(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.open("s")
    intent = Intent(memory_bytes=100 * MIB, memory_max_bytes=200 * MIB, pids_max=9)
    call, ended, stranger = [await begun(daemon, "s", intent) for _ in range(3)]
    await daemon.crash()
    for each in (call, ended, stranger):
        del daemon.host.records.kept[each.id]
    daemon.end(ended.pid)
    daemon.host.calls["a-tools-own"] = daemon.host.calls.pop(stranger.id)
    async with next_daemon(daemon) as after:
        (taken,) = after.controller.calls("s")
        assert (taken.id, taken.pid, taken.state) == (call.id, call.pid, CallState.RUNNING)
        assert (taken.limits.memory_max_bytes, taken.limits.pids_max) == (200 * MIB, 9)
        assert taken.intent == Intent() and f"s/{call.id}: what it declared" in caplog.text
        assert (await after.report(ended.id)).verdict is Verdict.UNKNOWN
        assert "a-tools-own of an earlier daemon is left alone" in caplog.text
        report = await after.controller.kill_call(call.id, "")
        assert report.verdict is Verdict.OPERATOR and call.id not in after.host.calls


async def test_the_sockets_come_back_under_the_same_path_in_the_same_directory(daemon: Daemon) -> None:
    await daemon.open("s")
    directory = daemon.run_dir / "sessions" / "s"
    inode, sockets = directory.stat().st_ino, {path.name for path in directory.iterdir()}
    assert {"agent.sock", "launch.sock"} <= sockets
    (daemon.run_dir / "sessions" / "stray").mkdir()
    call = await begun(daemon, "s")
    async with next_daemon(daemon) as after:
        assert directory.stat().st_ino == inode, "an agent may have it mounted"
        assert {path.name for path in directory.iterdir()} == sockets
        assert [path.name for path in directory.parent.iterdir()] == ["s"]
        assert list((after.run_dir / ".new").iterdir()) == []
        tree = await after.agent("s").GetCallTree(GetCallTreeRequest(), timeout=DEADLINE_S)
        assert [each.id for each in tree.calls] == [call.id]
        caller, reply = await after.launch("s")
        assert reply.status is Status.GRANTED
        await caller.exit()


async def test_a_stop_that_sessions_outlive_says_so_and_holds_nobody_back(daemon: Daemon) -> None:
    await daemon.open("s")
    call = await begun(daemon, "s")
    daemon.controller._freeze(call, FreezeCause.LADDER)
    stream = daemon.agent("s").WatchFeedback(WatchFeedbackRequest())
    messages = aiter(stream)
    assert (await anext(messages)).feedback.session == "s"
    await daemon.controller.leave()
    assert "goes on under its limits" in (await anext(messages)).feedback.message
    assert not daemon.host.calls[call.id].frozen
    await daemon.api.stop(sessions_stay=True)
    directory = daemon.run_dir / "sessions" / "s"
    assert (directory / "agent.sock").is_socket() and (directory / "launch.sock").is_socket()
    async with next_daemon(daemon) as after:
        assert after.controller.call("s", call.id).state is CallState.RUNNING


async def test_who_waits_in_the_queue_is_hung_up_on_without_a_refusal(daemon: Daemon) -> None:
    await daemon.open("s", memory=GIB)
    await begun(daemon, "s", Intent(memory_bytes=700 * MIB))
    caller = await daemon.caller("s", Request(intent={"memory": "700M"}))
    assert (await caller.ask()).status is Status.QUEUED
    await daemon.controller.leave()
    await daemon.api.stop(sessions_stay=True)
    assert caller.process.stdout is not None
    line = await asyncio.wait_for(caller.process.stdout.readline(), DEADLINE_S)
    assert line.strip() == b"", "the connection ends without a last word: the launcher asks the next daemon"
    await caller.exit()


async def test_calls_in_a_container_go_on_when_its_session_is_made_anew(daemon: Daemon) -> None:
    async def adopt(at: Daemon) -> None:
        await at.controller.adopt_session(
            "box", BudgetRequest(), cgroup_path="/docker-1.scope", container_id="1"
        )

    await adopt(daemon)
    call = await begun(daemon, "box", Intent(memory_bytes=100 * MIB))
    async with next_daemon(daemon) as after:
        assert after.controller.sessions() == [], "until Docker is asked"
        await adopt(after)
        assert after.controller.call("box", call.id).state is CallState.RUNNING
        assert after.controller.session("box").memory_reserved_bytes == 100 * MIB
        assert (await after.controller.finish("box", call.id, 0)).verdict is Verdict.OK
