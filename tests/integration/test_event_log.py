"""What is decided is written down with its numbers, and told to whom it concerns."""

import grpc

from agentcgroup.daemon.model import Action, Actor, BudgetRequest, Event
from agentcgroup.proto.v1 import agent_pb2, operator_pb2 as pb, types_pb2
from tests.integration.harness import GIB, MIB, Daemon, refusal
from tests.integration.test_operators import begun


def about(daemon: Daemon, call_id: str) -> list[Event]:
    return [each for each in daemon.history.noted if each.call_id == call_id]


async def test_a_call_leaves_its_decisions_with_the_numbers_they_were_made_from(daemon: Daemon) -> None:
    await daemon.open("web", memory=2 * GIB)
    call_id = await begun(daemon, "web", memory_bytes=GIB)
    operator = daemon.operator
    await operator.UpdateCall(
        pb.UpdateCallRequest(call_id=call_id, intent=types_pb2.Intent(memory_bytes=512 * MIB))
    )
    await operator.FreezeCall(pb.FreezeCallRequest(call_id=call_id, reason="look"))
    await operator.ThawCall(pb.ThawCallRequest(call_id=call_id))
    await operator.KillCall(pb.KillCallRequest(call_id=call_id, reason="too loud"))
    told = about(daemon, call_id)
    assert [(each.action, each.actor) for each in told] == [
        (Action.GRANTED, Actor.POLICY),
        (Action.BEGUN, Actor.AGENT),
        (Action.RELIMITED, Actor.OPERATOR),
        (Action.FROZEN, Actor.OPERATOR),
        (Action.THAWED, Actor.OPERATOR),
        (Action.KILLED, Actor.OPERATOR),
        (Action.ENDED, Actor.DAEMON),
    ]
    granted, ended = dict(told[0].inputs), dict(told[-1].inputs)
    assert granted["asked_memory_bytes"] == granted["memory_bytes"] == GIB
    assert granted["session_memory_bytes"] == 2 * GIB - 256 * MIB
    assert "asked_cpu_milli" not in granted
    assert (ended["verdict"], ended["kill_reason"], ended["call_oom_kill"]) == ("operator", "operator", 0)
    assert "too loud" in told[-2].reason
    ids = [each.id for each in daemon.history.noted]
    assert ids == sorted(set(ids))


async def test_refusals_and_sessions_are_written_down_too(daemon: Daemon) -> None:
    await daemon.open("web", memory=GIB)
    intent = types_pb2.Intent(memory_bytes=2 * GIB, command=["make", "-j8"])
    await daemon.agent("web").DeclareIntent(agent_pb2.DeclareIntentRequest(intent=intent))
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=2 * GIB), None)
    await daemon.operator.RemoveSession(pb.RemoveSessionRequest(name="web"))
    assert [(each.session, each.action) for each in daemon.history.noted] == [
        ("web", Action.OPENED),
        ("web", Action.REFUSED),
        ("web", Action.RELIMITED),
        ("web", Action.CLOSED),
    ]
    assert dict(daemon.history.noted[1].inputs)["asked_memory_bytes"] == 2 * GIB
    listed = await daemon.operator.ListEvents(pb.ListEventsRequest(session="web", page_size=3))
    assert [each.action for each in listed.events] == ["closed", "relimited", "refused"]
    assert listed.events[2].numbers["asked_memory_bytes"] == 2 * GIB
    words = listed.events[2].words
    assert (words["refused_for"], words["command"]) == ("session_memory", "make -j8")
    rest = await daemon.operator.ListEvents(pb.ListEventsRequest(page_token=listed.next_page_token))
    assert [each.action for each in rest.events] == ["opened"]
    assert rest.events[0].words["priority"] == "normal"


async def test_an_agent_hears_the_story_of_its_own_calls_only(daemon: Daemon) -> None:
    await daemon.open("web")
    await daemon.open("api")
    call_id = await begun(daemon, "web")
    request = agent_pb2.ExplainCallRequest(call_id=call_id)
    story = (await daemon.agent("web").ExplainCall(request)).story
    assert [each.action for each in story.events] == ["granted", "begun"]
    assert story.call.state == types_pb2.CALL_STATE_RUNNING
    error = await refusal(daemon.agent("api").ExplainCall(request))
    assert (error.code, error.field) == (grpc.StatusCode.NOT_FOUND, "call_id")
    await daemon.operator.KillCall(pb.KillCallRequest(call_id=call_id))
    asked = pb.OperatorServiceExplainCallRequest(call_id=call_id)
    story = (await daemon.operator.ExplainCall(asked)).story
    assert story.events[-1].action == "ended"
    assert story.call.report.verdict == types_pb2.VERDICT_OPERATOR


async def test_a_session_hears_nothing_of_one_that_had_its_name_before(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await begun(daemon, "web")
    await daemon.operator.RemoveSession(pb.RemoveSessionRequest(name="web"))
    asked = pb.OperatorServiceExplainCallRequest(call_id=call_id)
    assert (await daemon.operator.ExplainCall(asked)).story.call.id == call_id
    await daemon.open("web")
    agent = daemon.agent("web")
    for call in (
        agent.ExplainCall(agent_pb2.ExplainCallRequest(call_id=call_id)),
        agent.GetCall(agent_pb2.GetCallRequest(call_id=call_id)),
    ):
        assert (await refusal(call)).code == grpc.StatusCode.NOT_FOUND
