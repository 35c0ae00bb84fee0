"""QEMU's command line and process: a machine without network, disks as NVMe namespaces, console and channel as sockets.

NVMe and virtio-console are built into Debian's cloud kernels, so there is no initramfs. Device documentation:
QEMU's "NVMe Emulation" and "virtio-serial" pages.
"""

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vm import disk
from vm.channel import PORT_NAME
from vm.process import die_with_parent
from vm.tools import QEMU


class Accelerator(StrEnum):
    """How QEMU runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"
    # Emulated, with a clock that goes by executed instructions: a nanosecond each, whatever else the host does.
    COUNTED = "tcg, counting instructions"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image; what the guest writes to it is dropped at the end unless ``keeps_writes``.

    The guest mounts it at ``mountpoint`` (no colon, semicolon or space in it) before systemd starts; None: it does not.
    """

    image: Path
    mountpoint: str | None = None
    options: str = "ro"
    keeps_writes: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything QEMU has to know."""

    accelerator: Accelerator
    cpus: int
    memory: str
    kernel: Path
    # A unit that systemd is not to start by itself in this guest.
    not_at_boot: str | None
    # The first is the root; a disk's namespace number is its place in this list, from 1.
    disks: tuple[Disk, ...]


# Address randomisation defeats TCG's translation cache: an exec of a small program takes 11 ms without, 27-150 ms with.
KERNEL_WORDS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "nokaslr",
    "norandmaps",
    "audit=0",
    # Neither AppArmor nor, in its place, an SELinux without a policy: no test is about them, and each costs system calls.
    "lsm=landlock,lockdown,yama,bpf",
)
ROOT_WORDS = (
    f"root=PARTLABEL={disk.ROOT_LABEL}",
    "rootfstype=ext4",
    "rw",
    "rootwait",
    "fsck.mode=skip",
    "systemd.firstboot=off",
    "systemd.show_status=false",
    "init=/usr/lib/agentcgroup-vm/preinit",
)


def accelerator_words(accelerator: Accelerator) -> list[str]:
    """Return QEMU's options for an accelerator."""
    if accelerator is Accelerator.KVM:
        return ["-accel", "kvm", "-cpu", "host"]
    if accelerator is Accelerator.COUNTED:
        # sleep=off: a guest that waits for a timer does not wait for the host's clock. Without erms and fsrm the kernel
        # fills and copies eight bytes at a time, and not one, each of which counts: a page fault costs half.
        return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max,-erms,-fsrm"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def kernel_command_line(machine: Machine) -> str:
    """Return the kernel's command line; a word without a dot that the kernel does not know becomes preinit's environment."""
    disks = ";".join(
        f"{number}:{entry.mountpoint}:{entry.options}"
        for number, entry in enumerate(machine.disks, 1)
        if entry.mountpoint
    )
    # A kernel without a root panics once it has initialised itself: that is how KVM is tried.
    return " ".join(
        [
            *KERNEL_WORDS,
            *(ROOT_WORDS if machine.disks else ()),
            *([f"AGENTCGROUP_NOT_AT_BOOT={machine.not_at_boot}"] if machine.not_at_boot else []),
            *([f"AGENTCGROUP_DISKS={disks}"] if disks else []),
        ]
    )


def command_line(machine: Machine, *, console_fd: int, channel_fd: int) -> list[str]:
    """Return the words that start QEMU; the descriptors are connected stream sockets that it inherits."""
    words = [
        QEMU,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,vmport=off",
        *accelerator_words(machine.accelerator),
        "-smp",
        str(machine.cpus),
        "-m",
        machine.memory,
        "-kernel",
        str(machine.kernel),
        "-append",
        kernel_command_line(machine),
        "-chardev",
        f"socket,id=console,fd={console_fd}",
        "-serial",
        "chardev:console",
        "-device",
        "virtio-serial-pci,id=serial",
        "-chardev",
        f"socket,id=channel,fd={channel_fd}",
        "-device",
        f"virtserialport,bus=serial.0,chardev=channel,name={PORT_NAME}",
        "-device",
        "nvme,id=nvme,serial=agentcgroup",
    ]
    for number, entry in enumerate(machine.disks, 1):
        # QEMU separates options by commas and doubles the ones that belong to a value.
        image = str(entry.image).replace(",", ",,")
        words += [
            "-drive",
            f"if=none,id=disk{number},format=raw,cache=unsafe,snapshot={'off' if entry.keeps_writes else 'on'},file={image}",
            "-device",
            f"nvme-ns,drive=disk{number},bus=nvme,nsid={number}",
        ]
    return words


@dataclass(frozen=True, slots=True)
class Running:
    """A started QEMU with our ends of its sockets; ``errors`` is the file with what it said on stderr."""

    process: subprocess.Popen[bytes]
    console: socket.socket
    channel: socket.socket
    errors: Path


def start(machine: Machine, scratch: Path, *, held_fds: Sequence[int] = ()) -> Running:
    """Start QEMU, which dies when this process does and holds ``held_fds`` (a lock) for as long as it runs."""
    console, console_theirs = socket.socketpair()
    channel, channel_theirs = socket.socketpair()
    errors = scratch / "qemu.stderr"
    with console_theirs, channel_theirs, errors.open("wb") as sink:
        fds = (console_theirs.fileno(), channel_theirs.fileno(), *held_fds)
        process = subprocess.Popen(
            command_line(machine, console_fd=fds[0], channel_fd=fds[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
            pass_fds=fds,
            # snapshot=on keeps the guest's writes in an unlinked file there.
            env={**os.environ, "TMPDIR": str(scratch)},
            # A Ctrl-C at the terminal is for us; we stop the guest.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Running(process, console, channel, errors)
