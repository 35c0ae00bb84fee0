"""Who is at the other end of a Unix socket, and which processes it may put into a call.

Identity comes from the kernel: SO_PEERCRED and SO_PEERPIDFD are of the process that called connect(2), a
received pidfd is of a process and not of a number. See unix(7), pidfd_open(2).
"""

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError

# include/uapi/asm-generic/socket.h, kernel 6.5; not in the socket module of Python 3.11.
_SO_PEERPIDFD: Final = 77
_UCRED: Final = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected: ids as this process sees them."""

    pid: int
    uid: int
    gid: int


def _denied(cause: str, next_step: str) -> RequestError:
    return RequestError(Kind.DENIED, cause, next_step, "process")


def peer_of(connection: socket.socket) -> Peer:
    """Who connected. Raises RequestError(DENIED) for a process that this pid namespace does not contain."""
    peer = Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
    if peer.pid <= 0:
        raise _denied(
            "the caller lives in a pid namespace that agentcgroupd does not see",
            "run agentcgroupd in the host's pid namespace",
        )
    return peer


def _gone(pid: int) -> RequestError:
    return RequestError(Kind.NOT_FOUND, f"process {pid} has ended already", "begin again", "process")


def peer_pidfd(connection: socket.socket, peer: Peer) -> int:
    """A pidfd of `peer`, which the caller closes. Raises RequestError(NOT_FOUND) when it has ended."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise _gone(peer.pid) from error
    return _opened(connection, peer)


def _opened(connection: socket.socket, peer: Peer) -> int:
    """Before 6.5: by pid. A peer that has ended, whose pid may be another's by now, has also hung up."""
    try:
        pidfd = os.pidfd_open(peer.pid)
    except ProcessLookupError:
        raise _gone(peer.pid) from None
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    if any(events & (select.POLLHUP | select.POLLRDHUP) for _, events in poll.poll(0)):
        os.close(pidfd)
        raise _gone(peer.pid)
    return pidfd


def process_of(pidfd: int) -> int:
    """The pid behind a descriptor that a caller sent. Raises RequestError when it is no pidfd, or of no live process."""
    fields: dict[str, str] = {}
    # pos:	0 / flags:	02000002 / mnt_id:	15 / Pid:	4711 / NSpid:	4711; only a pidfd has the last two.
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    if "Pid" not in fields:
        raise RequestError(
            Kind.INVALID,
            "the descriptor sent along is no pidfd",
            "send one of pidfd_open(2) or clone3(2), or none",
            "process",
        )
    pid = int(fields["Pid"])
    if pid == 0:
        raise _denied(
            "the process of the pidfd lives in a pid namespace that agentcgroupd does not see",
            "send one of a process beside or below the caller",
        )
    if pid < 0:
        raise RequestError(
            Kind.NOT_FOUND, "the process of the pidfd has ended already", "begin again", "process"
        )
    return pid


def check_may_place(peer: Peer, pid: int) -> None:
    """`peer` may put `pid` into a call when it might as well have killed it; see kill(2).

    Anybody can open a pidfd of anybody's process, so that holding one proves nothing. Raises
    RequestError(DENIED).
    """
    if pid in (1, os.getpid()):
        raise _denied(f"process {pid} is not to be moved", "name a process of your own")
    if pid == peer.pid or peer.uid == 0:
        return
    if peer.uid not in _user_ids(pid):
        raise _denied(
            f"process {pid} belongs to another user than the caller, {peer.uid}",
            "name a process of your own",
        )


def _user_ids(pid: int) -> tuple[int, int]:
    """Real and saved user id, proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Uid:"):
                    real, _, saved, _ = map(int, line.split()[1:])
                    return real, saved
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise _gone(pid)
