"""What the agent is told about a step on the ladder: the fact with its numbers, then what to do; see policy/advice.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from agentcgroup.daemon.model import Action, FeedbackKind, Level
from agentcgroup.daemon.policy.advice import memory_to_ask_bytes
from agentcgroup.daemon.policy.thrift import need_less
from agentcgroup.proto.quantity import format_duration, format_size

# Below this a warning is not tight but critical: an agent needs seconds to react.
_CRITICAL_MS = 10_000


@dataclass(frozen=True, slots=True)
class Situation:
    """The numbers behind a step. `grantable_bytes`: what the call could have in all if it asked now."""

    call_id: str
    command: Sequence[str]
    reserved_bytes: int
    max_bytes: int | None
    held_bytes: int | None
    growth_bytes_per_s: int | None
    time_to_limit_ms: int | None
    deadline_in_ms: int | None
    grantable_bytes: int
    reason: str

    @property
    def held(self) -> str:
        return format_size(self.held_bytes) if self.held_bytes is not None else "more"

    @property
    def deadline(self) -> str:
        return format_duration(self.deadline_in_ms or 0)


@dataclass(frozen=True, slots=True)
class Words:
    kind: FeedbackKind
    level: Level
    message: str
    advice: str = ""
    memory_to_ask_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """A limit that several calls share, and how near it is. `whose`: begins the sentence, as in "The calls of ..."."""

    whose: str
    held_bytes: int
    limit_bytes: int
    time_to_limit_ms: int | None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _growth(at: Situation) -> str:
    if at.time_to_limit_ms is None or at.growth_bytes_per_s is None:
        return ""
    rate, left = format_size(at.growth_bytes_per_s), format_duration(at.time_to_limit_ms)
    return f" It grows by {rate} a second: at this rate it is there in {left}."


def _advice(at: Situation, option: str, ask_bytes: int | None) -> str:
    less = need_less(at.command)
    if ask_bytes is None:
        return f"No more can be granted now. {_end_another(less)}"
    # An option that only raises the reservation must not exceed the maximum, which then rises with it.
    return f"Ask for more now: `agentcg call set {at.call_id} {option} {ask_bytes >> 20}M`; or next time: {less}."


def _end_another(less: str) -> str:
    return f"{_capital(less)}, or end another call first (`agentcg call tree` shows them, `agentcg call kill ID` ends one)."


def _level(time_to_limit_ms: int | None) -> Level:
    is_close = time_to_limit_ms is not None and time_to_limit_ms < _CRITICAL_MS
    return Level.CRITICAL if is_close else Level.TIGHT


def word_shared(
    at: Shared, command: Sequence[str], held_bytes: int, growth_bytes_per_s: int | None, *, is_likely: bool
) -> Words:
    """To a call that holds `held_bytes` of what is shared, because it grows, or because it would be the one."""
    message = (
        f"{at.whose} hold {format_size(at.held_bytes)} together, and one of them is stopped at"
        f" {format_size(at.limit_bytes)}."
    )
    if at.time_to_limit_ms is not None:
        message += f" At the present growth that is in {format_duration(at.time_to_limit_ms)}."
    held = f"This call holds {format_size(held_bytes)}"
    if growth_bytes_per_s is not None and growth_bytes_per_s > 0:
        held += f" and grows by {format_size(growth_bytes_per_s)} a second"
    message += f" {held}{', and would be the one' if is_likely else ''}."
    return Words(
        FeedbackKind.WARNING, _level(at.time_to_limit_ms), message, _end_another(need_less(command))
    )


def word(action: Action, at: Situation) -> Words | None:
    """The words for one step; None: not the agent's business."""
    most = format_size(at.max_bytes) if at.max_bytes is not None else "its limit"
    declared = format_size(at.reserved_bytes)
    match action:
        case Action.WARNED:
            ask = memory_to_ask_bytes(at.max_bytes, at.grantable_bytes)
            return Words(
                FeedbackKind.WARNING,
                _level(at.time_to_limit_ms),
                f"The call holds {at.held} and is stopped at {most}.{_growth(at)}",
                _advice(at, "--memory-max", ask),
                ask,
            )
        case Action.THROTTLED:
            ask = memory_to_ask_bytes(at.reserved_bytes, at.grantable_bytes)
            return Words(
                FeedbackKind.THROTTLED,
                Level.CRITICAL,
                f"The call holds {at.held}, more than the {declared} it declared, and is being slowed down; it is stopped "
                f"in {at.deadline} if it stays there.",
                _advice(at, "--memory", ask),
                ask,
            )
        case Action.CLAMPED:
            return Words(
                FeedbackKind.THROTTLED,
                Level.CRITICAL,
                f"The call holds {at.held} and has {declared} reserved; session and host have no room to extend it, so it "
                f"is being slowed down, for {at.deadline} at most.",
                f"End or shrink another call (`agentcg call tree` shows them, `agentcg call kill ID` ends one), and it goes "
                f"on by itself; next time: {need_less(at.command)}.",
            )
        case Action.EXTENDED:
            return Words(
                FeedbackKind.ADJUSTED,
                Level.TIGHT,
                f"Extended to {declared}: the call wanted more than it had declared, and there was room.",
                f"Declare --memory {at.reserved_bytes >> 20}M next time.",
                at.reserved_bytes,
            )
        case Action.FROZEN:
            return Words(
                FeedbackKind.FROZEN,
                Level.CRITICAL,
                f"Frozen at {at.held}: there is no room to extend the call, and {at.reason}. Nothing is lost; it goes on "
                f"when there is room, and is stopped in {at.deadline} if none comes.",
                f"End or shrink another call (`agentcg call tree` shows them, `agentcg call kill ID` ends one), and it goes "
                f"on by itself; or end this one and {need_less(at.command)}.",
            )
        case Action.THAWED:
            return Words(FeedbackKind.THAWED, Level.TIGHT, f"Thawed: {at.reason}. The call goes on.")
        case Action.RELEASED:
            return Words(FeedbackKind.RELEASED, Level.AMPLE, f"No longer held back: {at.reason}.")
        case _:
            return None
