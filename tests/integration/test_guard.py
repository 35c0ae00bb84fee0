"""What the kernel's guard is given to go by, and what is told of what it found."""

from agentcgroup.daemon.model import Action, Actor, BudgetRequest, MemoryBreach, Priority
from agentcgroup.proto.v1 import operator_pb2 as pb, types_pb2
from tests.integration.harness import GIB, MIB, Daemon
from tests.integration.test_operators import begun


async def test_a_session_is_guarded_by_what_it_and_its_calls_were_promised(daemon: Daemon) -> None:
    promises = daemon.host.guard.promises
    session = await daemon.open("web", memory=2 * GIB)
    agent_bytes = session.budget.agent_memory_bytes
    assert promises["web"] == (Priority.NORMAL, agent_bytes)
    call_id = await begun(daemon, "web", memory_bytes=GIB)
    assert promises["web"] == (Priority.NORMAL, agent_bytes + GIB)
    await daemon.operator.UpdateCall(
        pb.UpdateCallRequest(call_id=call_id, intent=types_pb2.Intent(memory_bytes=512 * MIB))
    )
    assert promises["web"] == (Priority.NORMAL, agent_bytes + 512 * MIB)
    daemon.controller.update_session("web", BudgetRequest(), Priority.HIGH)
    assert promises["web"] == (Priority.HIGH, agent_bytes + 512 * MIB)
    await daemon.operator.KillCall(pb.KillCallRequest(call_id=call_id))
    await daemon.controller.settle()
    assert promises["web"] == (Priority.HIGH, agent_bytes)


async def test_a_breach_is_written_down_as_the_kernels_doing(daemon: Daemon) -> None:
    await daemon.open("web", memory=2 * GIB)
    call_id = await begun(daemon, "web", memory_bytes=GIB)
    assert daemon.host.listener is not None
    daemon.host.listener.memory_breached(MemoryBreach("web", call_id, "db", 40 * MIB, 8 * MIB, 0, 50_000))
    daemon.host.listener.memory_breached(MemoryBreach("web", call_id, "db", 40 * MIB, 8 * MIB, 0, 0))
    told = [event for event in daemon.history.noted if event.call_id == call_id][-2:]
    assert [(event.action, event.actor) for event in told] == [
        (Action.SLOWED, Actor.KERNEL),
        (Action.WARNED, Actor.KERNEL),
    ]
    assert dict(told[0].inputs)["for_session"] == "db" and dict(told[0].inputs)["hold_us"] == 50_000
    assert "db" not in told[0].reason


async def test_a_breach_of_a_call_that_has_ended_is_nobodys(daemon: Daemon) -> None:
    assert daemon.host.listener is not None
    before = len(daemon.history.noted)
    daemon.host.listener.memory_breached(MemoryBreach("web", "c-0", "db", 40 * MIB, 8 * MIB, 0, 50_000))
    assert len(daemon.history.noted) == before
