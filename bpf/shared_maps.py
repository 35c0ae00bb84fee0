"""Maps that several BPF objects have in common."""

import os
from typing import Final

from agentcgroup.bpf import libbpf
from agentcgroup.bpf.libbpf import Handle

__all__ = ["HOLDS", "SharedMaps"]

# Who is kept off the CPU and until when; the contract is in holds.bpf.h.
HOLDS: Final = "scheduler_holds"


class SharedMaps:
    """Maps by name, made with the first object that has one of them, and given to every object loaded later.

    A map lives until `close`, whichever objects come and go: a scheduler that was thrown off and is loaded anew finds
    the entries it had. The objects must declare the map alike; include one header for that. Nothing is pinned.
    """

    def __init__(self, *names: str) -> None:
        self._names: Final = names
        self._fds: dict[str, int] = {}

    def lend(self, handle: Handle) -> None:
        """Before the object is loaded. Raises ValueError when its entries are not as large as those that are there."""
        for name, found in libbpf.maps(handle):
            if name not in self._fds:
                continue
            wanted = libbpf.value_bytes(found)
            libbpf.reuse_map(found, self._fds[name])
            if libbpf.value_bytes(found) != wanted:
                raise ValueError(f"{name} has entries of {libbpf.value_bytes(found)} bytes, not of {wanted}")

    def keep(self, handle: Handle) -> None:
        """After the object is loaded."""
        for name, found in libbpf.maps(handle):
            if name in self._names and name not in self._fds:
                self._fds[name] = os.dup(libbpf.map_fd(found))

    def close(self) -> None:
        """Forgets the maps; objects that use them keep them. Safe to call twice."""
        while self._fds:
            _, fd = self._fds.popitem()
            os.close(fd)
