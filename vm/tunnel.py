"""Connections carried over the channel: what connects to a socket on the host talks to a socket in the guest.

The guest needs no network for it, and a Unix socket stays one, with its file mode. The same code runs on both ends:
the host listens and opens, the guest connects. Frames are OPEN (connection, target), DATA (connection, bytes), CREDIT
(connection, bytes written: so many more may be sent), SHUT (connection: no more data this way) and RESET (connection).
A sender stops when WINDOW_BYTES are on their way, so a reader that does not read holds up nobody else.
"""

import contextlib
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vm.channel import ChannelError, Frame, Kind

WINDOW_BYTES = 256 * 1024
CHUNK_BYTES = 32 * 1024
BACKLOG = 64
CONNECTION = struct.Struct(">I")
PAIR = struct.Struct(">II")

Send = Callable[[Kind, bytes], None]
Handler = Callable[[int], None]


class ListenError(Exception):
    """A local address cannot be listened on; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Forward:
    """``local`` on the host leads to ``remote`` in the guest; each is HOST:PORT or the path of a Unix socket."""

    local: str
    remote: str


def is_path(address: str) -> bool:
    """Whether an address names a Unix socket."""
    return "/" in address


def check_address(address: str) -> str:
    """Return the address when it is one; raises ValueError."""
    if is_path(address):
        if len(os.fsencode(os.path.abspath(address))) > 107:
            raise ValueError(f"{address}: a Unix socket's path has at most 107 bytes")
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is neither HOST:PORT nor the path of a Unix socket")
    return address


def parse_forward(text: str) -> Forward:
    """Read LOCAL=REMOTE; raises ValueError."""
    local, equals, remote = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not LOCAL=REMOTE")
    return Forward(check_address(local), check_address(remote))


def _tcp(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def listen_on(address: str) -> socket.socket:
    """Return a listening socket; a Unix socket is its owner's alone, and a stale one is replaced. Raises OSError."""
    if not is_path(address):
        return socket.create_server(_tcp(address), backlog=BACKLOG)
    path = Path(address)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(os.path.abspath(address))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


def connect_to(address: str) -> socket.socket:
    """Return a socket connected to an address of this machine. Raises OSError."""
    if not is_path(address):
        return socket.create_connection(_tcp(address))
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


@dataclass(slots=True, eq=False)
class Connection:
    """One end of a carried connection."""

    number: int
    socket: socket.socket
    # Bytes that may still be sent to the other end.
    credit: int = WINDOW_BYTES
    # Came from the other end and is not written yet.
    pending: bytearray = field(default_factory=bytearray)
    has_read_all: bool = False
    has_got_all: bool = False


class Tunnel:
    """All carried connections of one end. Sockets are registered with ``selector``, their handlers as its data."""

    def __init__(self, selector: selectors.BaseSelector, send: Send) -> None:
        self._selector = selector
        self._send = send
        self._connections: dict[int, Connection] = {}
        self._listeners: list[tuple[socket.socket, str]] = []
        self._next = 1

    # ---- the host's end

    def listen(self, forwards: Sequence[Forward]) -> None:
        """Listen on every local address. Raises ListenError."""
        for index, forward in enumerate(forwards):
            try:
                listener = listen_on(forward.local)
            except OSError as error:
                raise ListenError(f"cannot listen on {forward.local}: {error.strerror}") from error
            listener.setblocking(False)
            self._listeners.append((listener, forward.local))
            self._selector.register(listener, selectors.EVENT_READ, self._acceptor(listener, index))

    def _acceptor(self, listener: socket.socket, index: int) -> Handler:
        def accept(mask: int) -> None:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                accepted, _ = listener.accept()
                number, self._next = self._next, self._next + 1
                self._send(Kind.OPEN, PAIR.pack(number, index))
                self._add(Connection(number, accepted))

        return accept

    def close(self) -> None:
        """Close everything and remove the Unix sockets that were listened on."""
        for connection in list(self._connections.values()):
            self._forget(connection)
        for listener, address in self._listeners:
            self._selector.unregister(listener)
            listener.close()
            if is_path(address):
                Path(address).unlink(missing_ok=True)
        self._listeners.clear()

    # ---- frames

    def take(self, frame: Frame, targets: Sequence[str] = ()) -> None:
        """Act on a frame of the other end; ``targets`` are the addresses that OPEN may name. Raises ChannelError."""
        if len(frame.body) < CONNECTION.size:
            raise ChannelError(f"{frame.kind.name} of {len(frame.body)} bytes")
        (number,) = CONNECTION.unpack_from(frame.body)
        if frame.kind is Kind.OPEN:
            self._open(frame.body, targets)
            return
        connection = self._connections.get(number)
        if connection is None:
            # It was reset here while this was on its way.
            return
        match frame.kind:
            case Kind.DATA:
                connection.pending += memoryview(frame.body)[CONNECTION.size :]
            case Kind.CREDIT:
                connection.credit += PAIR.unpack(frame.body)[1]
            case Kind.SHUT:
                connection.has_got_all = True
            case _:
                self._forget(connection)
                return
        self._write(connection)

    def _open(self, body: bytes, targets: Sequence[str]) -> None:
        number, index = PAIR.unpack(body)
        try:
            self._add(Connection(number, connect_to(targets[index])))
        except (OSError, IndexError):
            self._send(Kind.RESET, CONNECTION.pack(number))

    # ---- sockets

    def _add(self, connection: Connection) -> None:
        connection.socket.setblocking(False)
        self._connections[connection.number] = connection
        self._selector.register(connection.socket, selectors.EVENT_READ, self._handler(connection))

    def _handler(self, connection: Connection) -> Handler:
        def handle(mask: int) -> None:
            # What happened to another one may have ended this one in the meantime.
            if mask & selectors.EVENT_WRITE and connection.number in self._connections:
                self._write(connection)
            if mask & selectors.EVENT_READ and connection.number in self._connections:
                self._read(connection)

        return handle

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(min(CHUNK_BYTES, connection.credit))
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        if data:
            connection.credit -= len(data)
            self._send(Kind.DATA, CONNECTION.pack(connection.number) + data)
        else:
            connection.has_read_all = True
            self._send(Kind.SHUT, CONNECTION.pack(connection.number))
        self._settle(connection)

    def _write(self, connection: Connection) -> None:
        written = 0
        try:
            while connection.pending:
                count = connection.socket.send(connection.pending)
                del connection.pending[:count]
                written += count
        except BlockingIOError:
            pass
        except OSError:
            self._reset(connection)
            return
        if written:
            self._send(Kind.CREDIT, PAIR.pack(connection.number, written))
        if connection.has_got_all and not connection.pending:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """Wait for what can happen next, or for nothing more."""
        if connection.has_read_all and connection.has_got_all and not connection.pending:
            self._forget(connection)
            return
        wanted = 0
        if not connection.has_read_all and connection.credit > 0:
            wanted |= selectors.EVENT_READ
        if connection.pending:
            wanted |= selectors.EVENT_WRITE
        is_registered = connection.socket in self._selector.get_map()
        if wanted and is_registered:
            self._selector.modify(connection.socket, wanted, self._handler(connection))
        elif wanted:
            self._selector.register(connection.socket, wanted, self._handler(connection))
        elif is_registered:
            self._selector.unregister(connection.socket)

    def _reset(self, connection: Connection) -> None:
        self._send(Kind.RESET, CONNECTION.pack(connection.number))
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.pop(connection.number, None)
