"""Draining a host and reloading its configuration, over real gRPC."""

import asyncio

import grpc
import msgspec
import pytest

from agentcgroup.daemon.config import ConfigError
from agentcgroup.proto.v1 import agent_pb2, operator_pb2 as pb, types_pb2
from tests.integration.harness import DEADLINE_S, MIB, Daemon, refusal
from tests.integration.test_operators import begun


async def declared(daemon: Daemon, session: str, parent: str = "") -> types_pb2.Answer:
    request = agent_pb2.DeclareIntentRequest(intent=types_pb2.Intent(), parent_call_id=parent)
    return (await daemon.agent(session).DeclareIntent(request)).answer


async def test_a_drained_host_begins_nothing_lets_calls_finish_and_says_why(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await begun(daemon, "web")
    waiting = await declared(daemon, "web")
    drained = await daemon.operator.DrainHost(pb.DrainHostRequest(reason="kernel\nupdate"))
    assert drained.calls_live == 1

    refused = await declared(daemon, "web")
    assert refused.decision == types_pb2.DECISION_REFUSED
    assert refused.reason == types_pb2.REASON_HOST_DRAINING
    assert "kernel update" in refused.message
    # A grant that had not begun is given back, what runs may bring its own work to an end.
    process = types_pb2.ProcessRef(pid=daemon.process("web"))
    error = await refusal(
        daemon.agent("web").BeginCall(agent_pb2.BeginCallRequest(call_id=waiting.call_id, process=process))
    )
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (await declared(daemon, "web", parent=call_id)).decision == types_pb2.DECISION_GRANTED
    error = await refusal(daemon.operator.CreateSession(pb.CreateSessionRequest(name="late")))
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert "kernel update" in error.message

    host = await daemon.operator.GetHost(pb.GetHostRequest())
    assert host.drain.reason == "kernel update"
    assert not host.drain.HasField("deadline")

    assert (await daemon.operator.ResumeHost(pb.ResumeHostRequest())).was_draining
    assert not (await daemon.operator.ResumeHost(pb.ResumeHostRequest())).was_draining
    assert (await declared(daemon, "web")).decision == types_pb2.DECISION_GRANTED
    assert not (await daemon.operator.GetHost(pb.GetHostRequest())).HasField("drain")


async def test_what_still_runs_at_the_deadline_of_a_drain_is_killed(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await begun(daemon, "web")
    await daemon.operator.DrainHost(pb.DrainHostRequest(reason="moving", deadline_ms=20))
    async with asyncio.timeout(DEADLINE_S):
        while True:
            call = (await daemon.agent("web").GetCall(agent_pb2.GetCallRequest(call_id=call_id))).call
            if call.HasField("report"):
                break
            await asyncio.sleep(0.01)
    assert call.report.verdict == types_pb2.VERDICT_OPERATOR
    assert "moving" in call.report.message
    # The session and its agent stay.
    assert "web" in daemon.host.sessions


async def test_a_reload_changes_defaults_and_loses_no_call(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await begun(daemon, "web")
    call = msgspec.structs.replace(daemon.config.call, memory=64 * MIB)
    daemon.file = msgspec.structs.replace(daemon.config, call=call)
    response = await daemon.operator.ReloadConfiguration(pb.ReloadConfigurationRequest())
    assert [(each.key, each.new_value, each.is_live) for each in response.changes] == [
        ("call.memory", str(64 * MIB), True)
    ]
    assert (await declared(daemon, "web")).granted.memory_bytes == 64 * MIB
    kept = (await daemon.agent("web").GetCall(agent_pb2.GetCallRequest(call_id=call_id))).call
    assert kept.state == types_pb2.CALL_STATE_RUNNING
    assert kept.limits.memory_bytes == 256 * MIB


async def test_a_wrong_configuration_is_refused_with_its_reason(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> None:
        raise ConfigError("agentcgroup.toml: unknown key call.memroy")

    monkeypatch.setattr(daemon.reloader, "_load", load)
    error = await refusal(daemon.operator.ReloadConfiguration(pb.ReloadConfigurationRequest()))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "call.memroy" in error.message
