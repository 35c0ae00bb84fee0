"""Entries of maps, by the map's descriptor and with keys and values of any structure: libbpf's bpf_map_*_elem, checked.

Like the wrappers in libbpf.py they raise BpfError for whatever the kernel reports. Source: bpf/bpf.h.
"""

import ctypes
import errno
from collections.abc import Callable
from typing import Any

from agentcgroup.bpf import libbpf

__all__ = ["delete", "lookup", "lookup_and_delete", "lookup_batch", "next_key", "update"]


def update(
    fd: int, key: "ctypes.Structure | ctypes._SimpleCData[int]", value: ctypes.Structure, flags: int = 0
) -> None:
    """BPF_ANY is 0, BPF_NOEXIST 1, BPF_EXIST 2."""
    libbpf.checked(
        "writing a map",
        libbpf.library().bpf_map_update_elem,
        fd,
        ctypes.byref(key),
        ctypes.byref(value),
        flags,
    )


def _found(doing: str, call: Callable[..., int], *arguments: object) -> bool:
    result = call(*arguments)
    if result < 0 and result != -errno.ENOENT:
        raise libbpf.BpfError(doing, -result)
    return result == 0


def lookup(fd: int, key: "ctypes.Structure | ctypes._SimpleCData[int]", value: ctypes.Structure) -> bool:
    """Fills `value`; False: no such key."""
    return _found(
        "reading a map", libbpf.library().bpf_map_lookup_elem, fd, ctypes.byref(key), ctypes.byref(value)
    )


def lookup_and_delete(
    fd: int, key: "ctypes.Structure | ctypes._SimpleCData[int]", value: ctypes.Structure
) -> bool:
    """The same and removes it, with nothing lost between (hash maps: kernel 5.14)."""
    return _found(
        "taking from a map",
        libbpf.library().bpf_map_lookup_and_delete_elem,
        fd,
        ctypes.byref(key),
        ctypes.byref(value),
    )


def delete(fd: int, key: "ctypes.Structure | ctypes._SimpleCData[int]") -> bool:
    """False: no such key."""
    return _found("deleting from a map", libbpf.library().bpf_map_delete_elem, fd, ctypes.byref(key))


def next_key(fd: int, key: "ctypes._SimpleCData[int] | None", following: "ctypes._SimpleCData[int]") -> bool:
    """Fills `following`; False: `key` was the last. A key that is gone begins again."""
    before = None if key is None else ctypes.byref(key)
    return _found(
        "walking a map", libbpf.library().bpf_map_get_next_key, fd, before, ctypes.byref(following)
    )


def lookup_batch(
    fd: int,
    cursor: ctypes.c_uint64 | None,
    following: ctypes.c_uint64,
    keys: "ctypes.Array[ctypes.c_uint64]",
    values: "ctypes.Array[Any]",
) -> tuple[int, bool]:
    """Fills `keys` and `values` from where `cursor` says (None: the beginning); how many, and whether that was the end.

    `following` is the next cursor. Raises BpfError with ENOSPC where `keys` cannot take the entries of one bucket
    (hash maps: kernel 5.6).
    """
    count = ctypes.c_uint32(len(keys))
    before = None if cursor is None else ctypes.byref(cursor)
    result = libbpf.library().bpf_map_lookup_batch(
        fd, before, ctypes.byref(following), keys, values, ctypes.byref(count), None
    )
    if result < 0 and result != -errno.ENOENT:
        raise libbpf.BpfError("reading a whole map", -result)
    return count.value, result == -errno.ENOENT
