"""A daemon learns from calls that end and offers what it knows, over real gRPC."""

import os

import msgspec

from agentcgroup.daemon.model import BudgetRequest, Intent, Usage
from agentcgroup.proto.v1 import agent_pb2, operator_pb2 as pb, types_pb2
from tests.integration.harness import GIB, MIB, Daemon

PYTEST = ["uv", "run", "pytest", "-q"]
S = 1_000_000_000


def begun(daemon: Daemon, session: str, declared: Intent) -> str:
    """A call of `session` that runs; its id."""
    call_id = daemon.controller.declare(session, declared).call_id
    pid = daemon.process(session)
    daemon.controller.begin_pidfd(session, call_id, pid, os.pidfd_open(pid))
    return call_id


async def ran(
    daemon: Daemon, session: str, peak_bytes: int, oom_kills: int = 0, **limits: int
) -> types_pb2.Answer:
    """A call of `session` that used `peak_bytes`, from declaration to report; what it was answered."""
    agent = daemon.agent(session)
    process = types_pb2.ProcessRef(pid=daemon.process(session))
    declared = types_pb2.Intent(command=PYTEST)
    for name, value in limits.items():
        setattr(declared, name, value)
    begun = await agent.BeginCall(agent_pb2.BeginCallRequest(intent=declared, process=process))
    used = Usage(memory_peak_bytes=peak_bytes, cpu_usage_us=1000, oom_kill_events=oom_kills)
    daemon.host.calls[begun.call.id].usage = used
    await agent.FinishCall(agent_pb2.FinishCallRequest(call_id=begun.call.id, exit_code=0))
    return begun.answer


async def asked(daemon: Daemon, project: str) -> types_pb2.Suggestion:
    request = pb.OperatorServiceGetSuggestionRequest(command=["pytest", "tests/a.py"], project=project)
    return (await daemon.operator.GetSuggestion(request)).suggestion


async def open_project(daemon: Daemon, name: str) -> None:
    budget = BudgetRequest(memory_max_bytes=4 * GIB, agent_memory_bytes=256 * MIB)
    await daemon.controller.open_session(name, budget, labels=(("project", "django"),))


async def test_a_call_that_declares_nothing_gets_what_runs_before_it_needed(daemon: Daemon) -> None:
    await open_project(daemon, "web")
    first = await ran(daemon, "web", 500 * MIB)
    assert (first.granted.memory_bytes, first.learned_applied) == (256 * MIB, False)
    assert not first.HasField("learned")
    for _ in range(3):
        answer = await ran(daemon, "web", 500 * MIB)
    assert answer.learned_applied
    assert answer.granted.memory_bytes == answer.learned.memory_bytes == 600 * MIB
    assert "pytest ran 3 times in project django" in answer.learned.reason
    granted = [each for each in daemon.history.noted if each.action == "granted"]
    assert dict(granted[-1].inputs)["learned_memory_bytes"] == 600 * MIB
    agent = daemon.agent("web")
    found = await agent.GetSuggestion(agent_pb2.GetSuggestionRequest(command=PYTEST))
    assert found.suggestion.memory_bytes == 600 * MIB
    assert not (await asked(daemon, "flask")).HasField("memory_bytes")


async def test_a_declaration_goes_before_what_was_learned_and_is_told_when_it_is_too_small(
    daemon: Daemon,
) -> None:
    await open_project(daemon, "web")
    for _ in range(3):
        await ran(daemon, "web", 300 * MIB, oom_kills=1, memory_max_bytes=300 * MIB)
    answer = await ran(daemon, "web", 300 * MIB, memory_bytes=100 * MIB, memory_max_bytes=200 * MIB)
    assert (answer.granted.memory_bytes, answer.learned_applied) == (100 * MIB, False)
    assert answer.learned.memory_is_at_least
    (notice,) = answer.notices
    assert "It is held at 200 MiB; declare --memory 450M, or make it smaller." in notice
    answer = await ran(daemon, "web", 300 * MIB, memory_bytes=100 * MIB)
    assert list(answer.notices) == []


async def test_a_new_daemon_knows_what_the_old_one_learned(daemon: Daemon) -> None:
    await open_project(daemon, "web")
    for _ in range(3):
        await ran(daemon, "web", 500 * MIB)
    before = await asked(daemon, "django")
    entries = list(daemon.history.entries)
    assert [each.project for each in entries] == ["django"] * 3
    heir = type(daemon)(daemon.run_dir, daemon.config)
    assert heir.controller.learn_from(entries) == 3
    after = heir.controller.suggestion(["pytest"], "django", None)
    assert (after.memory_bytes, after.reason) == (before.memory_bytes, before.reason)


async def test_a_command_that_is_known_only_when_it_begins_gets_its_figure_then(daemon: Daemon) -> None:
    await open_project(daemon, "web")
    for _ in range(3):
        await ran(daemon, "web", 500 * MIB)
    controller = daemon.controller
    answer = controller.declare("web", Intent())
    assert answer.limits is not None and answer.limits.memory_bytes == 256 * MIB
    call = controller.redeem("web", controller.ticket("web", answer.call_id), PYTEST)
    assert call.limits.memory_bytes == controller.session("web").memory_reserved_bytes == 600 * MIB
    assert daemon.history.noted[-1].action == "relimited"
    # There is no more room than there is.
    controller.declare("web", Intent(memory_bytes=4 * GIB - 256 * MIB - 600 * MIB - 300 * MIB))
    answer = controller.declare("web", Intent())
    call = controller.redeem("web", controller.ticket("web", answer.call_id), PYTEST)
    assert call.limits.memory_bytes == 300 * MIB


async def test_a_wait_is_estimated_from_how_long_such_calls_took(daemon: Daemon) -> None:
    await open_project(daemon, "web")
    declared = Intent(memory_bytes=3 * GIB, command=tuple(PYTEST))
    for _ in range(3):
        call_id = begun(daemon, "web", declared)
        daemon.clock.time_ns += 100 * S
        await daemon.controller.finish("web", call_id, 0)
    begun(daemon, "web", declared)
    daemon.clock.time_ns += 10 * S
    queued = daemon.controller.declare("web", declared, wait_ms=600_000)
    assert queued.queue is not None and queued.queue.estimated_wait_ms is not None
    assert 80_000 <= queued.queue.estimated_wait_ms <= 90_000 and "less than 1 min 30 s" in queued.message


async def test_a_reload_changes_the_figures_of_what_was_learned_before(daemon: Daemon) -> None:
    await open_project(daemon, "web")
    for _ in range(3):
        await ran(daemon, "web", 500 * MIB)
    assert (await asked(daemon, "django")).memory_bytes == 600 * MIB
    rules = msgspec.structs.replace(daemon.config.suggest, headroom=2.0)
    daemon.file = msgspec.structs.replace(daemon.config, suggest=rules)
    response = await daemon.operator.ReloadConfiguration(pb.ReloadConfigurationRequest())
    assert [(each.key, each.is_live) for each in response.changes] == [("suggest.headroom", True)]
    assert (await asked(daemon, "django")).memory_bytes == 1000 * MIB
    assert (await ran(daemon, "web", 500 * MIB)).granted.memory_bytes == 1000 * MIB
