"""Facts about BPF: what is found, what the kernel answers, and that asking never raises."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.features import BpfFact

PROBES: list[Callable[[], BpfFact]] = [
    features.program_load,
    features.type_information,
    features.libbpf,
    features.tracing,
    features.fentry,
    features.ring_buffer,
    features.lsm,
    features.sched_ext,
]


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_answers_on_any_host_and_says_what_it_found(probe: Callable[[], BpfFact]) -> None:
    fact = probe()
    assert fact.detail
    assert "\n" not in fact.detail


def test_a_tracing_program_needs_everything_that_a_plain_one_needs() -> None:
    if features.tracing().is_available:
        assert features.program_load().is_available
        assert features.type_information().is_available
        assert features.libbpf().is_available


def test_missing_type_information_names_the_file_and_the_errno(tmp_path: Path) -> None:
    fact = features.type_information(tmp_path / "vmlinux")
    assert not fact.is_available
    assert str(tmp_path / "vmlinux") in fact.detail
    assert errno.errorcode[errno.ENOENT] in fact.detail


def test_a_kernel_without_sched_ext_says_which_option_it_was_built_without(tmp_path: Path) -> None:
    fact = features.sched_ext(tmp_path / "sched_ext")
    assert not fact.is_available
    assert "CONFIG_SCHED_CLASS_EXT" in fact.detail


def test_a_loaded_scheduler_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("enabled\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ops").write_text("flatcg\n")
    assert features.sched_ext(tmp_path) == BpfFact(True, "enabled, scheduler flatcg loaded")


def test_sched_ext_without_a_scheduler_is_available(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("disabled\n")
    assert features.sched_ext(tmp_path) == BpfFact(True, "disabled, no scheduler loaded")


def test_bpf_among_the_security_modules_is_found_by_its_whole_name(tmp_path: Path) -> None:
    active = tmp_path / "lsm"
    active.write_text("lockdown,capability,bpf\n")
    assert features.lsm(active).is_available
    active.write_text("lockdown,capability,bpfish\n")
    assert not features.lsm(active).is_available
