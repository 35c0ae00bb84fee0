"""An agent runtime and the memory set aside for it in its session (`--agent-memory`): when to warn, and the words.

The share is a promise, no limit: nothing stops a runtime that outgrows it. It takes what its calls were granted, until the
session is full; then the kernel ends a call, or the runtime when no call is left.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from agentcgroup.daemon.model import Level
from agentcgroup.proto.quantity import format_size

# Sixteenths, as of a call's own limit; once told, below nine tenths it is calm again.
_NEAR_SIXTEENTHS: Final = 15
_CALM_TENTHS: Final = 9


class Stage(IntEnum):
    CALM = 0
    NEAR = 1  # of its share
    OVER = 2
    FULL = 3  # over, and the session is about to be full


@dataclass(frozen=True, slots=True)
class Situation:
    """`held_bytes`: what reclaim cannot take of the runtime's memory, `calls_held_bytes` of its calls'."""

    session: str
    held_bytes: int
    share_bytes: int
    calls_held_bytes: int
    session_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.session_bytes - self.held_bytes - self.calls_held_bytes)


def stage(at: Situation, told: Stage) -> Stage:
    """Where the runtime stands; `told` is what was told last."""
    if at.held_bytes > at.share_bytes:
        return Stage.FULL if 16 * at.left_bytes <= at.session_bytes else Stage.OVER
    if 16 * at.held_bytes >= _NEAR_SIXTEENTHS * at.share_bytes:
        return Stage.NEAR
    is_calm = told is Stage.CALM or 10 * at.held_bytes < _CALM_TENTHS * at.share_bytes
    return Stage.CALM if is_calm else Stage.NEAR


def word(at: Situation, where: Stage) -> tuple[Level, str, str]:
    """Level, message and advice to the agent."""
    held, share = format_size(at.held_bytes), format_size(at.share_bytes)
    if where is Stage.NEAR:
        message = (
            f"The agent's own runtime holds {held} of the {share} set aside for it; beyond that it takes what its"
            " calls were granted."
        )
    else:
        over = format_size(at.held_bytes - at.share_bytes)
        message = (
            f"The agent's own runtime holds {held}, {over} more than the {share} set aside for it, and its calls have that"
            " much less."
        )
    if where is Stage.FULL:
        message += (
            f" The session has {format_size(at.left_bytes)} left of {format_size(at.session_bytes)}; when it is full, the"
            " kernel ends a call, or the runtime when no call is left."
        )
    more = f"agentcg session set {at.session} --agent-memory {2 * at.share_bytes >> 20}M"
    advice = (
        "Let the runtime hold less (begin a new conversation, or restart it), or ask the operator to set more aside for"
        f" it (`{more}`)."
    )
    return Level.CRITICAL if where is Stage.FULL else Level.TIGHT, message, advice
