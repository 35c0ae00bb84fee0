"""What a caller sees when something goes wrong, and that the daemon goes on."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.proto.v1 import agent_pb2, operator_pb2, types_pb2
from tests.integration.harness import DEADLINE_S, GIB, Daemon, refusal

CREATE = operator_pb2.CreateSessionRequest(name="web", budget=types_pb2.Budget(memory_max_bytes=GIB))


async def test_a_refusal_of_the_kernels_arrives_with_its_words(daemon: Daemon) -> None:
    daemon.host.failures["open_session"] = RequestError(
        Kind.HOST, "mkdir: Read-only file system", "remount it"
    )
    error = await refusal(daemon.operator.CreateSession(CREATE))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.reason, error.next_step) == ("HOST", "remount it")
    assert "Read-only file system" in error.message
    assert daemon.controller.counters.request_errors[Kind.HOST] == 1
    assert (await daemon.operator.CreateSession(CREATE)).session.name == "web"


async def test_a_bug_is_an_incident_with_its_traceback_in_the_log_only(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: str) -> None:
        raise ZeroDivisionError("the secret of line 42")

    monkeypatch.setattr(daemon.host, "session_usage", broken)
    with caplog.at_level(logging.ERROR, "agentcgroup.api"):
        error = await refusal(daemon.operator.CreateSession(CREATE))
    assert error.code is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message and "ZeroDivisionError" not in error.message
    incident = error.metadata["incident"]
    assert incident in error.message
    record = next(record for record in caplog.records if incident in record.getMessage())
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
    assert daemon.controller.counters.internal_errors == 1
    await daemon.is_well()


async def test_the_story_of_no_call_is_not_the_hosts(daemon: Daemon) -> None:
    error = await refusal(daemon.operator.ExplainCall(operator_pb2.OperatorServiceExplainCallRequest()))
    assert (error.reason, error.field) == ("INVALID", "call_id")


@pytest.mark.parametrize("method", ["CreateSession", "GetHost", "WatchEvents"])
async def test_bytes_that_are_no_message_are_invalid(daemon: Daemon, method: str) -> None:
    channel: Any = daemon.channel(daemon.run_dir / "operator.sock")
    path = f"/agentcgroup.v1.OperatorService/{method}"
    if method == "WatchEvents":
        call = anext(aiter(channel.unary_stream(path)(b"\xff\xff\xff")))
    else:
        call = channel.unary_unary(path)(b"\xff\xff\xff")
    error = await refusal(call)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")
    await daemon.is_well()


async def test_a_message_of_many_megabytes_is_turned_away(daemon: Daemon) -> None:
    huge = operator_pb2.CreateSessionRequest(name="x" * (3 << 20))
    error = await refusal(daemon.operator.CreateSession(huge))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await daemon.is_well()


async def test_the_longest_words_arrive_whole_in_their_bounds(daemon: Daemon) -> None:
    error = await refusal(daemon.operator.GetSession(operator_pb2.GetSessionRequest(name="é" * 300_000)))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "NOT_FOUND"
    assert len(error.message) < 2000


async def test_unknown_methods_and_services_are_unimplemented(daemon: Daemon) -> None:
    channel: Any = daemon.channel(daemon.run_dir / "operator.sock")
    for path in ("/agentcgroup.v1.OperatorService/Nothing", "/other.Service/Do", "/", "/agentcgroup.v1."):
        error = await refusal(channel.unary_unary(path)(b""))
        assert error.code is grpc.StatusCode.UNIMPLEMENTED


async def test_health_and_reflection_answer_on_both_sockets(daemon: Daemon) -> None:
    await daemon.open("web")
    for socket, service in (
        (daemon.run_dir / "operator.sock", "agentcgroup.v1.OperatorService"),
        (daemon.socket("web", "agent.sock"), "agentcgroup.v1.AgentService"),
    ):
        # The stubs of these two are typed for blocking channels only.
        channel: Any = daemon.channel(socket)
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", service):
            status = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answer = [each async for each in reflection.ServerReflectionInfo(asked)]
        listed = {each.name for each in answer[0].list_services_response.service}
        assert service in listed
        assert len([name for name in listed if name.startswith("agentcgroup.")]) == 1


async def test_requests_in_flight_are_answered_when_the_daemon_stops(daemon: Daemon) -> None:
    await daemon.open("web")
    stream = daemon.agent("web").WatchFeedback(agent_pb2.WatchFeedbackRequest())
    watching = daemon.operator.WatchEvents(operator_pb2.WatchEventsRequest())
    messages, events = aiter(stream), aiter(watching)
    await anext(messages)
    await anext(events)
    async with asyncio.timeout(DEADLINE_S):
        await daemon.controller.close()
        await daemon.api.stop()
        assert "Session ended" in [each.feedback.message async for each in messages][-1]
        assert "Session ended" in [each.event.message async for each in events][-1]
        assert await watching.code() is await stream.code() is grpc.StatusCode.OK
    assert not (daemon.run_dir / "operator.sock").exists()
    assert list((daemon.run_dir / "sessions").iterdir()) == []
