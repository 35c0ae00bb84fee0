"""The memory program's ctypes twins against its object, and figures as they are told later than they were written."""

import ctypes
from collections.abc import Iterator

import pytest

from agentcgroup.bpf import btf, features, libbpf, memory
from agentcgroup.bpf.libbpf import Handle
from agentcgroup.bpf.memory import AVERAGING_NS, MemoryAccount, growth_of
from agentcgroup.bpf.programs import object_path

needs_libbpf = pytest.mark.skipif(not features.libbpf().is_available, reason="libbpf.so.1 is not installed")


@pytest.fixture(scope="module")
def types() -> Iterator[Handle]:
    handle = libbpf.open_object(str(object_path("memory")))
    yield libbpf.btf_of(handle)
    libbpf.close_object(handle)


@needs_libbpf
@pytest.mark.parametrize("name", memory.STRUCTURES)
def test_a_structure_has_the_same_fields_in_both_languages(types: Handle, name: str) -> None:
    twin = memory.STRUCTURES[name]
    layout = btf.structure(types, name)
    ours = {field: (getattr(twin, field).offset, getattr(twin, field).size) for field, *_ in twin._fields_}
    assert {field: (at.offset_bytes, at.size_bytes) for field, at in layout.fields.items()} == ours
    assert layout.size_bytes == ctypes.sizeof(twin)


def account(**figures: int) -> MemoryAccount:
    made = MemoryAccount()
    for name, value in figures.items():
        setattr(made, name, value)
    return made


def test_a_rate_is_halved_after_the_averaging_time_without_a_charge() -> None:
    grown = account(at_ns=1000, rate_bytes_per_s=800, peak_rate_bytes_per_s=900)
    assert growth_of(grown, 1000).rate_bytes_per_s == 800
    assert growth_of(grown, 1000 + AVERAGING_NS).rate_bytes_per_s == 400
    assert growth_of(grown, 1000 + AVERAGING_NS).peak_rate_bytes_per_s == 900


def test_a_stretch_over_the_soft_limit_counts_while_it_lasts() -> None:
    over = account(at_ns=1000, over_soft_ns=50, over_soft_since_ns=900)
    assert (growth_of(over, 1100).over_soft_ns, growth_of(over, 1100).is_over_soft) == (250, True)
    under = account(at_ns=1000, over_soft_ns=50)
    assert (growth_of(under, 1100).over_soft_ns, growth_of(under, 1100).is_over_soft) == (50, False)


def test_a_charge_that_is_newer_than_the_clock_read_counts_as_now() -> None:
    newer = account(at_ns=2000, rate_bytes_per_s=800, over_soft_since_ns=2000)
    assert growth_of(newer, 1990).rate_bytes_per_s == 800
    assert growth_of(newer, 1990).over_soft_ns == 0
