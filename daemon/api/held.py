"""Callers at a launcher's door whose call waits for room: told where they stand, let in on their turn, missed if they go."""

import asyncio
import functools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.model import Answer, Decision, Reason
from agentcgroup.proto.launch import Reply, Status, encode_reply

_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


@dataclass(slots=True)
class _Held:
    connection: socket.socket
    begin: Callable[[Answer], Reply]
    # The process that is to be placed; -1 when `begin` has taken it.
    pidfd: int


class HeldCallers:
    """One door's callers, by call. The queue's bounds are the bound of this."""

    def __init__(self, controller: Controller, session: str, on_unheard: Callable[[], None]) -> None:
        """`on_unheard` is told of every caller that had gone when its last reply came."""
        self._controller: Final = controller
        self._session: Final = session
        self._on_unheard: Final = on_unheard
        self._loop: Final = asyncio.get_running_loop()
        self._held: Final[dict[str, _Held]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(
        self, connection: socket.socket, answer: Answer, pidfd: int, begin: Callable[[Answer, int], Reply]
    ) -> None:
        """Takes over `connection` and `pidfd`; `begin` is called with the grant and the pidfd, which it takes over."""
        call_id = answer.call_id
        call = self._controller.call(self._session, call_id)

        def begin_once(granted: Answer) -> Reply:
            held.pidfd = -1
            return begin(granted, pidfd)

        held = _Held(connection, begin_once, pidfd)
        self._held[call_id] = held
        self._loop.add_reader(connection, self._on_readable, call_id)
        self._controller.follow(call, functools.partial(self._on_answer, call_id))
        self._send(held, _reply(answer))

    def close(self, *, hang_up: bool = False) -> None:
        """Answers everybody that the session's end has not answered, unless told not to, and hangs up."""
        for call_id in list(self._held):
            if hang_up:
                self._let_go(call_id)
                continue
            self._finish(
                call_id,
                Reply(
                    Status.REFUSED,
                    message="Refused: the session is being removed.",
                    reason=Reason.SESSION_CLOSING,
                ),
            )

    def _on_readable(self, call_id: str) -> None:
        """The caller has hung up or died, or says more than the protocol allows, which is no different."""
        self._let_go(call_id)
        self._controller.give_back(self._session, call_id)
        self._on_unheard()

    def _on_answer(self, call_id: str, answer: Answer) -> None:
        held = self._held.get(call_id)
        if held is None:
            return
        if answer.decision is Decision.QUEUED:
            self._send(held, _reply(answer))
            return
        # Nobody there is no reason to begin.
        if _has_gone(held.connection):
            self._on_readable(call_id)
            return
        self._finish(call_id, _reply(answer) if answer.limits is None else held.begin(answer))

    def _finish(self, call_id: str, reply: Reply) -> None:
        if not self._send(self._held[call_id], reply):
            self._on_unheard()
        self._let_go(call_id)

    def _let_go(self, call_id: str) -> None:
        held = self._held.pop(call_id)
        self._loop.remove_reader(held.connection)
        held.connection.close()
        if held.pidfd >= 0:
            os.close(held.pidfd)

    @staticmethod
    def _send(held: _Held, reply: Reply) -> bool:
        try:
            held.connection.send(encode_reply(reply), _SEND_FLAGS)
        except OSError:
            # Gone, which its end of the socket tells; or not reading, and then it misses where it stands.
            return False
        return True


def _reply(answer: Answer) -> Reply:
    return Reply(
        Status(answer.decision.value),
        call_id=answer.call_id,
        message=answer.message,
        suggestion=answer.suggestion,
        reason=answer.reason or "",
    )


def _has_gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
