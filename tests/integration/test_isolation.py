"""A caller on one session's socket cannot name, see or change another session."""

from typing import Any

import grpc
import pytest

from agentcgroup.proto.launch import Request, Status
from agentcgroup.proto.v1 import agent_pb2 as pb, operator_pb2, types_pb2
from agentcgroup.proto.v1.operator_pb2_grpc import OperatorServiceStub
from tests.integration.harness import DEADLINE_S, MIB, Daemon, refusal

NAMING_A_CALL: list[tuple[str, Any]] = [
    ("GetCall", lambda call_id: pb.GetCallRequest(call_id=call_id)),
    ("GetCallTree", lambda call_id: pb.GetCallTreeRequest(call_id=call_id)),
    ("FinishCall", lambda call_id: pb.FinishCallRequest(call_id=call_id)),
    (
        "AdjustCall",
        lambda call_id: pb.AdjustCallRequest(call_id=call_id, intent=types_pb2.Intent(pids_max=1)),
    ),
    ("BeginCall", lambda call_id: pb.BeginCallRequest(call_id=call_id, ticket=True)),
    ("DeclareIntent", lambda call_id: pb.DeclareIntentRequest(parent_call_id=call_id)),
]


async def running(daemon: Daemon, session: str) -> tuple[str, int]:
    pid = daemon.process(session)
    request = pb.BeginCallRequest(
        intent=types_pb2.Intent(memory_bytes=MIB), process=types_pb2.ProcessRef(pid=pid)
    )
    return (await daemon.agent(session).BeginCall(request)).call.id, pid


@pytest.mark.parametrize(("method", "request_"), NAMING_A_CALL)
async def test_anothers_call_is_like_one_that_never_was(daemon: Daemon, method: str, request_: Any) -> None:
    await daemon.open("mine")
    await daemon.open("theirs")
    call_id, _ = await running(daemon, "theirs")
    mine = daemon.agent("mine")
    of_another = await refusal(getattr(mine, method)(request_(call_id)))
    of_none = await refusal(getattr(mine, method)(request_("c-0000000000")))
    assert of_another.code is of_none.code is grpc.StatusCode.NOT_FOUND
    assert of_another.message.replace(call_id, "") == of_none.message.replace("c-0000000000", "")
    assert [call.id for call in daemon.controller.calls("theirs")] == [call_id]


async def test_a_stream_and_a_tree_show_only_ones_own_session(daemon: Daemon) -> None:
    await daemon.open("mine")
    await daemon.open("theirs")
    stream = daemon.agent("mine").WatchFeedback(pb.WatchFeedbackRequest(), timeout=DEADLINE_S)
    messages = aiter(stream)
    await anext(messages)
    await running(daemon, "theirs")
    call_id, _ = await running(daemon, "mine")
    assert (await anext(messages)).feedback.call_id == call_id
    tree = await daemon.agent("mine").GetCallTree(pb.GetCallTreeRequest())
    assert [call.session for call in tree.calls] == ["mine"]
    stream.cancel()


async def test_a_process_of_another_session_cannot_be_taken(daemon: Daemon) -> None:
    await daemon.open("mine")
    await daemon.open("theirs")
    call_id, in_their_call = await running(daemon, "theirs")
    for pid in (daemon.process("theirs"), in_their_call):
        request = pb.BeginCallRequest(intent=types_pb2.Intent(), process=types_pb2.ProcessRef(pid=pid))
        error = await refusal(daemon.agent("mine").BeginCall(request))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert daemon.host.calls[call_id].pids == {in_their_call}
    assert daemon.controller.calls("mine") == []


@pytest.mark.parametrize("pid", [1, 2])
async def test_a_process_of_the_host_cannot_be_taken(daemon: Daemon, pid: int) -> None:
    await daemon.open("mine")
    request = pb.BeginCallRequest(intent=types_pb2.Intent(), process=types_pb2.ProcessRef(pid=pid))
    error = await refusal(daemon.agent("mine").BeginCall(request))
    assert error.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)
    assert daemon.host.done["place"] == 0


async def test_a_process_outside_all_sessions_cannot_be_taken(daemon: Daemon) -> None:
    await daemon.open("mine")
    process = types_pb2.ProcessRef(pid=daemon.process())
    error = await refusal(
        daemon.agent("mine").BeginCall(pb.BeginCallRequest(intent=types_pb2.Intent(), process=process))
    )
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "not in this session" in error.message


async def test_anothers_ticket_is_worth_nothing_and_stays_good(daemon: Daemon) -> None:
    await daemon.open("mine")
    await daemon.open("theirs")
    begun = await daemon.agent("theirs").BeginCall(
        pb.BeginCallRequest(intent=types_pb2.Intent(), ticket=True)
    )
    _, stolen = await daemon.launch("mine", Request(ticket=begun.ticket))
    assert stolen.status is Status.INVALID
    assert "ticket" in stolen.message
    owner, owned = await daemon.launch("theirs", Request(ticket=begun.ticket))
    assert owned.status is Status.GRANTED
    await owner.exit()


async def test_the_agents_socket_serves_nothing_of_the_operators(daemon: Daemon) -> None:
    await daemon.open("mine")
    operator = OperatorServiceStub(daemon.channel(daemon.socket("mine", "agent.sock")))
    for call in (
        operator.ListSessions(operator_pb2.ListSessionsRequest()),
        operator.UpdateSession(operator_pb2.UpdateSessionRequest(name="mine")),
        operator.KillSession(operator_pb2.KillSessionRequest(name="mine")),
    ):
        assert (await refusal(call)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_no_request_of_an_agents_names_a_session() -> None:
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        if message.name.endswith("Request"):
            assert "session" not in message.fields_by_name, message.name
