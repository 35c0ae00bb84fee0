"""What QEMU is told, and which accelerator it gets."""

import json
import os
from pathlib import Path

import pytest

from vm.accel import choose_accelerator
from vm.cache import Cache
from vm.qemu import Accelerator, Disk, Machine, accelerator_words, command_line, kernel_command_line
from vm.tools import qemu_version


def machine(*disks: Disk, not_at_boot: str | None = None) -> Machine:
    return Machine(Accelerator.TCG, 3, "2G", Path("/k/vmlinuz"), not_at_boot, disks)


def test_disks_have_the_numbers_by_which_the_guest_finds_them() -> None:
    disks = (
        Disk(Path("/root.img")),
        Disk(Path("/m.img"), "/usr/lib/modules"),
        Disk(Path("/o.img"), "/out", "rw", True),
    )
    words = command_line(machine(*disks), console_fd=7, channel_fd=8)
    drives = [word for word in words if word.startswith("if=none")]
    assert [word.rsplit("file=", 1)[1] for word in drives] == ["/root.img", "/m.img", "/o.img"]
    assert ["snapshot=off" in word for word in drives] == [False, False, True]
    assert [word for word in words if word.startswith("nvme-ns")][2].endswith("nsid=3")
    assert (
        "AGENTCGROUP_DISKS=2:/usr/lib/modules:ro;3:/out:rw" in kernel_command_line(machine(*disks)).split()
    )


def test_a_comma_in_a_path_does_not_end_the_option() -> None:
    assert any(
        "file=/a,,b.img" in word
        for word in command_line(machine(Disk(Path("/a,b.img"))), console_fd=7, channel_fd=8)
    )


def test_a_unit_can_be_kept_from_starting_at_boot() -> None:
    line = kernel_command_line(machine(Disk(Path("/r")), not_at_boot="agentcgroup.service"))
    assert "AGENTCGROUP_NOT_AT_BOOT=agentcgroup.service" in line.split()


def test_the_kernel_takes_its_whole_command_line() -> None:
    # COMMAND_LINE_SIZE of x86 is 2048.
    assert (
        len(kernel_command_line(machine(*[Disk(Path("/x"), "/usr/lib/modules", "rw,noatime")] * 20))) < 2000
    )


def test_without_a_kvm_device_nothing_is_tried(tmp_path: Path) -> None:
    chosen = choose_accelerator(Cache(tmp_path), Path("/no/kernel"), tmp_path, device=tmp_path / "kvm")
    assert chosen is Accelerator.TCG
    assert not (tmp_path / "accelerator.json").exists()


@pytest.mark.parametrize(("works", "accelerator"), [(True, Accelerator.KVM), (False, Accelerator.TCG)])
def test_the_answer_of_a_trial_is_remembered_for_this_host_and_qemu(
    works: bool, accelerator: Accelerator, tmp_path: Path
) -> None:
    host = f"{os.uname().release} {os.uname().version}; {qemu_version()}"
    (tmp_path / "accelerator.json").write_text(json.dumps({"another host": not works, host: works}))
    (tmp_path / "kvm").touch()
    assert (
        choose_accelerator(Cache(tmp_path), Path("/no/kernel"), tmp_path, device=tmp_path / "kvm")
        is accelerator
    )


def test_only_a_counting_guest_has_a_clock_of_instructions() -> None:
    for accelerator in Accelerator:
        words = accelerator_words(accelerator)
        assert ("-icount" in words) == (accelerator is Accelerator.COUNTED)
    # With a thread per processor the order of instructions would be the host's doing.
    assert "tcg,thread=single" in accelerator_words(Accelerator.COUNTED)
