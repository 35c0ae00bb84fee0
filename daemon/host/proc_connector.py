"""Exit messages of the kernel's process connector: how processes end that are not our children, on kernels
before 6.15.

The connector (drivers/connector/cn_proc.c, include/uapi/linux/cn_proc.h) sends one message for every fork,
exec and exit of the host to whoever listens, over netlink. A classic BPF filter on the socket drops, in the
kernel, everything but the exit of a process's first thread, on every kernel version; what is left costs one
small message for each process that ends on this host while something listens. Needs CAP_NET_ADMIN and the
initial network, pid and user namespaces.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Final

__all__ = ["ConnectorUnavailable", "ProcConnector"]

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1
_CN_VAL_PROC: Final = 1
_MCAST_LISTEN: Final = 1
_EVENT_NONE: Final = 0
_EVENT_EXIT: Final = 0x8000_0000
_NLMSG_DONE: Final = 3
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26

# nlmsghdr (length, type, flags, sequence, port), then cn_msg (idx, val, sequence, acknowledgement, length,
# flags).
_HEADERS: Final = struct.Struct("=IHHII IIIIHH")
# proc_event: what, cpu, timestamp_ns; then for an exit: pid, tgid, exit_code; for the answer to LISTEN:
# error.
_EVENT: Final = struct.Struct("=IIQIII")
_WHAT_OFFSET: Final = _HEADERS.size
_PID_OFFSET: Final = _HEADERS.size + 16
_TGID_OFFSET: Final = _PID_OFFSET + 4

_BUFFER_BYTES: Final = 1 << 20
# Messages read before the event loop may do other things.
_MOST_MESSAGES: Final = 512


class ConnectorUnavailable(Exception):
    """The process connector cannot be listened to; the text says why."""


def _filter_program() -> bytes:
    """Keep answers (what = 0) and exits whose pid is their tgid. linux/filter.h: struct sock_filter."""

    def instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, operand)

    # Loads of a classic filter are big-endian, the message is in the machine's order.
    exit_word = int.from_bytes(_EVENT_EXIT.to_bytes(4, sys.byteorder), "big")
    load, jump_equal, to_x, jump_equal_x, give = 0x20, 0x15, 0x07, 0x1D, 0x06
    return b"".join(
        (
            instruction(load, _WHAT_OFFSET),
            instruction(jump_equal, _EVENT_NONE, if_true=5),
            instruction(jump_equal, exit_word, if_false=5),
            instruction(load, _PID_OFFSET),
            instruction(to_x, 0),
            instruction(load, _TGID_OFFSET),
            instruction(jump_equal_x, 0, if_false=1),
            instruction(give, 0xFFFF),
            instruction(give, 0),
        )
    )


class ProcConnector:
    """A socket that hears of process exits from construction until `close`."""

    def __init__(self) -> None:
        """Raises ConnectorUnavailable where the kernel has no connector or will not let us listen."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR
            )
        except OSError as error:
            raise ConnectorUnavailable(f"no netlink connector in this kernel: {error.strerror}") from error
        try:
            self._attach_filter()
            self._socket.bind((0, _CN_IDX_PROC))
            self._listen()
        except OSError as error:
            self._socket.close()
            raise ConnectorUnavailable(
                f"process connector: {error.strerror}; it needs CAP_NET_ADMIN"
            ) from error
        except ConnectorUnavailable:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when there is something to `read`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening. The kernel stops making messages when the last listener is gone."""
        self._socket.close()

    def read(self) -> tuple[list[tuple[int, int]], bool]:
        """Processes that ended, as (pid, wait status), and False when the kernel had to drop some since the
        last read.
        """
        exits: list[tuple[int, int]] = []
        is_complete = True
        for _ in range(_MOST_MESSAGES):
            try:
                message, (port, _groups) = self._socket.recvfrom(256)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_complete = False
                continue
            # Port 0 is the kernel; another process cannot tell us who ended.
            if port != 0 or len(message) < _HEADERS.size + _EVENT.size:
                continue
            what, _cpu, _at_ns, _pid, tgid, wait_status = _EVENT.unpack_from(message, _HEADERS.size)
            if what == _EVENT_EXIT:
                exits.append((tgid, wait_status))
        return exits, is_complete

    def _attach_filter(self) -> None:
        program = ctypes.create_string_buffer(_filter_program())
        # struct sock_fprog: the number of instructions and their address, with the padding of a pointer.
        head = struct.pack("@HP", (len(program) - 1) // 8, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
        # Without CAP_NET_ADMIN the buffer stays at the host's default, which only means sooner losses.
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)

    def _listen(self) -> None:
        """Ask for events and read the answer, which the kernel sends before `send` returns."""
        # The answer's own sequence is the kernel's counter of events; ours comes back as its `ack`, plus
        # one.
        mark = int.from_bytes(os.urandom(4), sys.byteorder) >> 1
        length = _HEADERS.size + 4
        header = _HEADERS.pack(length, _NLMSG_DONE, 0, 0, 0, _CN_IDX_PROC, _CN_VAL_PROC, 0, mark, 4, 0)
        self._socket.send(header + struct.pack("=I", _MCAST_LISTEN))
        for _ in range(_MOST_MESSAGES):
            try:
                message, (port, _groups) = self._socket.recvfrom(256)
            except BlockingIOError:
                raise ConnectorUnavailable(
                    "process connector gave no answer: it serves only the initial pid and user namespaces"
                ) from None
            if port != 0 or len(message) < _HEADERS.size + _EVENT.size:
                continue
            fields = _HEADERS.unpack_from(message)
            what, _cpu, _at_ns, answer, *_ = _EVENT.unpack_from(message, _HEADERS.size)
            if what == _EVENT_NONE and fields[8] == mark + 1:
                if answer:
                    raise ConnectorUnavailable(
                        f"process connector: {os.strerror(answer)}; it needs CAP_NET_ADMIN"
                    )
                return
        raise ConnectorUnavailable("process connector gave no answer among many messages")
