"""A BPF ring buffer on the daemon's side: a descriptor to wait on, and the records in order, as bytes.

What does not fit into the ring is lost in the kernel and counted there by the program that wrote it.
"""

import ctypes
import logging
from collections.abc import Callable
from typing import Final

from agentcgroup.bpf import libbpf

__all__ = ["RingBuffer"]

log = logging.getLogger(__name__)

# A negative answer of the callback ends a drain; the number itself means nothing to the kernel.
_ENOUGH: Final = -1


class RingBuffer:
    """Hands each record to `receive`. Used from one thread only; close it before its object."""

    def __init__(self, fd: int, receive: Callable[[bytes], None]) -> None:
        """`receive` is called from `drain`, must not raise, and owns the bytes it gets."""
        self._receive = receive
        self._left = 0
        # libbpf keeps the pointer.
        self._callback = libbpf.RingCallback(self._on_record)
        self._ring: libbpf.Handle | None = libbpf.make_ring(fd, self._callback)

    def fileno(self) -> int:
        """Becomes readable when records arrive; for add_reader or epoll."""
        return libbpf.ring_epoll_fd(self._open())

    def drain(self, at_most: int = 1024) -> int:
        """Hands over up to `at_most` records and returns how many; the rest keeps the descriptor readable."""
        self._left = at_most
        libbpf.consume_ring(self._open())
        return at_most - self._left

    def close(self) -> None:
        if self._ring is not None:
            libbpf.free_ring(self._ring)
            self._ring = None

    def _open(self) -> libbpf.Handle:
        if self._ring is None:
            raise ValueError("the ring buffer is closed")
        return self._ring

    def _on_record(self, _context: int | None, data: int, size: int) -> int:
        self._left -= 1
        try:
            self._receive(ctypes.string_at(data, size))
        except Exception:
            # An exception cannot pass through libbpf; this record is done with, the next ones are not.
            log.exception("a record of %d bytes could not be handled", size)
        return 0 if self._left > 0 else _ENOUGH
