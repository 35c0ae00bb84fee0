"""What the agent is told about a call that is held back for others, or goes on: what happens, and what it can do."""

from agentcgroup.daemon.model import Action, FeedbackKind, Level
from agentcgroup.daemon.policy.ladder_words import Words
from agentcgroup.daemon.policy.protection import Step
from agentcgroup.proto.quantity import format_size


def word_step(step: Step, freeze_limit_ms: int, *, was_frozen: bool) -> Words:
    """Of SLOWED, FROZEN and RELEASED; who is killed hears of it in the report."""
    advice = (
        f"Wait; or release memory, or run less at a time: {format_size(step.call.usage_bytes)} are in use and"
        f" {format_size(step.call.promised_bytes)} were promised."
    )
    match step.action:
        case Action.FROZEN:
            words = f"Frozen for at most {freeze_limit_ms / 1000:g} s, nothing is lost. {step.reason}"
            return Words(FeedbackKind.FROZEN, Level.CRITICAL, words, advice)
        case Action.SLOWED:
            kind = FeedbackKind.THAWED if was_frozen else FeedbackKind.THROTTLED
            return Words(kind, Level.TIGHT, f"Slowed down where it takes more memory. {step.reason}", advice)
        case _:
            kind = FeedbackKind.THAWED if was_frozen else FeedbackKind.RELEASED
            return Words(kind, Level.AMPLE, f"Goes on. {step.reason}")
