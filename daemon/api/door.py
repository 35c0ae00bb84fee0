"""The launcher's door: a packet in, the caller in its cgroup, a packet out; see agentcgroup.proto.launch.

This is the hot path of the whole product, so one call is one callback on the event loop: accept, who is it,
receive, decode, declare, place, reply, close, without a task and without waiting. Only a caller whose packet
is not there yet is waited for, with a deadline. What arrives here comes from the sandboxed side: nothing of
it is believed, descriptors that come along are closed whatever happens, and a reply is all that a bad packet
causes.

Where the door's thread runs (agentcgroup.daemon.door), it stands before this: it accepts, serves the callers for whom
a call is prepared, and hands on everybody else, who is then served as above.
"""

import asyncio
import errno
import functools
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.api.access import Peer, check_may_place, peer_of, peer_pidfd, process_of
from agentcgroup.daemon.api.errors import new_incident
from agentcgroup.daemon.api.held import HeldCallers
from agentcgroup.daemon.api.preparing import Preparing
from agentcgroup.daemon.api.replies import grant, refusal
from agentcgroup.daemon.api.texts import read_texts, read_wait
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.counters import Door as DoorName
from agentcgroup.daemon.door.native import Began, Knock, NativeDoor
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Answer, Decision, ToolCall
from agentcgroup.daemon.ports import Location, Process
from agentcgroup.proto.launch import (
    MOST_BYTES,
    BadMessage,
    Reply,
    Status,
    decode_request,
    encode_reply,
)

log = logging.getLogger("agentcgroup.api")

# A launcher sends its packet right after connecting; who has not in this time will not.
SILENCE_S: Final = 5.0
MOST_WAITING: Final = 1024
BACKLOG: Final = 1024
# Calls served in a row before the other sessions' turn.
_BURST: Final = 16
# Descriptors are scarce for everybody then; a pause lets other work give some back.
_PAUSE_S: Final = 0.1

_MOST_FDS: Final = 4
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_MOST_FDS * 4)
_RECEIVE_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

# A wrong request is the caller's to mend; what cannot be now is a refusal.
STATUSES: Final[dict[Kind, Status]] = {
    Kind.INVALID: Status.INVALID,
    Kind.NOT_FOUND: Status.INVALID,
    Kind.EXISTS: Status.INVALID,
    Kind.DENIED: Status.INVALID,
    Kind.STATE: Status.REFUSED,
    Kind.EXHAUSTED: Status.REFUSED,
    Kind.HOST: Status.REFUSED,
}


@dataclass(slots=True)
class Lost:
    """Callers that a door did not answer, since it was opened."""

    turned_away: int = 0  # too many were waiting
    silent: int = 0  # said nothing in time
    unheard: int = 0  # were gone before their reply


