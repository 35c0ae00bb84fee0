"""Declaring an intent, and waiting in the daemon's queue when there is no room for it yet."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from agentcgroup.client import operations
from agentcgroup.client.channels import AsyncChannel, SyncChannel
from agentcgroup.client.values import Answer, Decision, Intent

# Called with where the call stands, at once when it is queued and whenever that changes.
OnQueued = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """An intent and how long it may wait; `wait_ms` None: as the daemon is configured."""

    intent: Intent
    parent_call_id: str = ""
    wait_ms: int | None = None
    on_queued: OnQueued | None = None

    def operation(self) -> operations.Operation[Answer]:
        return operations.declare(self.intent, self.parent_call_id, self.wait_ms)

    def is_final(self, answer: Answer) -> bool:
        """Whether `answer` is the last one; one that is not is told."""
        if answer.decision is not Decision.QUEUED:
            return True
        if self.on_queued is not None:
            self.on_queued(answer)
        return False


def declare(channel: SyncChannel, wish: Wish) -> Answer:
    """The final answer: granted, trimmed or refused. An exception while it waits gives the place in the queue up."""
    answer = channel.perform(wish.operation())
    if wish.is_final(answer):
        return answer
    told = answer
    with contextlib.closing(channel.stream(operations.watch_answer(answer.call_id))) as answers:
        for answer in answers:
            # The stream begins with what was told already, unless that has changed.
            if answer != told and wish.is_final(answer):
                break
    return answer


async def declare_async(channel: AsyncChannel, wish: Wish) -> Answer:
    """As `declare`; cancelling the task gives the place up, too."""
    answer = await channel.perform(wish.operation())
    if wish.is_final(answer):
        return answer
    told = answer
    async with contextlib.aclosing(channel.stream(operations.watch_answer(answer.call_id))) as answers:
        async for answer in answers:
            # The stream begins with what was told already, unless that has changed.
            if answer != told and wish.is_final(answer):
                break
    return answer
