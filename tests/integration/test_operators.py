"""The operators' socket: every RPC, over real gRPC."""

import asyncio

import grpc
import pytest

from agentcgroup.proto.v1 import agent_pb2, operator_pb2 as pb, types_pb2
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon, refusal, until


async def begun(daemon: Daemon, session: str, memory_bytes: int | None = None) -> str:
    """A running call of `session`, begun over its own socket."""
    process = types_pb2.ProcessRef(pid=daemon.process(session))
    request = agent_pb2.BeginCallRequest(intent=types_pb2.Intent(memory_bytes=memory_bytes), process=process)
    return (await daemon.agent(session).BeginCall(request)).call.id


async def test_a_session_is_created_listed_shown_changed_and_removed(daemon: Daemon) -> None:
    operator = daemon.operator
    budget = types_pb2.Budget(memory_max_bytes=2 * GIB, agent_memory_bytes=MIB, cpu_milli=1500)
    create = pb.CreateSessionRequest(
        name="web",
        budget=budget,
        priority=types_pb2.PRIORITY_HIGH,
        labels={"team": "blue"},
        ends_with_agent=True,
    )
    created = (await operator.CreateSession(create)).session
    assert created.name == "web"
    assert created.state == types_pb2.SESSION_STATE_OPEN
    assert created.budget.memory_max_bytes == 2 * GIB
    assert created.budget.pids_max == 4096
    assert dict(created.labels) == {"team": "blue"}
    assert created.socket_dir == str(daemon.run_dir / "sessions" / "web")
    assert created.ends_with_agent

    assert [each.name for each in (await operator.ListSessions(pb.ListSessionsRequest())).sessions] == [
        "web"
    ]
    assert (
        await operator.GetSession(pb.GetSessionRequest(name="web"))
    ).session.priority == types_pb2.PRIORITY_HIGH

    change = pb.UpdateSessionRequest(name="web", budget=types_pb2.Budget(memory_max_bytes=3 * GIB))
    updated = (await operator.UpdateSession(change)).session
    assert updated.budget.memory_max_bytes == 3 * GIB
    assert updated.budget.cpu_milli == 1500
    assert updated.priority == types_pb2.PRIORITY_HIGH
    assert daemon.host.sessions["web"].memory_max_bytes == 3 * GIB

    await operator.RemoveSession(pb.RemoveSessionRequest(name="web", reason="done"))
    assert daemon.host.sessions == {}
    assert not (daemon.run_dir / "sessions" / "web").exists()
    error = await refusal(operator.GetSession(pb.GetSessionRequest(name="web")))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_a_session_and_its_calls_are_frozen_thawed_and_killed(daemon: Daemon) -> None:
    await daemon.open("web")
    operator = daemon.operator
    frozen = (await operator.FreezeSession(pb.FreezeSessionRequest(name="web", reason="look"))).session
    assert frozen.state == types_pb2.SESSION_STATE_FROZEN
    assert (await operator.ThawSession(pb.ThawSessionRequest(name="web"))).session.state == (
        types_pb2.SESSION_STATE_OPEN
    )
    call_id = await begun(daemon, "web")
    call = (await operator.FreezeCall(pb.FreezeCallRequest(call_id=call_id, reason="look"))).call
    assert call.state == types_pb2.CALL_STATE_FROZEN
    assert daemon.host.calls[call_id].frozen
    call = (await operator.ThawCall(pb.ThawCallRequest(call_id=call_id))).call
    assert call.state == types_pb2.CALL_STATE_RUNNING
    report = (await operator.KillCall(pb.KillCallRequest(call_id=call_id, reason="too\nloud"))).report
    assert report.verdict == types_pb2.VERDICT_OPERATOR
    assert "too loud" in report.message
    await begun(daemon, "web")
    await begun(daemon, "web")
    killed = await operator.KillSession(pb.KillSessionRequest(name="web", reason="all", include_agent=True))
    assert killed.calls_killed == 2
    assert daemon.host.done["kill_agent"] == 1
    assert daemon.controller.calls(None) == []


