"""What the controller does later: timers by name and key, and tasks on its event loop."""

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

log = logging.getLogger("agentcgroup.controller")

# Looking must not take more than a quarter of a CPU, however many calls there are.
_DUTY: Final = 3


def pause_after_ms(began_s: float) -> float:
    """How long to leave a look be that began at `began_s` (time.thread_time) and ends now."""
    return (time.thread_time() - began_s) * 1000 * _DUTY


@enum.unique
class Timer(enum.StrEnum):
    """All timers there are, so that no two layers take the same name; the key says whose each is."""

    # Of a call.
    GRANT = "grant"
    STANDING = "standing"
    DEADLINE = "deadline"
    DEADLINE_NEAR = "deadline near"
    LADDER = "ladder"
    SAMPLE = "sample"
    WAIT = "wait"
    # Of a session.
    SESSION_LIMIT = "session limit"
    REFUSALS = "refusals"
    AGENT_MEMORY = "agent memory"
    IDLE = "idle"
    MISSED = "missed"
    # The only one of its kind; its key is "".
    PROTECTION_LOOK = "protection look"
    QUEUE_LOOK = "queue look"
    HOST_MEMORY = "host memory"
    DRAIN = "drain"


class Timers:
    def __init__(self) -> None:
        self._timers: dict[tuple[Timer, str], asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def _arm(self, what: Timer, key: str, delay_ms: float, action: Callable[[], None]) -> None:
        """Runs `action` in `delay_ms`, once; arming again replaces."""
        self._disarm(what, key)

        def fire() -> None:
            self._timers.pop((what, key), None)
            action()

        self._timers[what, key] = asyncio.get_running_loop().call_later(delay_ms / 1000, fire)

    def _is_armed(self, what: Timer, key: str) -> bool:
        return (what, key) in self._timers

    def _disarm(self, what: Timer, key: str) -> None:
        """One that is not armed is no error."""
        timer = self._timers.pop((what, key), None)
        if timer is not None:
            timer.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` as a task of the controller's; `settle` waits for all of them."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the controller failed", exc_info=task.exception())

    async def settle(self) -> None:
        """Waits until every task begun so far, and what those begin, has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
