"""A call that several have reason to freeze goes on when the last of them lets go."""

import os

import pytest

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import CallState, FreezeCause, Intent, ToolCall
from tests.integration.harness import Daemon


def running_call(daemon: Daemon) -> ToolCall:
    answer = daemon.controller.declare("s", Intent())
    pid = daemon.process("s")
    return daemon.controller.begin_pidfd("s", answer.call_id, pid, os.pidfd_open(pid))


async def test_a_call_goes_on_when_its_last_cause_is_taken_back(daemon: Daemon) -> None:
    await daemon.open("s")
    call = running_call(daemon)
    controller, machine = daemon.controller, daemon.host.calls[call.id]
    controller.freeze_call(call.id, "a look")
    assert controller._freeze(call, FreezeCause.PROTECTION)
    assert not controller._freeze(call, FreezeCause.PROTECTION)
    assert daemon.host.done["freeze_call"] == 1

    controller.thaw_call(call.id)
    assert machine.frozen and call.state is CallState.FROZEN
    assert not controller._thaw(call, FreezeCause.LADDER)
    assert controller._thaw(call, FreezeCause.PROTECTION)
    assert not machine.frozen and call.state is CallState.RUNNING and not call.frozen_by


async def test_a_cause_does_not_stand_when_the_kernel_refuses(daemon: Daemon) -> None:
    await daemon.open("s")
    call = running_call(daemon)
    daemon.host.failures["freeze_call"] = RequestError(Kind.HOST, "no")
    with pytest.raises(RequestError):
        daemon.controller.freeze_call(call.id, "")
    assert not call.frozen_by and call.state is CallState.RUNNING


async def test_taking_back_a_cause_does_not_bring_an_ending_call_back(daemon: Daemon) -> None:
    await daemon.open("s")
    call = running_call(daemon)
    daemon.controller.freeze_call(call.id, "")
    report = await daemon.controller.kill_call(call.id, "")
    daemon.controller._thaw(call, FreezeCause.OPERATOR)
    assert call.state is CallState.ENDED and report.call_id == call.id
