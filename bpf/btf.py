"""The type information (BTF) of an object: where the fields of a structure and the variables of a section lie.

Read through libbpf, which owns the memory: nothing here outlives the object. Source: Documentation/bpf/btf.rst.
"""

import ctypes
import errno
from dataclasses import dataclass
from typing import Final, TypeVar

from agentcgroup.bpf.libbpf import BpfError, Handle, library

__all__ = ["Field", "Layout", "enumeration", "section", "structure"]

_KIND_STRUCT: Final = 4
_KIND_ENUM: Final = 6
_KIND_DATASEC: Final = 15


_E = TypeVar("_E", bound=ctypes.Structure)


class _Type(ctypes.Structure):
    """struct btf_type: info holds the number of entries (16 bits) and the kind (5 bits from bit 24)."""

    _fields_ = [("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32)]


class _Entry(ctypes.Structure):
    """struct btf_member (name, type, offset in bits) and struct btf_var_secinfo (type, offset in bytes, size)."""

    _fields_ = [("first", ctypes.c_uint32), ("second", ctypes.c_uint32), ("third", ctypes.c_uint32)]


class _Enumerator(ctypes.Structure):
    """struct btf_enum."""

    _fields_ = [("name_off", ctypes.c_uint32), ("value", ctypes.c_int32)]


@dataclass(frozen=True, slots=True)
class Field:
    """A field or a variable. `size_bytes` is of the whole, an array included."""

    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    size_bytes: int
    fields: dict[str, Field]


def structure(btf: Handle, name: str) -> Layout:
    """The layout of `struct name`. Raises BpfError when there is none."""
    address, info = _find(btf, name, _KIND_STRUCT)
    fields = {}
    for member in _entries(address, info, _Entry):
        size = _library().btf__resolve_size(btf, member.second)
        fields[_text(btf, member.first)] = Field(member.third // 8, size)
    return Layout(info.size, fields)


def section(btf: Handle, name: str) -> Layout:
    """The variables of a data section like ".rodata". Offsets are right once the object is open."""
    address, info = _find(btf, name, _KIND_DATASEC)
    fields = {}
    for variable in _entries(address, info, _Entry):
        described = _Type.from_address(_type(btf, variable.first))
        fields[_text(btf, described.name_off)] = Field(variable.second, variable.third)
    size = max((field.offset_bytes + field.size_bytes for field in fields.values()), default=0)
    return Layout(info.size or size, fields)


def enumeration(btf: Handle, name: str) -> dict[str, int]:
    """The names and values of `enum name`."""
    address, info = _find(btf, name, _KIND_ENUM)
    return {_text(btf, one.name_off): one.value for one in _entries(address, info, _Enumerator)}


def _library() -> ctypes.CDLL:
    loaded = library()
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
    loaded.btf__find_by_name_kind.restype = ctypes.c_int32
    loaded.btf__find_by_name_kind.argtypes = (pointer, text, number)
    loaded.btf__type_by_id.restype, loaded.btf__type_by_id.argtypes = pointer, (pointer, number)
    loaded.btf__name_by_offset.restype, loaded.btf__name_by_offset.argtypes = text, (pointer, number)
    loaded.btf__resolve_size.restype, loaded.btf__resolve_size.argtypes = ctypes.c_int64, (pointer, number)
    return loaded


def _type(btf: Handle, type_id: int) -> int:
    address: int | None = _library().btf__type_by_id(btf, type_id)
    if not address:
        raise BpfError(f"looking for type {type_id}", errno.EINVAL)
    return address


def _find(btf: Handle, name: str, kind: int) -> tuple[int, _Type]:
    type_id = _library().btf__find_by_name_kind(btf, name.encode(), kind)
    if type_id < 0:
        raise BpfError(f"looking for the type {name}", -type_id)
    address = _type(btf, type_id)
    return address, _Type.from_address(address)


def _entries(address: int, info: _Type, kind: type[_E]) -> "ctypes.Array[_E]":
    found: ctypes.Array[_E] = (kind * (info.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
    return found


def _text(btf: Handle, offset: int) -> str:
    name: bytes | None = _library().btf__name_by_offset(btf, offset)
    return name.decode() if name else ""
