"""The words for a call that the kernel's guard has found growing into what another session was promised."""

from agentcgroup.daemon.model import MemoryBreach
from agentcgroup.daemon.policy.grounds import Grounds
from agentcgroup.proto.quantity import format_size


def words(breach: MemoryBreach) -> str:
    """What is done and why, as a sentence without the other session's name: an agent need not know of it."""
    cause = (
        "which a session of higher priority waits for"
        if breach.stall_us and not breach.missing_bytes
        else "which a session of higher priority was promised"
    )
    done = "The kernel slows it" if breach.hold_us else "It is not slowed by the kernel"
    return f"The call grows by {format_size(breach.rate_bytes_per_s)} a second into memory {cause}. {done}."


def advice(breach: MemoryBreach) -> str:
    """What the agent can do."""
    return (
        "It goes on at full speed when it stops growing, or when there is room again: "
        "let it take less memory at a time, or run it later."
    )


def grounds(breach: MemoryBreach) -> Grounds:
    """The kernel's numbers, for the decision log."""
    return {
        "for_session": breach.for_session,
        "growth_bytes_per_s": breach.rate_bytes_per_s,
        "missing_bytes": breach.missing_bytes,
        "stall_us": breach.stall_us,
        "hold_us": breach.hold_us,
    }
