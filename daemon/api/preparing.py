"""Calls prepared for a session's launchers: what was asked for is asked for again, so the next of its kind is made ready.

The reply is worded ahead, too; what is left for the door's thread is in agentcgroup.daemon.door. Everything here is off
the path of any launcher.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from agentcgroup.daemon.api.replies import grant
from agentcgroup.daemon.controller import MOST_STANDING, Controller
from agentcgroup.daemon.counters import Door
from agentcgroup.daemon.door.native import Began, NativeDoor
from agentcgroup.daemon.model import Answer, Intent, ToolCall
from agentcgroup.daemon.ports import Process
from agentcgroup.proto.launch import encode_reply, split_request

log = logging.getLogger("agentcgroup.api")

# After a prepared call has begun, the tool starts first: on a small host the next preparation would take a CPU from it.
_TOOL_FIRST_S: Final = 0.02
# Launches that use up all that may stand cost Python less when they are served than when they are prepared for; for so long.
_REST_S: Final = 0.05
# Kinds of call for which one may stand; an agent that uses more of them in turn waits for Python.
_MOST_KINDS: Final = MOST_STANDING
# An agent that asks for something new again and again has so many prepared in vain, the next once it asks for it twice.
_MOST_STRANGERS: Final = 2


@dataclass(slots=True)
class _Kind:
    """Launches that ask for the same. `depth`: how many should stand at a time. Times are of the loop."""

    intent: Intent
    asked_at_s: float
    depth: int = 1
    rests_until_s: float = 0.0


class Preparing:
    """One session's. Lives on the event loop."""

    def __init__(self, controller: Controller, session: str, native: NativeDoor, listener: int) -> None:
        """`listener` is the number of the session's socket at `native`."""
        self._controller: Final = controller
        self._session: Final = session
        self._native: Final = native
        self._listener: Final = listener
        self._loop: Final = asyncio.get_running_loop()
        # By what is asked for, the latest last.
        self._kinds: Final[OrderedDict[bytes, _Kind]] = OrderedDict()
        # Kinds that came new since the last one that was asked for again in time.
        self._strangers = 0
        # Standing offers: what they are for, and the id of the prepared call.
        self._offers: Final[dict[int, tuple[bytes, str]]] = {}
        controller.watch_room(session, self._prepare_all)

    def close(self) -> None:
        """Withdraws every offer and closes the socket."""
        self._kinds.clear()
        self._controller.watch_room(self._session, None)
        self._controller.withdraw_standing(self._session)
        self._native.unlisten(self._listener)

    @property
    def _lifetime_s(self) -> float:
        return self._controller.config.call.standing_lifetime / 1000

    # ---- what is asked for

    def expect_again(self, packet: bytes, intent: Intent) -> None:
        """Python had to serve `packet`, which has been granted: the next like it shall not wait."""
        split = split_request(packet)
        if split is None:
            return
        request, _ = split
        now_s = self._loop.time()
        kind = self._kinds.pop(request, None)
        if kind is None or now_s - kind.asked_at_s > self._lifetime_s:
            # The command is another one every time.
            self._strangers += 1
            kind = _Kind(
                replace(intent, command=()), now_s, depth=1 if self._strangers <= _MOST_STRANGERS else 0
            )
        else:
            # It was prepared for and is used up: they come faster than that.
            if kind.depth == MOST_STANDING and now_s >= kind.rests_until_s:
                kind.rests_until_s = now_s + _REST_S
                self._loop.call_later(_REST_S, self._prepare, request)
            kind.depth = min(kind.depth + 1, MOST_STANDING)
            kind.asked_at_s = now_s
        self._kinds[request] = kind
        if len(self._kinds) > _MOST_KINDS:
            self._forget(next(iter(self._kinds)))
        self._loop.call_soon(self._prepare, request)

    def _forget(self, request: bytes) -> None:
        del self._kinds[request]
        for of, call_id in list(self._offers.values()):
            if of == request:
                self._controller.withdraw_prepared(call_id)

    def _prepare_all(self) -> None:
        for request in self._kinds:
            self._loop.call_soon(self._prepare, request)

    def _prepare(self, request: bytes) -> None:
        kind = self._kinds.get(request)
        now_s = self._loop.time()
        if kind is None or now_s < kind.rests_until_s or now_s - kind.asked_at_s > self._lifetime_s:
            return
        standing = sum(of == request for of, _ in self._offers.values())
        if standing >= kind.depth:
            return
        if not self._controller.prepare(self._session, kind.intent, self._offer(request)):
            return
        # One after the other: launchers and ends of calls are not kept waiting for all of them.
        self._loop.call_soon(self._prepare, request)

    def _offer(self, request: bytes) -> Callable[[ToolCall, Answer, int], Callable[[], bool]]:
        def offer(call: ToolCall, answer: Answer, procs: int) -> Callable[[], bool]:
            number = self._native.offer(
                self._listener,
                request,
                procs,
                self._controller.config.call.oom_score_adj,
                encode_reply(grant(self._controller, call, answer)),
            )
            self._offers[number] = request, call.id

            def withdraw() -> bool:
                if not self._native.withdraw(self._listener, number):
                    return False
                del self._offers[number]
                return True

            return withdraw

        return offer

    # ---- what came of it

    def on_began(self, began: Began) -> None:
        request, call_id = self._offers.pop(began.offer)
        split = split_request(began.packet)
        assert split is not None and split[0] == request, "the door's thread takes nothing else"
        self._controller.begin_prepared(call_id, Process(began.pid, began.pidfd), split[1], began.at_ns)
        self._controller.counters.placed(Door.PREPARED, began.elapsed_ns / 1e9)
        self._strangers = 0
        if request in self._kinds:
            self._kinds.move_to_end(request)
            self._kinds[request].asked_at_s = self._loop.time()
            # At the end of a call it is done at once, so short ones in a row find the next one ready.
            self._loop.call_later(_TOOL_FIRST_S, self._prepare, request)

    def on_broken(self, offer: int) -> None:
        _, call_id = self._offers.pop(offer)
        self._controller.prepared_broken(call_id)
