"""What a ruling is to a launcher: a packet's fields, and what the tool finds in its environment."""

from typing import Final

from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.model import Answer, CallLimits, Decision, ToolCall
from agentcgroup.daemon.policy import truth
from agentcgroup.proto.launch import Reply, Status

_STATUS_OF_DECISION: Final = {each: Status(each.value) for each in Decision}


def refusal(answer: Answer) -> Reply:
    return Reply(
        _STATUS_OF_DECISION[answer.decision],
        message=answer.message,
        suggestion=answer.suggestion,
        notices=answer.notices,
        reason=answer.reason or "",
    )


def grant(controller: Controller, call: ToolCall, answer: Answer) -> Reply:
    """The reply to who runs `call`, which need not have begun."""
    assert answer.limits is not None
    around = controller.surroundings(call)
    tells_tools = controller.config.call.environment == "truth"
    return Reply(
        _STATUS_OF_DECISION[answer.decision],
        call_id=answer.call_id,
        message=answer.message,
        suggestion=answer.suggestion,
        notices=answer.notices,
        reason=answer.reason or "",
        environment=environment(call.session, answer.call_id, answer.limits, around),
        defaults=truth.defaults(answer.limits, around) if tells_tools else (),
    )


def environment(
    session: str, call_id: str, limits: CallLimits, around: truth.Surroundings
) -> tuple[tuple[str, str], ...]:
    """What the tool finds in its environment about itself; what is not limited at any level is not there."""
    known = (
        ("AGENTCGROUP_CALL_ID", call_id),
        ("AGENTCGROUP_SESSION", session),
        ("AGENTCGROUP_MEMORY_BYTES", limits.memory_bytes),
        ("AGENTCGROUP_MEMORY_MAX_BYTES", truth.memory_max_bytes(limits, around)),
        ("AGENTCGROUP_CPU_MILLI", truth.cpu_milli(limits, around)),
        ("AGENTCGROUP_PIDS_MAX", limits.pids_max),
    )
    return tuple((name, str(value)) for name, value in known if value is not None)