async def test_calls_of_all_sessions_are_listed_shown_and_changed(daemon: Daemon) -> None:
    await daemon.open("web")
    await daemon.open("api")
    operator = daemon.operator
    first, second = (
        await begun(daemon, "web", memory_bytes=MIB),
        await begun(daemon, "api", memory_bytes=MIB),
    )
    listed = await operator.ListCalls(pb.ListCallsRequest())
    assert [(call.session, call.id) for call in listed.calls] == [("web", first), ("api", second)]
    listed = await operator.ListCalls(pb.ListCallsRequest(session="api"))
    assert [call.id for call in listed.calls] == [second]
    page = await operator.ListCalls(pb.ListCallsRequest(page_size=1))
    rest = await operator.ListCalls(pb.ListCallsRequest(page_size=1, page_token=page.next_page_token))
    assert [call.id for call in (*page.calls, *rest.calls)] == [first, second]
    shown = await operator.GetCall(pb.OperatorServiceGetCallRequest(call_id=second))
    assert shown.call.session == "api"
    change = pb.UpdateCallRequest(call_id=second, intent=types_pb2.Intent(pids_max=7))
    assert (await operator.UpdateCall(change)).answer.granted.pids_max == 7
    assert daemon.host.calls[second].limits.pids_max == 7


async def test_an_agent_is_placed_into_its_leaf(daemon: Daemon) -> None:
    await daemon.open("web")
    pid = daemon.process()
    request = pb.PlaceAgentRequest(name="web", process=types_pb2.ProcessRef(pid=pid))
    assert (await daemon.operator.PlaceAgent(request)).session.name == "web"
    assert daemon.host.homes[pid] == "web"


async def test_the_host_tells_what_it_can_and_what_it_costs(daemon: Daemon) -> None:
    await daemon.open("web")
    host = await daemon.operator.GetHost(pb.GetHostRequest())
    assert (host.tier, host.sessions, host.calls_live) == ("cgroup", 1, 0)
    assert host.memory_capacity_bytes == 8 * GIB
    assert host.memory_reserved_bytes == 256 * MIB
    assert host.memory_current_bytes == 100 * MIB
    assert host.started_at.ToNanoseconds() > 0
    missing = [capability for capability in host.capabilities if not capability.available]
    assert [(each.name, each.cost, each.remedy) for each in missing] == [
        ("bpf", "events come later", "a kernel with BTF")
    ]
    assert host.daemon_rss_bytes == 40 * MIB
    assert host.daemon_usage.cpu_usage_us == 1000


async def test_history_is_paged_and_filtered(daemon: Daemon) -> None:
    await daemon.open("web")
    operator = daemon.operator
    ids = [await begun(daemon, "web", memory_bytes=MIB) for _ in range(3)]
    for call_id in ids:
        await operator.KillCall(pb.KillCallRequest(call_id=call_id))
    page = await operator.ListHistory(pb.ListHistoryRequest(page_size=2))
    assert [entry.report.call_id for entry in page.entries] == [ids[2], ids[1]]
    assert page.entries[0].intent.memory_bytes == MIB
    assert page.entries[0].decision == types_pb2.DECISION_GRANTED
    rest = await operator.ListHistory(pb.ListHistoryRequest(page_size=2, page_token=page.next_page_token))
    assert [entry.report.call_id for entry in rest.entries] == [ids[0]]
    assert rest.next_page_token == ""
    none = await operator.ListHistory(pb.ListHistoryRequest(verdict=types_pb2.VERDICT_OK))
    assert list(none.entries) == []
    error = await refusal(operator.ListHistory(pb.ListHistoryRequest(page_token="x")))
    assert error.field == "page_token"


async def test_who_comes_during_a_drain_or_a_freeze_is_told_at_once(daemon: Daemon) -> None:
    async def hellos() -> tuple[types_pb2.Feedback, types_pb2.Feedback]:
        asked = agent_pb2.WatchFeedbackRequest()
        agent = aiter(daemon.agent("web").WatchFeedback(asked, timeout=DEADLINE_S))
        operator = aiter(daemon.operator.WatchEvents(pb.WatchEventsRequest(), timeout=DEADLINE_S))
        return (await anext(agent)).feedback, (await anext(operator)).event

    await daemon.open("web")
    for hello in await hellos():
        assert "froze" not in hello.message and "emptying" not in hello.message
    await daemon.operator.FreezeSession(pb.FreezeSessionRequest(name="web"))
    agent, _ = await hellos()
    assert "The operator froze the session; its calls stand still" in agent.message
    await daemon.operator.ThawSession(pb.ThawSessionRequest(name="web"))
    await daemon.operator.DrainHost(pb.DrainHostRequest(reason="kernel update", deadline_ms=3_600_000_000))
    for hello in await hellos():
        assert "The operator is emptying this host: kernel update. What runs may go on for " in hello.message
        assert "then it is killed; nothing new begins." in hello.message
    agent, _ = await hellos()
    assert agent.level == types_pb2.LEVEL_CRITICAL and "froze" not in agent.message
    assert agent.advice.startswith("Bring what you are doing to an end")
    await daemon.operator.ResumeHost(pb.ResumeHostRequest())
    for hello in await hellos():
        assert "emptying" not in hello.message


