"""The programs of this host that building and booting need: what is missing is installed by apt."""

import importlib.util
import os
import re
import shutil
import subprocess

from vm.cache import Cache
from vm.outcome import SetupError
from vm.packages import Apt, Source, host_sources, require_debian
from vm.steps import step

QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
# 7.2 corrupts guest memory with two TCG CPUs under Linux 6.12; 10.0.2 booted every kernel tried.
QEMU_LEAST_MAJOR = 10

# Program that must be found, and the package that brings it.
TOOLS = (
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("depmod", "kmod"),
    ("zstd", "zstd"),
    ("cc", "gcc"),
    ("make", "make"),
)
# Administrators' programs live here, and not every root shell has them on PATH.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def major_version(text: str) -> int | None:
    """Return the first number of a version like ``1:10.0.2+ds`` or of ``QEMU emulator version 7.2.22``."""
    found = re.search(r"(?:^|version )(?:\d+:)?(\d+)\.", text.strip())
    return int(found.group(1)) if found else None


def qemu_version() -> str | None:
    """Return the first line of ``qemu-system-x86_64 --version``; None when it is not installed."""
    if shutil.which(QEMU) is None:
        return None
    done = subprocess.run(
        [QEMU, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()[0] if done.stdout else None


def qemu_is_usable(version: str | None) -> bool:
    """Whether this QEMU is new enough."""
    major = major_version(version) if version else None
    return major is not None and major >= QEMU_LEAST_MAJOR


def ensure_tools(cache: Cache) -> None:
    """Install the programs that building and booting need and that this host does not have."""
    os.environ["PATH"] = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":" + SYSTEM_PATH
    missing = sorted({package for tool, package in TOOLS if shutil.which(tool) is None})
    if "gcc" in missing:
        missing.append("libc6-dev")
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    if not missing and qemu_is_usable(qemu_version()):
        return
    with cache.lock("apt"):
        release = require_debian()
        sources = host_sources(release.codename)
        apt = Apt(cache.path("apt", "host"), tuple(sources), cache.log("apt"))
        apt.update()
        if missing:
            with step(f"installing {', '.join(missing)}"):
                apt.install(missing)
        if not qemu_is_usable(qemu_version()):
            _install_qemu(cache, apt, release.codename)


def _install_qemu(cache: Cache, apt: Apt, codename: str) -> None:
    """Install QEMU from the host's own suites if they have one new enough, else from their backports."""
    suite = None
    offers = apt.candidates(QEMU_PACKAGE)
    if not any(qemu_is_usable(version) for version, _ in offers):
        suite = f"{codename}-backports"
        apt = Apt(cache.path("apt", "backports"), (*apt.sources, Source(apt.sources[0].uri, suite)), apt.log)
        apt.update()
        offers = apt.candidates(QEMU_PACKAGE)
    usable = next((offer for offer in offers if qemu_is_usable(offer[0])), None)
    if usable is None:
        known = ", ".join(f"{version} ({where})" for version, where in offers) or "none"
        raise SetupError(
            f"QEMU {QEMU_LEAST_MAJOR} or newer is needed; on offer here: {known}."
            f" Next step: install a newer {QEMU_PACKAGE} by hand."
        )
    with step(f"installing {QEMU_PACKAGE} {usable[0]} from {usable[1]}"):
        apt.install([QEMU_PACKAGE], suite=suite)
    if not qemu_is_usable(qemu_version()):
        raise SetupError(
            f"{QEMU} on PATH is still older than {QEMU_LEAST_MAJOR} ({qemu_version()})."
            " Next step: remove it, or put the new one first on PATH."
        )
