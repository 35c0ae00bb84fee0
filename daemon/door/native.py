"""libdoor.so by ctypes: a thread that accepts launchers, serves those a call is prepared for, and hands on the rest.

The thread runs no Python and takes no lock of the interpreter's, so a launcher that meets a prepared call waits for
system calls alone. What it did, and what it hands on, it tells through a socket pair, in order; see door.h, which is the
contract, and whose structures and numbers stand here a second time.
"""

import asyncio
import ctypes
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from agentcgroup.daemon.ports import Leaf

__all__ = ["MOST_OFFERS", "Began", "Guest", "Knock", "NativeDoor", "load"]

log = logging.getLogger("agentcgroup.door")

LIBRARY: Final = Path(__file__).with_name("libdoor.so")
# DOOR_MOST_OFFERS and DOOR_MOST_BYTES
MOST_OFFERS: Final = 8
_MOST_BYTES: Final = 16 * 1024
# struct door_event, which ends in its packet
_EVENT: Final = struct.Struct("=4Q11iI")
_MOST_FDS: Final = 4
# Room for events while the loop is busy; behind it the thread waits.
_EVENT_BUFFER_BYTES: Final = 1 << 20
# Events handled before the loop may do other things.
_BATCH: Final = 32


class _Kind(IntEnum):
    KNOCKED = 1
    SILENT = 2
    BEGAN = 3
    BROKEN = 4
    UNHEARD = 5
    SHORT = 6


class Knock(NamedTuple):
    """A connection that is Python's to serve, what was received on it, and descriptors to close."""

    connection: socket.socket
    packet: bytes
    fds: list[int]
    is_cut: bool


class Began(NamedTuple):
    """A process that has been placed and answered. Whoever gets it closes the pidfd."""

    offer: int
    pid: int
    pidfd: int
    at_ns: int
    elapsed_ns: int
    is_heard: bool
    packet: bytes


class Guest(Protocol):
    """Who listens at one socket. Called on the event loop."""

    def on_knock(self, knock: Knock) -> None: ...
    def on_silent(self, connection: socket.socket) -> None:
        """Somebody has connected and said nothing so far."""

    def on_began(self, began: Began) -> None: ...
    def on_broken(self, offer: int, error: OSError) -> None:
        """The offer was taken and the process could not be moved; its knock comes next."""

    def on_unheard(self) -> None:
        """Somebody was gone before they said anything."""

    def on_short(self, error: OSError) -> None:
        """Nobody can be let in for a moment."""


