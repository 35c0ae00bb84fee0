"""What agents and operators read while nothing new begins: the host is being emptied, or a session is frozen."""

from agentcgroup.daemon.model import Drain
from agentcgroup.proto.quantity import format_duration


def drained(drain: Drain, now_ns: int) -> tuple[str, str]:
    """Message and advice."""
    why = f": {drain.reason}" if drain.reason else ""
    left_ms = None if drain.deadline_at_ns is None else max(0, drain.deadline_at_ns - now_ns) // 1_000_000
    when = "" if left_ms is None else f" for {format_duration(left_ms)}, then it is killed"
    return (
        f"The operator is emptying this host{why}. What runs may go on{when}; nothing new begins.",
        "Bring what you are doing to an end and save it where it outlives this host.",
    )


def frozen(reason: str = "") -> str:
    return (
        f"The operator froze the session{': ' + reason if reason else ''}; its calls stand still, nothing is lost,"
        " and what is declared now waits until it is thawed."
    )
