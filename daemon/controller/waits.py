"""Who waits for room, and what each is told meanwhile.

A call that waits is a ToolCall in state QUEUED without a reservation.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Final

from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.rooms import Rooms
from agentcgroup.daemon.model import Answer, Decision, QueuePlace, Reason, SessionState, Suggestion, ToolCall
from agentcgroup.daemon.policy import waiting

log = logging.getLogger("agentcgroup.controller")

# While somebody waits: how often use is measured, waits are estimated, and who waits is told.
LOOK_EVERY_MS: Final = 1000

Listener = Callable[[Answer], None]


@dataclass(slots=True)
class Wait:
    """One call's place in the queue."""

    call: ToolCall
    arrived: int
    since_s: float
    deadline_ms: int
    reason: Reason | None
    learned: Suggestion | None = None
    stands: bool = False  # it was told that it waits; before that it is being ruled on
    passed: int = 0
    told_s: float = float("-inf")
    told: str = ""
    listeners: list[Listener] = field(default_factory=list)


class Waits(Rooms):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._waits: dict[str, Wait] = {}

    @property
    def calls_waiting(self) -> int:
        """How many calls wait for room; while any does, none is granted without the queue."""
        return len(self._waits)

    async def answers(self, session: str, call_id: str) -> AsyncGenerator[Answer, None]:
        """The call's answer now and, while it waits, whenever it changes; the last one is final.

        Close the generator (contextlib.aclosing): whoever was the last to listen and stops gives the place up.
        """
        call = self._ledger.call(session, call_id)
        latest = self.answer_to(call)
        if call.id not in self._waits:
            yield latest
            return
        changed = asyncio.Event()

        def listen(answer: Answer) -> None:
            nonlocal latest
            latest = answer
            changed.set()

        self.follow(call, listen)
        try:
            while True:
                answer = latest
                changed.clear()
                yield answer
                if answer.decision is not Decision.QUEUED:
                    return
                await changed.wait()
        finally:
            self.unfollow(call, listen)

    async def final_answer(self, session: str, call_id: str) -> Answer:
        """The last of `answers`. Cancelled before that, the call leaves the queue."""
        async with contextlib.aclosing(self.answers(session, call_id)) as answers:
            final = [answer async for answer in answers][-1]
        return final

    def answer_to(self, call: ToolCall) -> Answer:
        """What `call` is answered now, as far as it still matters."""
        if call.refusal is not None:
            return call.refusal
        wait = self._waits.get(call.id)
        if wait is not None:
            return self._queued(wait)
        return Answer(
            call.decision,
            "As declared.",
            call_id=call.id,
            limits=call.limits,
            expires_at_ns=call.expires_at_ns,
        )

    def follow(self, call: ToolCall, listener: Listener) -> None:
        """Calls `listener` with every new answer to a call that waits, the last time with the final one."""
        self._waits[call.id].listeners.append(listener)

    def unfollow(self, call: ToolCall, listener: Listener) -> None:
        """Stops calling `listener`; a call that waits and is followed by nobody any more leaves the queue."""
        wait = self._waits.get(call.id)
        if wait is not None and listener in wait.listeners:
            wait.listeners.remove(listener)
            if not wait.listeners:
                self._close_unbegun(call)

    def give_back(self, session: str, call_id: str) -> None:
        """Gives up a call's place in the queue, or a grant that was not begun; nothing when it runs or has ended."""
        call = self._ledger.call(session, call_id)
        if call.is_live and call.started_at_ns is None:
            self._close_unbegun(call)

    # ---- telling, while they wait

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    def _queued(self, wait: Wait) -> Answer:
        call = wait.call
        return Answer(
            Decision.QUEUED,
            self._queued_words(wait),
            call_id=call.id,
            reason=wait.reason,
            queue=call.queue,
            suggestion=""
            if self._is_frozen(call)
            else "Wait for its turn, or declare less memory to start sooner.",
        )

    def _is_frozen(self, call: ToolCall) -> bool:
        return self._ledger.session(call.session).state is SessionState.FROZEN

    def _queued_words(self, wait: Wait) -> str:
        place = wait.call.queue or QueuePlace(len(self._waits), wait.deadline_ms)
        if self._is_frozen(wait.call):
            return waiting.queued_frozen(place.position, len(self._waits), place.deadline_ms)
        return waiting.queued(place.position, len(self._waits), place.estimated_wait_ms, place.deadline_ms)

    def _tell_place(self, wait: Wait) -> None:
        now_s = self._now_s()
        if not wait.listeners or now_s - wait.told_s < LOOK_EVERY_MS / 1000:
            return
        answer = self._queued(wait)
        if answer.message != wait.told:
            wait.told_s, wait.told = now_s, answer.message
            self._notify(wait.listeners, answer)

    @staticmethod
    def _notify(listeners: list[Listener], answer: Answer) -> None:
        for listener in list(listeners):
            try:
                listener(answer)
            except Exception:
                log.exception("who waits for call %s could not be told", answer.call_id)
