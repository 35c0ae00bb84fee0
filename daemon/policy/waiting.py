"""What a call that waits for room is told: where it stands, how long it is likely to be, when it is refused."""

from typing import Final

from agentcgroup.proto.quantity import format_duration

# Below this nobody needs a figure; above it, figures in steps, so that they are not new every second.
_SOON_MS: Final = 10_000
_STEP_MS: Final = 30_000


def queued(position: int, waiting: int, estimated_wait_ms: int | None, deadline_ms: int) -> str:
    if estimated_wait_ms is None:
        likely = "nobody knows for how long"
    elif estimated_wait_ms < _SOON_MS:
        likely = "likely for a few seconds"
    else:
        steps = -(-estimated_wait_ms // _STEP_MS)
        likely = f"likely for less than {format_duration(steps * _STEP_MS)}"
    return (
        f"Queued for room, place {position} of {waiting}, {likely}; "
        f"refused when it has waited {format_duration(deadline_ms)}."
    )


def queued_frozen(position: int, waiting: int, deadline_ms: int) -> str:
    return (
        f"Queued, place {position} of {waiting}: the operator has frozen the session, and nothing begins in it before it is "
        f"thawed; refused when it has waited {format_duration(deadline_ms)}."
    )


def full(waiting: int, is_session: bool) -> str:
    whose = "this session" if is_session else "this host"
    return f"Refused: there is no room now, and {waiting} calls of {whose} wait for it already."


def gave_up(refusal: str, waited_ms: int) -> str:
    """`refusal` is what the call would be told now if it did not want to wait; "" when others came before it to the end."""
    why = refusal or "Refused: calls before it took all the room."
    return f"{why} It waited {format_duration(waited_ms)} for its turn."