class LaunchDoor:
    """Serves one session's launch socket until closed. Owns the listening socket."""

    def __init__(
        self, controller: Controller, session: str, listener: socket.socket, native: NativeDoor | None = None
    ) -> None:
        """`listener` is bound, listening and non-blocking; see agentcgroup.daemon.api.sockets."""
        self._controller: Final = controller
        self._session: Final = session
        self._listener: Final = listener
        self._loop: Final = asyncio.get_running_loop()
        self._waiting: Final[dict[int, tuple[socket.socket, asyncio.TimerHandle]]] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._is_short = False
        self.lost: Final = Lost()
        self._held: Final = HeldCallers(controller, session, self._count_unheard)
        self._preparing: Preparing | None = None
        leaf = controller.agent_leaf(session) if native is not None else None
        if native is not None and leaf is not None:
            try:
                self._preparing = Preparing(controller, session, native, native.listen(listener, leaf, self))
            except OSError as error:
                log.warning("session %s: no calls are prepared: %s", session, error)
        if self._preparing is None:
            self._loop.add_reader(listener, self._on_connections)

    @property
    def waiting(self) -> int:
        """Connections that have not said anything yet."""
        return len(self._waiting)

    def close(self, *, hang_up: bool = False) -> None:
        """Stops listening and hangs up on everybody who waits; `hang_up`: also on those in the queue, without a word.

        They ask the next daemon, see client/launcher/ask.c.
        """
        if self._pause is not None:
            self._pause.cancel()
        if self._preparing is not None:
            self._preparing.close()
        else:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for number in list(self._waiting):
            self._forget(number).close()
        self._held.close(hang_up=hang_up)
        if self.lost != Lost():
            log.info(
                "session %s: callers without an answer at the launcher's door: %s", self._session, self.lost
            )

    # ---- connections

    def _on_connections(self) -> None:
        for _ in range(_BURST):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                return
            self._is_short = False
            self._serve(connection)

    def _rest(self, error: OSError) -> None:
        """No descriptor or memory for another connection: those who knock wait in the backlog for a moment."""
        if not self._is_short:
            log.warning("session %s: no launcher can be let in: %s; trying again", self._session, error)
        self._is_short = True
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._on_connections)

    # ---- what the door's thread tells

    def on_knock(self, knock: Knock) -> None:
        self._answer(knock.connection, _Received(knock.packet, knock.fds, knock.is_cut))

    def on_silent(self, connection: socket.socket) -> None:
        self._serve(connection)

    def on_began(self, began: Began) -> None:
        assert self._preparing is not None
        if not began.is_heard:
            self.lost.unheard += 1
        self._preparing.on_began(began)

    def on_broken(self, offer: int, error: OSError) -> None:
        assert self._preparing is not None
        log.warning("session %s: a prepared call could not be entered: %s", self._session, error)
        self._preparing.on_broken(offer)

    def on_unheard(self) -> None:
        self.lost.unheard += 1

    def on_short(self, error: OSError) -> None:
        if not self._is_short:
            log.warning("session %s: no launcher can be let in: %s; trying again", self._session, error)
        self._is_short = True

    # ---- packets

    def _serve(self, connection: socket.socket) -> None:
        """Answers when the packet is there, else waits for it."""
        try:
            received = _receive(connection)
        except BlockingIOError:
            self._await_packet(connection)
            return
        except OSError:
            # Reset by the peer: there is nobody to answer.
            self.lost.unheard += 1
            connection.close()
            return
        if received is None:
            connection.close()
            return
        self._answer(connection, received)

    def _await_packet(self, connection: socket.socket) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._turn_away(connection)
            return
        number = connection.fileno()
        timer = self._loop.call_later(SILENCE_S, self._give_up, number)
        self._waiting[number] = connection, timer
        self._loop.add_reader(number, self._on_packet, number)

    def _turn_away(self, connection: socket.socket) -> None:
        if not self.lost.turned_away:
            log.warning(
                "session %s: %d callers wait at the launcher's door without a word; more are turned away",
                self._session,
                MOST_WAITING,
            )
        self.lost.turned_away += 1
        self._controller.counters.request_error(Kind.EXHAUSTED)
        connection.close()

    def _on_packet(self, number: int) -> None:
        self._serve(self._forget(number))

    def _give_up(self, number: int) -> None:
        self.lost.silent += 1
        self._forget(number).close()

    def _forget(self, number: int) -> socket.socket:
        connection, timer = self._waiting.pop(number)
        timer.cancel()
        self._loop.remove_reader(number)
        return connection

    # ---- one call

    def _answer(self, connection: socket.socket, received: "_Received") -> None:
        reply = self._reply(lambda: self._request(connection, received))
        for fd in received.fds:
            os.close(fd)
        if reply is None:
            return
        try:
            connection.send(encode_reply(reply), _SEND_FLAGS)
        except OSError:
            # Gone, or not reading. A call that was begun is ended by its process's end, as always.
            self._count_unheard()
        connection.close()

    def _count_unheard(self) -> None:
        self.lost.unheard += 1

    def _request(self, connection: socket.socket, received: "_Received") -> Reply | None:
        if received.is_cut:
            raise BadMessage(
                f"message of more than {MOST_BYTES} bytes, or with more than {_MOST_FDS} descriptors"
            )
        return self._begin(connection, received.packet, received.fds)

    def _reply(self, work: Callable[[], Reply | None]) -> Reply | None:
        """What `work` replies, or what its failure is in a reply."""
        started_s = time.perf_counter()
        try:
            reply = work()
        except BadMessage as error:
            self._controller.counters.request_error(Kind.INVALID)
            return Reply(Status.INVALID, message=str(error))
        except RequestError as error:
            self._controller.counters.request_error(error.kind)
            return Reply(
                STATUSES[error.kind], message=error.cause, suggestion=error.next_step, reason=error.kind
            )
        except Exception:
            incident = new_incident()
            self._controller.counters.internal_error()
            log.exception("incident %s: session %s: a launch failed", incident, self._session)
            return Reply(
                Status.REFUSED,
                message=f"agentcgroupd failed on this call (incident {incident})",
                suggestion="its log says why; the daemon goes on",
            )
        if reply is not None and reply.status in (Status.GRANTED, Status.TRIMMED):
            self._controller.counters.placed(DoorName.LAUNCHER, time.perf_counter() - started_s)
        return reply

    def _begin(self, connection: socket.socket, packet: bytes, fds: list[int]) -> Reply | None:
        """Places the caller. None: its call is queued, and connection and pidfd are held until its turn."""
        request = decode_request(packet)
        sent_along = bool(fds)
        peer = peer_of(connection)
        pid = self._pid_to_place(peer, fds)
        if not fds:
            fds.append(peer_pidfd(connection, peer))
        where = self._controller.locate(self._session, Process(pid, fds[0]))
        inside = where.call_id
        if request.ticket is not None:
            call = self._controller.redeem(self._session, request.ticket, request.arguments)
            self._check_nesting(call, inside)
            answer = Answer(call.decision, "", call_id=call.id, limits=call.limits)
        else:
            intent = read_texts(request.intent, request.labels, request.arguments)
            wait_ms = None if request.wait is None else read_wait(request.wait)
            answer = self._controller.declare(self._session, intent, inside, wait_ms)
            if answer.decision is Decision.QUEUED:
                self._held.hold(connection, answer, fds.pop(), functools.partial(self._begin_held, pid))
                return None
            if answer.limits is None:
                return refusal(answer)
            if self._preparing is not None and where == Location(self._session) and not sent_along:
                self._preparing.expect_again(packet, intent)
        return self._place(answer, pid, fds.pop())

    def _place(self, answer: Answer, pid: int, pidfd: int) -> Reply:
        # From here on the controller closes the pidfd, whatever happens.
        self._controller.begin_pidfd(self._session, answer.call_id, pid, pidfd)
        return grant(self._controller, self._controller.call(self._session, answer.call_id), answer)

    def _begin_held(self, pid: int, answer: Answer, pidfd: int) -> Reply:
        """The turn of a call that was queued has come. Takes over `pidfd`."""

        def begin() -> Reply:
            try:
                inside = self._controller.locate(self._session, Process(pid, pidfd)).call_id
                self._check_unmoved(self._controller.call(self._session, answer.call_id), inside)
            except BaseException:
                os.close(pidfd)
                self._controller.give_back(self._session, answer.call_id)
                raise
            return self._place(answer, pid, pidfd)

        reply = self._reply(begin)
        assert reply is not None
        return reply

    @staticmethod
    def _check_unmoved(call: ToolCall, inside: str) -> None:
        if inside != call.parent_id:
            raise RequestError(
                Kind.STATE,
                f"the process was moved to {f'call {inside}' if inside else 'no call'} while it was queued",
                "declare it again",
            )

    @staticmethod
    def _pid_to_place(peer: Peer, fds: list[int]) -> int:
        if not fds:
            return peer.pid
        if len(fds) > 1:
            raise RequestError(
                Kind.INVALID, f"{len(fds)} descriptors were sent along", "send one pidfd, or none"
            )
        pid = process_of(fds[0])
        check_may_place(peer, pid)
        return pid

    def _check_nesting(self, call: ToolCall, inside: str) -> None:
        """A process in a call may go further in, never out: its limits would not hold it any more."""
        around = call.parent_id
        while inside and around != inside:
            if not around:
                raise RequestError(
                    Kind.DENIED,
                    f"the process runs in call {inside}, and call {call.id} is not inside that one",
                    f"declare the call with parent_call_id {inside}, or redeem the ticket in the agent's own shell",
                    "ticket",
                )
            around = self._controller.call(self._session, around).parent_id


@dataclass(slots=True)
class _Received:
    packet: bytes
    fds: list[int]
    is_cut: bool


def _receive(connection: socket.socket) -> _Received | None:
    """One packet with the descriptors in it, which the caller closes; None at the end. Raises OSError."""
    packet, ancillary, flags, _ = connection.recvmsg(MOST_BYTES + 1, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    if not packet and not fds:
        return None
    return _Received(packet, fds, bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