def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library with its signatures. Raises OSError where it is not built, or does not fit this system."""
    library = ctypes.CDLL(os.fspath(path), use_errno=True)
    u64, number, text, size = ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
    signatures: dict[str, tuple[object, list[object]]] = {
        "door_open": (ctypes.c_void_p, [number]),
        "door_close": (None, [ctypes.c_void_p]),
        "door_bell": (number, [ctypes.c_void_p]),
        "door_heard": (None, [ctypes.c_void_p]),
        "door_listen": (number, [ctypes.c_void_p, u64, number, u64, text]),
        "door_unlisten": (None, [ctypes.c_void_p, u64]),
        "door_offer": (number, [ctypes.c_void_p, u64, u64, text, size, number, number, text, size]),
        "door_withdraw": (number, [ctypes.c_void_p, u64, u64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(
                errno.ENOSYS, f"{path} is of another release, it has no {name}: build it again (make door)"
            )
        function.restype, function.argtypes = result, arguments
    return library


class NativeDoor:
    """One thread for all sessions. Used on the event loop only."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Starts the thread. Raises OSError."""
        self._library: Final = library
        self._loop: Final = asyncio.get_running_loop()
        self._guests: Final[dict[int, Guest]] = {}
        self._last_id = 0
        self._more: asyncio.Handle | None = None
        self._events, self._told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._events.setblocking(False)
        self._told.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _EVENT_BUFFER_BYTES)
        self._door = library.door_open(self._told.fileno())
        if not self._door:
            error = ctypes.get_errno()
            self._events.close()
            self._told.close()
            raise OSError(error, os.strerror(error))
        self._bell: Final[int] = library.door_bell(self._door)
        self._loop.add_reader(self._bell, self._on_bell)

    def close(self) -> None:
        """Stops the thread and hangs up on everybody."""
        self._loop.remove_reader(self._bell)
        if self._more is not None:
            self._more.cancel()
        self._library.door_close(self._door)
        self._guests.clear()
        self.pump()
        self._events.close()
        self._told.close()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # ---- sockets and offers

    def listen(self, listener: socket.socket, leaf: Leaf, guest: Guest) -> int:
        """Serves `listener`, which is the door's from then on; the socket's number here. Raises OSError."""
        number = self._next_id()
        # Before the first event can come.
        self._guests[number] = guest
        error = self._library.door_listen(
            self._door, number, listener.fileno(), leaf.cgroup_id, os.fsencode(leaf.path)
        )
        if error:
            del self._guests[number]
            raise OSError(error, os.strerror(error))
        listener.detach()
        return number

    def unlisten(self, number: int) -> None:
        """Closes that socket; its offers are withdrawn."""
        self._library.door_unlisten(self._door, number)
        # What has been told of it is still its guest's.
        self.pump()
        self._guests.pop(number, None)

    def offer(self, number: int, request: bytes, procs: int, oom_score_adj: int, reply: bytes) -> int:
        """Prepares for one launcher that sends `request` and then arguments only; the offer's number.

        Takes over `procs`, the cgroup.procs to write its pid to, also when it raises. Raises OSError.
        """
        offer = self._next_id()
        error = self._library.door_offer(
            self._door, number, offer, request, len(request), procs, oom_score_adj, reply, len(reply)
        )
        if error:
            os.close(procs)
            raise OSError(error, os.strerror(error))
        return offer

    def withdraw(self, number: int, offer: int) -> bool:
        """Whether the offer was still there: then nobody gets it any more. Else on_began or on_broken comes."""
        return bool(self._library.door_withdraw(self._door, number, offer))

    # ---- events

    def _on_bell(self) -> None:
        self._more = None
        # What is told from here on rings again.
        self._library.door_heard(self._door)
        if not self.pump(_BATCH):
            self._more = self._loop.call_soon(self._on_bell)

    def pump(self, most: int | None = None) -> bool:
        """Handles the events that are there, at most so many; whether these were all."""
        while most is None or most > 0:
            try:
                message = self._events.recv(_EVENT.size + _MOST_BYTES + 1)
            except BlockingIOError:
                return True
            most = None if most is None else most - 1
            self._handle(message)
        return False

    def _handle(self, message: bytes) -> None:
        number, offer, at_ns, elapsed_ns, kind, flags, connection, pidfd, pid, error, *rest = (
            _EVENT.unpack_from(message)
        )
        fds = list(rest[1 : 1 + rest[0]])
        packet = message[_EVENT.size :]
        guest = self._guests.get(number)
        if guest is None:
            # Of a socket that is closed: nobody is there to answer.
            for fd in (connection, pidfd, *fds):
                if fd >= 0:
                    os.close(fd)
            return
        match _Kind(kind):
            case _Kind.KNOCKED:
                is_cut = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
                guest.on_knock(Knock(_adopted(connection), packet, fds, is_cut))
            case _Kind.SILENT:
                guest.on_silent(_adopted(connection))
            case _Kind.BEGAN:
                guest.on_began(Began(offer, pid, pidfd, at_ns, elapsed_ns, error == 0, packet))
            case _Kind.BROKEN:
                guest.on_broken(offer, OSError(error, os.strerror(error)))
            case _Kind.UNHEARD:
                guest.on_unheard()
            case _Kind.SHORT:
                guest.on_short(OSError(error, os.strerror(error)))


def _adopted(connection: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=connection)


def open_door(load_library: Callable[[], ctypes.CDLL] = load) -> NativeDoor | None:
    """The door, running; None where it cannot be had, and Python serves everything. Says which."""
    try:
        return NativeDoor(load_library())
    except OSError as error:
        log.warning("prepared calls are off, every launch waits for Python: %s", error)
        return None
