"""A hash or array map as typed Python: whole structures in, whole structures out."""

import ctypes
from collections.abc import Iterator
from typing import Generic, TypeVar

from agentcgroup.bpf import map_entries

__all__ = ["ArrayMap", "HashMap"]

_V = TypeVar("_V", bound=ctypes.Structure)
_NOEXIST = 1


class HashMap(Generic[_V]):
    """A hash map from a 64-bit number to a structure. Every method raises BpfError for what is neither yes nor no."""

    def __init__(self, fd: int, value: type[_V]) -> None:
        """`fd` stays its object's; a map whose object is closed must not be used."""
        self._fd = fd
        self._value = value

    def put_new(self, key: int, value: _V) -> None:
        """Raises BpfError with EEXIST when there is one, with E2BIG when the map is full."""
        map_entries.update(self._fd, ctypes.c_uint64(key), value, _NOEXIST)

    def put(self, key: int, value: _V) -> None:
        map_entries.update(self._fd, ctypes.c_uint64(key), value)

    def get(self, key: int) -> _V | None:
        value = self._value()
        return value if map_entries.lookup(self._fd, ctypes.c_uint64(key), value) else None

    def pop(self, key: int) -> _V | None:
        """Reads and removes in one step, so that nothing is added between."""
        value = self._value()
        return value if map_entries.lookup_and_delete(self._fd, ctypes.c_uint64(key), value) else None

    def delete(self, key: int) -> bool:
        """False: there was none."""
        return map_entries.delete(self._fd, ctypes.c_uint64(key))

    def items(self, at_most: int) -> dict[int, _V]:
        """All entries, in one system call when there are `at_most` or fewer; those that change meanwhile may be missing."""
        keys, values = (ctypes.c_uint64 * at_most)(), (self._value * at_most)()
        found: dict[int, _V] = {}
        cursor, following, is_end = None, ctypes.c_uint64(), False
        while not is_end:
            count, is_end = map_entries.lookup_batch(self._fd, cursor, following, keys, values)
            for number in range(count):
                found[keys[number]] = self._value.from_buffer_copy(values[number])
            cursor, following = following, ctypes.c_uint64()
        return found

    def keys(self) -> Iterator[int]:
        """All keys; those added or removed meanwhile may be missing, or come twice."""
        before: ctypes.c_uint64 | None = None
        following = ctypes.c_uint64()
        while map_entries.next_key(self._fd, before, following):
            yield following.value
            before = ctypes.c_uint64(following.value)


class ArrayMap(Generic[_V]):
    """An array map of structures."""

    def __init__(self, fd: int, value: type[_V]) -> None:
        self._fd = fd
        self._value = value

    def __getitem__(self, index: int) -> _V:
        """Raises IndexError past the end."""
        value = self._value()
        if not map_entries.lookup(self._fd, ctypes.c_uint32(index), value):
            raise IndexError(index)
        return value

    def __setitem__(self, index: int, value: _V) -> None:
        map_entries.update(self._fd, ctypes.c_uint32(index), value)
