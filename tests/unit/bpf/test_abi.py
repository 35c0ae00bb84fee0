"""The ctypes twins against the type information of the compiled programs: a change on one side alone fails here."""

import ctypes
import functools
from enum import IntFlag
from typing import Any

import pytest

from agentcgroup.bpf import abi, btf, features, libbpf, memory, scheduler
from agentcgroup.bpf.libbpf import BpfError, Handle
from agentcgroup.bpf.programs import object_path

pytestmark = pytest.mark.skipif(not features.libbpf().is_available, reason="libbpf.so.1 is not installed")


MODULES: dict[str, Any] = {"lifecycle": abi, "memory": memory, "scheduler": scheduler}
TWINS = [(program, name) for program, module in MODULES.items() for name in module.STRUCTURES]


@functools.cache
def types_of(program: str) -> Handle:
    """The types of an object that is opened, never loaded: memory of this process, no more."""
    return libbpf.btf_of(libbpf.open_object(str(object_path(program))))


@pytest.fixture
def types() -> Handle:
    return types_of("lifecycle")


@pytest.mark.parametrize(("program", "name"), TWINS)
def test_a_structure_has_the_same_fields_in_both_languages(program: str, name: str) -> None:
    twin = MODULES[program].STRUCTURES[name]
    layout = btf.structure(types_of(program), name)
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


def test_latency_classes_and_counters_are_numbered_alike() -> None:
    classes = btf.enumeration(types_of("scheduler"), "latency_class")
    assert classes.pop("LATENCY_CLASSES") == len(scheduler.LatencyClass)
    assert classes == {f"LATENCY_{one.name}": one.value for one in scheduler.LatencyClass}
    counters = btf.enumeration(types_of("scheduler"), "scheduler_counter")
    assert counters.pop("SCHEDULER_COUNTERS") == len(scheduler.COUNTERS)
    assert counters == {name.upper(): number for number, name in enumerate(scheduler.COUNTERS)}


def test_holds_have_the_same_numbers_in_both_languages(types: Handle) -> None:
    assert btf.enumeration(types, "passage_hold") == {
        f"HOLD_{how.name}": how.value for how in abi.PassageHold
    }


def test_the_knobs_are_constants_of_the_object(types: Handle) -> None:
    knobs = btf.section(types, ".rodata").fields["knobs"]
    assert knobs.size_bytes == ctypes.sizeof(abi.LifecycleKnobs)


def test_a_type_that_is_not_there_is_named(types: Handle) -> None:
    with pytest.raises(BpfError, match="no_such_thing"):
        btf.structure(types, "no_such_thing")