async def test_events_of_every_session_are_watched(daemon: Daemon) -> None:
    await daemon.open("web")
    stream = daemon.operator.WatchEvents(pb.WatchEventsRequest(), timeout=DEADLINE_S)
    events = aiter(stream)
    hello = (await anext(events)).event
    assert hello.kind == types_pb2.FEEDBACK_KIND_HELLO
    assert "1 sessions" in hello.message
    await begun(daemon, "web")
    await daemon.open("api")
    seen = [(await anext(events)).event for _ in range(2)]
    assert [(event.session, event.kind) for event in seen] == [
        ("web", types_pb2.FEEDBACK_KIND_STARTED),
        ("api", types_pb2.FEEDBACK_KIND_SESSION),
    ]
    stream.cancel()
    one = daemon.operator.WatchEvents(pb.WatchEventsRequest(session="api"), timeout=DEADLINE_S)
    only = aiter(one)
    await anext(only)
    await begun(daemon, "web")
    call_id = await begun(daemon, "api")
    assert (await anext(only)).event.call_id == call_id
    one.cancel()
    error = await refusal(anext(aiter(daemon.operator.WatchEvents(pb.WatchEventsRequest(session="none")))))
    assert error.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateSessionRequest(), "name"),
        (pb.CreateSessionRequest(name="a/b"), "name"),
        (pb.CreateSessionRequest(name="x" * 300), "name"),
        (pb.CreateSessionRequest(name="memory.max"), "name"),
        (
            pb.CreateSessionRequest(name="ok", budget=types_pb2.Budget(memory_max_bytes=0)),
            "memory_max_bytes",
        ),
        (pb.CreateSessionRequest(name="ok", budget=types_pb2.Budget(cpu_milli=1)), "cpu_milli"),
        (pb.CreateSessionRequest(name="ok", owner_uid=2**32 - 1), "owner_uid"),
        (pb.CreateSessionRequest(name="ok", owner_gid=2**32 - 1), "owner_gid"),
        (pb.CreateSessionRequest(name="ok", labels={"Bad": "x"}), "labels"),
        (pb.CreateSessionRequest(name="ok", priority=99), "priority"),  # type: ignore[arg-type]
    ],
)
async def test_a_session_that_makes_no_sense_is_not_created(
    daemon: Daemon, request_: pb.CreateSessionRequest, field: str
) -> None:
    error = await refusal(daemon.operator.CreateSession(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert error.next_step
    assert daemon.host.sessions == {}
    assert list((daemon.run_dir / "sessions").iterdir()) == []


async def test_a_name_is_taken_once_also_when_two_ask_at_the_same_time(daemon: Daemon) -> None:
    create = pb.CreateSessionRequest(name="web", budget=types_pb2.Budget(memory_max_bytes=GIB))
    operator = daemon.operator
    ends = await asyncio.gather(*(operator.CreateSession(create) for _ in range(5)), return_exceptions=True)
    errors = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert len(errors) == 4
    assert {error.code() for error in errors} == {grpc.StatusCode.ALREADY_EXISTS}
    assert (await daemon.agent("web").GetLimits(agent_pb2.GetLimitsRequest())).session == "web"


async def test_an_operator_that_hangs_up_does_not_leave_half_a_session(daemon: Daemon) -> None:
    create = pb.CreateSessionRequest(name="web", budget=types_pb2.Budget(memory_max_bytes=GIB))
    call = daemon.operator.CreateSession(create)
    # At every turn of the loop, so as not to miss the half of a session.
    async with asyncio.timeout(DEADLINE_S):
        while "web" not in daemon.host.sessions:  # noqa: ASYNC110
            await asyncio.sleep(0)
    call.cancel()
    await until(daemon.controller.sessions)
    assert (await daemon.agent("web").GetLimits(agent_pb2.GetLimitsRequest())).session == "web"


async def test_a_kill_goes_on_when_its_operator_hangs_up(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await begun(daemon, "web")
    killing = daemon.operator.KillCall(pb.KillCallRequest(call_id=call_id))
    # At every turn of the loop, so as to hang up while the call is being ended.
    async with asyncio.timeout(DEADLINE_S):
        while not daemon.host.done["kill_call"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
    killing.cancel()
    await until(lambda: not daemon.controller.calls(None))
    assert [entry.report.call_id for entry in daemon.history.entries] == [call_id]
