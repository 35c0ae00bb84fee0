"""The word before a call's deadline: when, and what it says."""

from typing import Final

from agentcgroup.proto.quantity import format_duration

# The last tenth, but no more than an agent needs to think of something; less than it can read is no notice.
_NOTICE_PART: Final = 10
_MOST_NOTICE_MS: Final = 60_000
_LEAST_NOTICE_MS: Final = 200


def notice_ms(deadline_ms: int) -> int | None:
    """How long before its deadline a call is told; None: not at all."""
    notice = min(deadline_ms // _NOTICE_PART, _MOST_NOTICE_MS)
    return notice if notice >= _LEAST_NOTICE_MS else None


def word(call_id: str, deadline_ms: int, left_ms: int) -> tuple[str, str]:
    """Message and advice, `left_ms` before the deadline."""
    longer_s = -(-2 * deadline_ms // 1000)
    return (
        f"The call is stopped in {format_duration(left_ms)}, at its deadline of {format_duration(deadline_ms)}.",
        f"Give it longer now: `agentcg call set {call_id} --timeout {longer_s}s`; or let it end with what it has, and do a"
        " smaller part of the work per call next time.",
    )
