"""The scheduler's ctypes twins against its object, and the reading of what the kernel says of schedulers."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf import btf, features, libbpf, scheduler
from agentcgroup.bpf.libbpf import Handle
from agentcgroup.bpf.programs import object_path
from agentcgroup.bpf.scheduler import LatencyClass, attached_scheduler, possible_cpus

needs_libbpf = pytest.mark.skipif(not features.libbpf().is_available, reason="libbpf.so.1 is not installed")


@pytest.fixture(scope="module")
def types() -> Iterator[Handle]:
    handle = libbpf.open_object(str(object_path("scheduler")))
    yield libbpf.btf_of(handle)
    libbpf.close_object(handle)


@needs_libbpf
@pytest.mark.parametrize("name", scheduler.STRUCTURES)
def test_a_structure_has_the_same_fields_in_both_languages(types: Handle, name: str) -> None:
    twin = scheduler.STRUCTURES[name]
    layout = btf.structure(types, name)
    ours = {field: (getattr(twin, field).offset, getattr(twin, field).size) for field, *_ in twin._fields_}
    assert {field: (at.offset_bytes, at.size_bytes) for field, at in layout.fields.items()} == ours
    assert layout.size_bytes == ctypes.sizeof(twin)


@needs_libbpf
def test_latency_classes_and_counters_are_numbered_alike(types: Handle) -> None:
    classes = btf.enumeration(types, "latency_class")
    assert classes.pop("LATENCY_CLASSES") == len(LatencyClass)
    assert classes == {f"LATENCY_{one.name}": one.value for one in LatencyClass}
    counters = btf.enumeration(types, "scheduler_counter")
    assert counters.pop("SCHEDULER_COUNTERS") == len(scheduler.COUNTERS)
    assert counters == {name.upper(): number for number, name in enumerate(scheduler.COUNTERS)}


def test_no_scheduler_is_attached_while_the_kernel_says_disabled(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("disabled\n")
    assert attached_scheduler(tmp_path) is None


def test_an_attached_scheduler_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ops").write_text("other_1.0\n")
    (tmp_path / "state").write_text("enabled\n")
    assert attached_scheduler(tmp_path) == "other_1.0"


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-3,8-11\n", 12), ("0,5\n", 6)])
def test_possible_cpus_end_at_the_largest_number(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "possible").write_text(text)
    assert possible_cpus(tmp_path / "possible") == count
