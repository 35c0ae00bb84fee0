"""The clients over real gRPC: what they ask, how they read the answers, how they page, stream and find the daemon."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from agentcgroup.client import (
    Answer,
    AsyncClient,
    AsyncOperatorClient,
    Client,
    Decision,
    InvalidRequest,
    OperatorClient,
    Priority,
    Verdict,
    convert,
    places,
)
from agentcgroup.proto.v1 import agent_pb2 as agent, operator_pb2 as operator, types_pb2 as pb
from tests.unit.client.messages import filled
from tests.unit.client.scripted_daemon import ScriptedDaemon

INTENT = pb.Intent(memory_bytes=2**31, deadline_ms=600_000, command=["pytest"])
ASKED: dict[str, Any] = {"memory": "2G", "timeout": "10m", "command": ["pytest"]}
SELF = os.getpid()


def _report(response: Any) -> Any:
    return convert.report(response.report)


def _answer(response: Any) -> Any:
    return convert.answer(response.answer)


def _call(response: Any) -> Any:
    return convert.call(response.call)


def _session(response: Any) -> Any:
    return convert.session(response.session)


# Per method: what a client is asked, which request that must make, which response is sent, what it must be read as.
Row = tuple[str, Callable[[Any], Any], Message, type[Message], Callable[[Any], Any]]
AGENT_ROWS: list[Row] = [
    ("GetLimits", lambda c: c.limits(), agent.GetLimitsRequest(), agent.GetLimitsResponse, convert.session_limits),
    (
        "GetLimits", lambda c: c.limits("c1"), agent.GetLimitsRequest(call_id="c1"), agent.GetLimitsResponse,
        convert.session_limits,
    ),
    (
        "DeclareIntent", lambda c: c.declare(parent_call_id="c0", **ASKED),
        agent.DeclareIntentRequest(intent=INTENT, parent_call_id="c0"), agent.DeclareIntentResponse, _answer,
    ),
    (
        "BeginCall", lambda c: c.ticket("c1"), agent.BeginCallRequest(call_id="c1", ticket=True), agent.BeginCallResponse,
        lambda response: response.ticket,
    ),
    (
        "AdjustCall", lambda c: c.adjust("c1", **ASKED), agent.AdjustCallRequest(call_id="c1", intent=INTENT),
        agent.AdjustCallResponse, _answer,
    ),
    (
        "FinishCall", lambda c: c.finish("c1", 0), agent.FinishCallRequest(call_id="c1", exit_code=0),
        agent.FinishCallResponse, _report,
    ),
    ("FinishCall", lambda c: c.finish("c1"), agent.FinishCallRequest(call_id="c1"), agent.FinishCallResponse, _report),
    ("GetCall", lambda c: c.get("c1"), agent.GetCallRequest(call_id="c1"), agent.GetCallResponse, _call),
    (
        "ExplainCall", lambda c: c.explain("c1"), agent.ExplainCallRequest(call_id="c1"), agent.ExplainCallResponse,
        lambda response: convert.story(response.story),
    ),
    (
        "GetSuggestion", lambda c: c.suggestion(["pytest", "-q"], project="p"),
        agent.GetSuggestionRequest(command=["pytest", "-q"], project="p"), agent.GetSuggestionResponse,
        lambda response: convert.suggestion(response.suggestion),
    ),
]  # fmt: skip
OPERATOR_ROWS: list[Row] = [
    (
        "CreateSession",
        lambda c: c.create_session("s", memory="4G", cpu=2, priority="high", owner_uid=7, owner_gid=8, labels={"a": "b"},
                                   ends_with_agent=True),
        operator.CreateSessionRequest(
            name="s", budget=pb.Budget(memory_max_bytes=2**32, cpu_milli=2000), priority=pb.PRIORITY_HIGH, owner_uid=7,
            owner_gid=8, labels={"a": "b"}, ends_with_agent=True,
        ),
        operator.CreateSessionResponse, _session,
    ),
    (
        "CreateSession", lambda c: c.create_session("s"), operator.CreateSessionRequest(name="s", budget=pb.Budget()),
        operator.CreateSessionResponse, _session,
    ),
    (
        "ListSessions", lambda c: c.sessions(), operator.ListSessionsRequest(), operator.ListSessionsResponse,
        lambda response: [convert.session(each) for each in response.sessions],
    ),
    ("GetSession", lambda c: c.session("s"), operator.GetSessionRequest(name="s"), operator.GetSessionResponse, _session),
    (
        "UpdateSession", lambda c: c.update_session("s", pids=9, priority=Priority.LOW),
        operator.UpdateSessionRequest(name="s", budget=pb.Budget(pids_max=9), priority=pb.PRIORITY_LOW),
        operator.UpdateSessionResponse, _session,
    ),
    (
        "FreezeSession", lambda c: c.freeze_session("s", reason="why", include_agent=True),
        operator.FreezeSessionRequest(name="s", reason="why", include_agent=True), operator.FreezeSessionResponse, _session,
    ),
    (
        "ThawSession", lambda c: c.thaw_session("s"), operator.ThawSessionRequest(name="s"), operator.ThawSessionResponse,
        _session,
    ),
    (
        "KillSession", lambda c: c.kill_session("s", reason="why", include_agent=True),
        operator.KillSessionRequest(name="s", reason="why", include_agent=True), operator.KillSessionResponse,
        lambda response: response.calls_killed,
    ),
    (
        "RemoveSession", lambda c: c.remove_session("s", reason="why"),
        operator.RemoveSessionRequest(name="s", reason="why"), operator.RemoveSessionResponse, lambda _: None,
    ),
    (
        "GetCall", lambda c: c.call("c1"), operator.OperatorServiceGetCallRequest(call_id="c1"),
        operator.OperatorServiceGetCallResponse, _call,
    ),
    (
        "UpdateCall", lambda c: c.update_call("c1", **ASKED), operator.UpdateCallRequest(call_id="c1", intent=INTENT),
        operator.UpdateCallResponse, _answer,
    ),
    (
        "FreezeCall", lambda c: c.freeze_call("c1", reason="why"), operator.FreezeCallRequest(call_id="c1", reason="why"),
        operator.FreezeCallResponse, _call,
    ),
    ("ThawCall", lambda c: c.thaw_call("c1"), operator.ThawCallRequest(call_id="c1"), operator.ThawCallResponse, _call),
    (
        "ExplainCall", lambda c: c.explain("c1"), operator.OperatorServiceExplainCallRequest(call_id="c1"),
        operator.OperatorServiceExplainCallResponse, lambda response: convert.story(response.story),
    ),
    (
        "GetSuggestion", lambda c: c.suggestion(["pytest", "-q"], project="p"),
        operator.OperatorServiceGetSuggestionRequest(command=["pytest", "-q"], project="p"),
        operator.OperatorServiceGetSuggestionResponse, lambda response: convert.suggestion(response.suggestion),
    ),
    (
        "KillCall", lambda c: c.kill_call("c1", reason="why"), operator.KillCallRequest(call_id="c1", reason="why"),
        operator.KillCallResponse, _report,
    ),
    ("GetHost", lambda c: c.host(), operator.GetHostRequest(), operator.GetHostResponse, convert.host),
    (
        "DrainHost", lambda c: c.drain_host(reason="why", deadline="10m"),
        operator.DrainHostRequest(reason="why", deadline_ms=600_000), operator.DrainHostResponse,
        lambda response: response.calls_live,
    ),
    (
        "ResumeHost", lambda c: c.resume_host(), operator.ResumeHostRequest(), operator.ResumeHostResponse,
        lambda response: response.was_draining,
    ),
    (
        "ReloadConfiguration", lambda c: c.reload_configuration(), operator.ReloadConfigurationRequest(),
        operator.ReloadConfigurationResponse, lambda response: [*map(convert.configuration_change, response.changes)],
    ),
]  # fmt: skip


async def _check(daemon: ScriptedDaemon, clients: list[Any], row: Row) -> None:
    method, ask, request, response_class, read = row
    response = filled(response_class)
    daemon.answers[method] = response
    for client in clients:
        result = ask(client)
        assert (await result if inspect.isawaitable(result) else result) == read(response)
    assert daemon.requests(method) == [request] * len(clients)


@pytest.mark.parametrize("row", AGENT_ROWS, ids=[row[0] for row in AGENT_ROWS])
async def test_an_agents_request_and_its_answer_arrive_whole(agent_daemon: ScriptedDaemon, row: Row) -> None:
    directory = agent_daemon.socket.parent
    with Client(directory) as client:
        async with AsyncClient(directory) as async_client:
            await _check(agent_daemon, [client, async_client], row)


@pytest.mark.parametrize("row", OPERATOR_ROWS, ids=[row[0] for row in OPERATOR_ROWS])
async def test_an_operators_request_and_its_answer_arrive_whole(
    operator_daemon: ScriptedDaemon, row: Row
) -> None:
    with OperatorClient(operator_daemon.socket) as client:
        async with AsyncOperatorClient(operator_daemon.socket) as async_client:
            await _check(operator_daemon, [client, async_client], row)


def test_every_method_of_the_api_has_a_test() -> None:
    tested = {row[0] for row in AGENT_ROWS} | {"GetCallTree", "WatchAnswer", "WatchFeedback"}
    assert tested == {method.name for method in agent.DESCRIPTOR.services_by_name["AgentService"].methods}
    tested = {row[0] for row in OPERATOR_ROWS} | {
        *("ListCalls", "ListEvents", "ListHistory", "WatchEvents", "PlaceAgent")
    }
    assert tested == {
        method.name for method in operator.DESCRIPTOR.services_by_name["OperatorService"].methods
    }


def _own_start_time_ticks() -> int:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


async def test_a_process_is_named_so_that_no_other_can_be_meant(
    agent_daemon: ScriptedDaemon, operator_daemon: ScriptedDaemon
) -> None:
    agent_daemon.answers["BeginCall"] = agent.BeginCallResponse(call=filled(pb.Call))
    operator_daemon.answers["PlaceAgent"] = filled(operator.PlaceAgentResponse)
    with Client(agent_daemon.socket.parent) as client, OperatorClient(operator_daemon.socket) as operators:
        assert client.begin("c1", SELF) == convert.call(filled(pb.Call))
        operators.place_agent("s", SELF)
    async with AsyncClient(agent_daemon.socket.parent) as async_client:
        await async_client.begin("c1", SELF)
    async with AsyncOperatorClient(operator_daemon.socket) as async_operators:
        await async_operators.place_agent("s", SELF)
    started = _own_start_time_ticks()
    requests = agent_daemon.requests("BeginCall") + operator_daemon.requests("PlaceAgent")
    assert [(each.process.pid, each.process.start_time_ticks) for each in requests] == [(SELF, started)] * 4


def _pages(kind: Any, field: str, sizes: list[int]) -> Callable[[Any], Message]:
    """Answers with pages of numbered items; the token is the number of the page."""

    def answer(request: Any) -> Message:
        page = int(request.page_token or 0)
        response: Message = kind(next_page_token=str(page + 1) if page + 1 < len(sizes) else "")
        for number in range(sizes[page]):
            item = getattr(response, field).add()
            call = item.report if field == "entries" else item
            setattr(call, "call_id" if field == "entries" else "id", f"c{page}-{number}")
            if field == "calls":
                item.state = pb.CALL_STATE_RUNNING
        return response

    return answer


async def test_long_lists_are_read_to_their_end(
    agent_daemon: ScriptedDaemon, operator_daemon: ScriptedDaemon
) -> None:
    agent_daemon.answers["GetCallTree"] = _pages(agent.GetCallTreeResponse, "calls", [2, 0, 1])
    operator_daemon.answers["ListCalls"] = _pages(operator.ListCallsResponse, "calls", [2, 0, 1])
    expected = ["c0-0", "c0-1", "c2-0"]
    with Client(agent_daemon.socket.parent) as client, OperatorClient(operator_daemon.socket) as operators:
        assert [each.id for each in client.tree("c0")] == expected
        assert [each.id for each in operators.calls("s")] == expected
    async with AsyncClient(agent_daemon.socket.parent) as async_client:
        assert [each.id for each in await async_client.tree()] == expected
    async with AsyncOperatorClient(operator_daemon.socket) as async_operators:
        assert [each.id for each in await async_operators.calls()] == expected
    assert [each.page_token for each in agent_daemon.requests("GetCallTree")] == ["", "1", "2"] * 2
    assert {each.session for each in operator_daemon.requests("ListCalls")[:3]} == {"s"}


async def test_decisions_are_read_no_further_than_asked(operator_daemon: ScriptedDaemon) -> None:
    def page(request: operator.ListEventsRequest) -> operator.ListEventsResponse:
        at = int(request.page_token or 0)
        return operator.ListEventsResponse(
            events=[pb.Event(id=f"e{at}"), pb.Event(id=f"e{at + 1}")], next_page_token=str(at + 2)
        )

    operator_daemon.answers["ListEvents"] = page
    with OperatorClient(operator_daemon.socket) as client:
        assert [each.id for each in client.events("s", call_id="c1", limit=3)] == ["e0", "e1", "e2"]
        assert list(client.events(limit=0)) == []
    async with AsyncOperatorClient(operator_daemon.socket) as async_client:
        assert [each.id async for each in async_client.events(limit=2)] == ["e0", "e1"]
        assert [each async for each in async_client.events(limit=0)] == []
    asked = [
        (each.session, each.call_id, each.page_token) for each in operator_daemon.requests("ListEvents")
    ]
    assert asked == [("s", "c1", ""), ("s", "c1", "2"), ("", "", "")]


async def test_the_history_is_read_no_further_than_asked(operator_daemon: ScriptedDaemon) -> None:
    operator_daemon.answers["ListHistory"] = _pages(operator.ListHistoryResponse, "entries", [2, 2, 2])

    def listed(**asked: Any) -> list[str]:
        return [each.report.call_id for each in client.history(**asked)]

    with OperatorClient(operator_daemon.socket) as client:
        assert listed(session="s", verdict=Verdict.DEADLINE) == [
            f"c{page}-{n}" for page in range(3) for n in range(2)
        ]
        assert listed(limit=3) == ["c0-0", "c0-1", "c1-0"]
        assert listed(limit=2) == ["c0-0", "c0-1"]
        assert listed(limit=0) == []
    async with AsyncOperatorClient(operator_daemon.socket) as async_client:
        assert [each.report.call_id async for each in async_client.history(limit=3)] == [
            "c0-0",
            "c0-1",
            "c1-0",
        ]
        assert [each async for each in async_client.history(limit=0)] == []
    first = operator_daemon.requests("ListHistory")[0]
    assert (first.session, first.verdict, first.page_size) == ("s", pb.VERDICT_DEADLINE, 100)
    # Neither a second nor a third page was asked for where the first was enough.
    assert [each.page_token for each in operator_daemon.requests("ListHistory")] == [
        "",
        "1",
        "2",
        "",
        "1",
        "",
        "",
        "1",
    ]


async def test_a_stream_is_read_as_it_comes_and_cancelled_when_left(
    agent_daemon: ScriptedDaemon, operator_daemon: ScriptedDaemon
) -> None:
    said = [pb.Feedback(sequence=number, message=f"m{number}") for number in range(1, 4)]
    agent_daemon.answers["WatchFeedback"] = [agent.WatchFeedbackResponse(feedback=each) for each in said]
    operator_daemon.answers["WatchEvents"] = [operator.WatchEventsResponse(event=each) for each in said]
    with Client(agent_daemon.socket.parent) as client, OperatorClient(operator_daemon.socket) as operators:
        assert [each.message for each in client.watch("c1")] == ["m1", "m2", "m3"]
        assert [each.sequence for each in operators.watch("s")] == [1, 2, 3]
    async with AsyncClient(agent_daemon.socket.parent) as async_client:
        assert [each.message async for each in async_client.watch()] == ["m1", "m2", "m3"]
    async with AsyncOperatorClient(operator_daemon.socket) as async_operators:
        async for message in async_operators.watch():
            assert message.sequence == 1
            break
    assert agent_daemon.requests("WatchFeedback")[0].call_id == "c1"
    assert operator_daemon.requests("WatchEvents")[0].session == "s"
    assert operator_daemon.cancelled.wait(10)


def test_a_call_declared_inside_a_call_is_its_child_unless_told_otherwise(
    agent_daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_daemon.answers["DeclareIntent"] = agent.DeclareIntentResponse(
        answer=pb.Answer(decision=pb.DECISION_GRANTED)
    )
    monkeypatch.setenv("AGENTCGROUP_CALL_ID", "outer")
    with Client(agent_daemon.socket.parent) as client:
        assert client.declare().decision is Decision.GRANTED
        client.declare(parent_call_id="other")
        client.declare(parent_call_id="")
    assert [each.parent_call_id for each in agent_daemon.requests("DeclareIntent")] == ["outer", "other", ""]


def queued(position: int) -> pb.Answer:
    place = pb.Queue(position=position, deadline_ms=60_000)
    return pb.Answer(decision=pb.DECISION_QUEUED, call_id="c1", queue=place)


async def test_a_queued_call_is_waited_for_and_its_place_is_told(agent_daemon: ScriptedDaemon) -> None:
    granted = pb.Answer(decision=pb.DECISION_GRANTED, call_id="c1")
    agent_daemon.answers["DeclareIntent"] = agent.DeclareIntentResponse(answer=queued(2))
    agent_daemon.answers["WatchAnswer"] = [
        agent.WatchAnswerResponse(answer=each) for each in (queued(2), queued(1), granted)
    ]
    places: list[int] = []

    def on_queued(answer: Answer) -> None:
        assert answer.queue is not None
        places.append(answer.queue.position)

    with Client(agent_daemon.socket.parent) as client:
        assert client.declare(wait="1m", on_queued=on_queued).decision is Decision.GRANTED
    async with AsyncClient(agent_daemon.socket.parent) as async_client:
        assert (await async_client.declare(wait=0)).decision is Decision.GRANTED
    assert places == [2, 1], "once each"
    assert [each.queue_deadline_ms for each in agent_daemon.requests("DeclareIntent")] == [60_000, 0]
    assert [each.call_id for each in agent_daemon.requests("WatchAnswer")] == ["c1", "c1"]


def test_the_sockets_are_found_as_the_launcher_finds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AGENTCGROUP_SESSION_DIR", raising=False)
    monkeypatch.delenv("AGENTCGROUP_OPERATOR_SOCKET", raising=False)
    assert Client().session_dir == "/run/agentcgroup/session"
    assert OperatorClient().socket == "/run/agentcgroup/operator.sock"
    monkeypatch.setenv("AGENTCGROUP_SESSION_DIR", str(tmp_path))
    monkeypatch.setenv("AGENTCGROUP_OPERATOR_SOCKET", str(tmp_path / "o.sock"))
    assert Client().session_dir == str(tmp_path)
    assert OperatorClient().socket == str(tmp_path / "o.sock")
    assert Client("/else/where").session_dir == "/else/where"
    assert places.is_inside_session() and places.is_inside_session({"AGENTCGROUP_SESSION_DIR": "/x"})


def test_a_socket_with_a_blank_in_its_name_is_reached(tmp_path: Path) -> None:
    directory = tmp_path / "a b%20c"
    directory.mkdir()
    os.symlink(directory, tmp_path / "plain")
    answer = filled(agent.GetLimitsResponse)
    with ScriptedDaemon(
        tmp_path / "plain" / "agent.sock", agent.DESCRIPTOR.services_by_name["AgentService"]
    ) as daemon:
        daemon.answers["GetLimits"] = answer
        with Client(directory) as client:
            assert client.limits() == convert.session_limits(answer)


def test_a_path_that_no_socket_can_have_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="longer than a socket's name can be"):
        Client(tmp_path / ("d" * 100))
