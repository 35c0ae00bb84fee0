"""The ctypes twins against the type information of the compiled programs: a change on one side alone fails here."""

import ctypes
from collections.abc import Iterator
from enum import IntFlag

import pytest

from agentcgroup.bpf import abi, btf, features, libbpf
from agentcgroup.bpf.libbpf import BpfError, Handle
from agentcgroup.bpf.programs import object_path

pytestmark = pytest.mark.skipif(not features.libbpf().is_available, reason="libbpf.so.1 is not installed")


@pytest.fixture(scope="module")
def types() -> Iterator[Handle]:
    handle = libbpf.open_object(str(object_path("lifecycle")))
    yield libbpf.btf_of(handle)
    libbpf.close_object(handle)


@pytest.mark.parametrize("name", abi.STRUCTURES)
def test_a_structure_has_the_same_fields_in_both_languages(types: Handle, name: str) -> None:
    twin = abi.STRUCTURES[name]
    layout = btf.structure(types, name)
    ours = {field: (getattr(twin, field).offset, getattr(twin, field).size) for field, *_ in twin._fields_}
    assert {field: (at.offset_bytes, at.size_bytes) for field, at in layout.fields.items()} == ours
    assert layout.size_bytes == ctypes.sizeof(twin)


@pytest.mark.parametrize("name", abi.STRUCTURES)
def test_a_structure_has_no_padding(types: Handle, name: str) -> None:
    layout = btf.structure(types, name)
    assert sum(field.size_bytes for field in layout.fields.values()) == layout.size_bytes


def test_the_kinds_of_records_are_numbered_alike(types: Handle) -> None:
    kinds = btf.enumeration(types, "event_kind")
    assert kinds.pop("EVENT_KINDS") == len(abi.EventKind)
    assert kinds == {f"EVENT_{kind.name}": kind.value for kind in abi.EventKind}


@pytest.mark.parametrize(("name", "twin"), [("exec", abi.ExecFlag), ("door", abi.DoorSource)])
def test_flags_have_the_same_bits_in_both_languages(types: Handle, name: str, twin: type[IntFlag]) -> None:
    suffix = {"exec": "flag", "door": "source"}[name]
    bits = btf.enumeration(types, f"{name}_{suffix}")
    assert bits == {f"{name.upper()}_{flag.name}": flag.value for flag in twin}


def test_the_knobs_are_constants_of_the_object(types: Handle) -> None:
    knobs = btf.section(types, ".rodata").fields["knobs"]
    assert knobs.size_bytes == ctypes.sizeof(abi.LifecycleKnobs)


def test_a_type_that_is_not_there_is_named(types: Handle) -> None:
    with pytest.raises(BpfError, match="no_such_thing"):
        btf.structure(types, "no_such_thing")
