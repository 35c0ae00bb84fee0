"""Shortages that nobody acts on: of an agent runtime's share, and of the host where sessions are not protected."""

import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcgroup.daemon.config import Config, DaemonConfig, ProtectionConfig
from agentcgroup.daemon.controller import outer_limits
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import Action, ExitStatus
from agentcgroup.proto.v1 import types_pb2 as t
from agentcgroup.proto.words import Limit
from tests.fake_memory import FakeUse
from tests.fakes import FakeHost
from tests.integration.harness import MIB, Daemon, until
from tests.integration.test_ladder import Stream, begin, hello


@pytest.fixture
async def web(daemon: Daemon) -> Daemon:
    """1256 MiB, of which 256 are the agent's."""
    await daemon.open("web", memory=1256 * MIB)
    return daemon


async def end(daemon: Daemon, call_id: str, stream: Stream) -> None:
    pid = daemon.controller.call("web", call_id).pid
    daemon.host.statuses[pid] = ExitStatus(exit_code=0)
    os.kill(pid, signal.SIGKILL)
    await stream.until(t.FEEDBACK_KIND_ENDED)


def told(stream: Stream) -> list[t.Feedback]:
    return [each for each in stream.heard if each.kind == t.FEEDBACK_KIND_WARNING]


async def test_a_runtime_beyond_its_share_is_told_to_its_agent_when_a_call_has_ended(web: Daemon) -> None:
    stream = await hello(web)
    web.host.memory.agents["web"] = 300 * MIB
    await end(web, await begin(web), stream)
    (warning,) = told(stream)
    assert not warning.call_id and warning.level == t.LEVEL_TIGHT
    assert "holds 300 MiB, 44 MiB more than the 256 MiB set aside" in warning.message
    assert "agentcg session set web --agent-memory 512M" in warning.advice
    (event,) = [each for each in web.history.noted if each.action is Action.WARNED]
    assert (event.session, event.call_id) == ("web", "")
    assert dict(event.inputs)["agent_held_bytes"] == 300 * MIB
    await end(web, await begin(web), stream)
    assert len(told(stream)) == 1 == web.controller.counters.warnings[Limit.AGENT_MEMORY]


async def test_a_runtime_within_its_share_is_no_news_and_hardly_looked_at(
    web: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No machine is too slow for that.
    monkeypatch.setattr(outer_limits, "QUIET_MS", 3_600_000)
    stream = await hello(web)
    web.host.memory.agents["web"] = 200 * MIB
    before = web.host.memory.reads
    for _ in range(3):
        await end(web, await begin(web), stream)
    assert not told(stream) and web.host.memory.reads == before + 1, "once in a while"


async def test_a_runtime_that_makes_its_session_full_is_told_without_any_call_having_ended(
    web: Daemon,
) -> None:
    stream = await hello(web)
    call_id = await begin(web)
    web.host.memory.agents["web"] = 500 * MIB
    web.host.memory.meet_limit("web")
    assert "500 MiB, 244 MiB more" in (await stream.until(t.FEEDBACK_KIND_WARNING)).message
    await until(lambda: "web" in web.host.memory.awaited)
    web.host.use_memory(call_id, 700 * MIB)
    web.host.memory.meet_limit("web")
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert warning.level == t.LEVEL_CRITICAL and "56 MiB left of 1.23 GiB" in warning.message


async def test_at_its_limit_for_the_sake_of_its_calls_the_runtime_is_not_blamed(web: Daemon) -> None:
    stream = await hello(web)
    web.host.memory.agents["web"] = 100 * MIB
    web.host.memory.meet_limit("web")
    await end(web, await begin(web), stream)
    assert not told(stream)


# ---- the host, where nobody is protected


@pytest.fixture
async def unprotected(run_dir: Path) -> AsyncIterator[Daemon]:
    config = Config(daemon=DaemonConfig(run_dir=str(run_dir)), protection=ProtectionConfig(sessions="off"))
    host = FakeHost(memory_capacity_bytes=1500 * MIB)
    host.memory.capacity_bytes = 1500 * MIB
    served = Daemon(run_dir, config, host)
    await served.start()
    await served.open("web", memory=1256 * MIB)
    await served.open("other", memory=1256 * MIB)
    try:
        yield served
    finally:
        await served.stop()


async def test_a_shortage_of_the_host_is_told_where_nobody_acts_on_it(
    unprotected: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    memory = unprotected.host.memory
    stream = await hello(unprotected)
    call_id = await begin(unprotected)
    memory.agents["other"] = 450 * MIB
    memory.uses[call_id] = FakeUse(900 * MIB)
    assert memory.is_stall_watched
    memory.meet_limit("")
    await until(lambda: "" in memory.awaited)
    assert not told(stream), "150 MiB are left"
    memory.uses[call_id] = FakeUse(1000 * MIB)
    await until(lambda: unprotected.controller._is_armed(Timer.HOST_MEMORY, "") is False)
    memory.meet_limit("")
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert (
        warning.call_id == call_id and "All sessions of this host hold 1.42 GiB together" in warning.message
    )
    assert "would be the one" in warning.message
    (event,) = [
        each for each in unprotected.history.noted if each.action is Action.WARNED and not each.session
    ]
    assert dict(event.inputs) == {"room_bytes": 50 * MIB, "capacity_bytes": 1500 * MIB}
    (line,) = [
        each
        for each in caplog.records
        if each.levelno == logging.WARNING and "protection.sessions" in each.message
    ]
    assert "50 MiB left of the 1.46 GiB" in line.message and "restart agentcgroupd" in line.message
    assert unprotected.controller.counters.warnings[Limit.HOST_MEMORY] == 1
    assert not unprotected.controller.counters.protections, "nobody is held back"


async def test_where_sessions_are_protected_the_host_is_looked_at_by_the_protection_alone(
    web: Daemon,
) -> None:
    assert not web.host.memory.is_stall_watched and "" not in web.host.memory.awaited
