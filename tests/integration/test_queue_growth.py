"""Calls that run grow past those that wait, but not for ever: what is kept for one that has waited long is not theirs."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcgroup.daemon.model import Action, Decision, Intent, OnExceed, Reason, Rung
from agentcgroup.daemon.policy.queue import BYPASSES_MAX
from tests.integration.harness import MIB, Daemon, until


@pytest.fixture
async def daemon(run_dir: Path) -> AsyncIterator[Daemon]:
    """With a session of 1000 MiB for calls."""
    daemon = Daemon(run_dir)
    await daemon.start()
    await daemon.open("web", memory=1256 * MIB)
    yield daemon
    await daemon.stop()


def begun(daemon: Daemon, memory_mib: int, on_exceed: OnExceed | None = None) -> str:
    intent = Intent(memory_bytes=memory_mib * MIB, on_exceed=on_exceed)
    call_id = daemon.controller.declare("web", intent, wait_ms=0).call_id
    pid = daemon.process("web")
    daemon.controller.begin_pidfd("web", call_id, pid, os.pidfd_open(pid))
    return call_id


def wait_for(daemon: Daemon, memory_mib: int) -> None:
    """A call in the queue that later ones have passed as often as they may."""
    answer = daemon.controller.declare("web", Intent(memory_bytes=memory_mib * MIB))
    assert answer.decision is Decision.QUEUED
    for _ in range(BYPASSES_MAX):
        later = daemon.controller.declare("web", Intent(memory_bytes=MIB), wait_ms=0)
        assert later.decision is Decision.GRANTED
        daemon.controller.give_back("web", later.call_id)
    assert daemon.controller.declare("web", Intent(memory_bytes=MIB), wait_ms=0).decision is Decision.REFUSED


def grown(daemon: Daemon, call_id: str) -> list[Action]:
    actions = (Action.EXTENDED, Action.CLAMPED, Action.FROZEN)
    return [
        each.action for each in daemon.history.noted if each.call_id == call_id and each.action in actions
    ]


async def test_a_call_is_not_extended_into_what_is_kept_for_one_that_waits(daemon: Daemon) -> None:
    growing = begun(daemon, 100, OnExceed.EXTEND)
    begun(daemon, 500)
    wait_for(daemon, 600)
    await until(lambda: daemon.host.calls[growing].is_watched)
    daemon.host.use_memory(growing, 101 * MIB)
    await until(lambda: grown(daemon, growing) == [Action.CLAMPED])
    assert daemon.controller.rung(daemon.controller.call("web", growing)) is Rung.CLAMPED


async def test_nobody_is_given_what_is_kept_but_may_always_give_back(daemon: Daemon) -> None:
    running = begun(daemon, 300)
    begun(daemon, 300)
    wait_for(daemon, 600)
    refused = daemon.controller.adjust("web", running, Intent(memory_bytes=400 * MIB))
    assert (refused.decision, refused.reason) == (Decision.REFUSED, Reason.SESSION_MEMORY)
    smaller = daemon.controller.adjust("web", running, Intent(memory_bytes=50 * MIB))
    assert smaller.decision is Decision.GRANTED
    # 50 and 300 and 600: there is room for the one that waits.
    await until(lambda: not daemon.controller.calls_waiting)


async def test_who_grows_passes_those_who_wait_a_bounded_number_of_times(daemon: Daemon) -> None:
    growing = begun(daemon, 8)
    begun(daemon, 500)
    assert daemon.controller.declare("web", Intent(memory_bytes=600 * MIB)).decision is Decision.QUEUED
    answers = [
        daemon.controller.adjust("web", growing, Intent(memory_bytes=(9 + step) * MIB)).decision
        for step in range(BYPASSES_MAX + 2)
    ]
    assert answers == [Decision.GRANTED] * BYPASSES_MAX + [Decision.REFUSED] * 2


async def test_a_running_call_may_change_its_limits_while_the_host_is_drained(daemon: Daemon) -> None:
    running = begun(daemon, 100)
    daemon.controller.drain("maintenance", None)
    assert (
        daemon.controller.adjust("web", running, Intent(memory_bytes=200 * MIB)).decision is Decision.GRANTED
    )
