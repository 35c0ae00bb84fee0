"""Kernels by series: Debian's cloud kernels, unpacked into the cache with their modules on a disk of their own."""

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vm import disk
from vm.cache import Cache, hash_inputs
from vm.outcome import SetupError
from vm.packages import guest_apt, host_sources, require_debian
from vm.steps import run_logged, say, step

DEFAULT_SERIES = "7.3"
SERIES = ("6.12", "6.18", "7.3")
SUITES = ("trixie", "trixie-backports")
# Raise this when what is put into the layer changes.
LAYER_FORMAT = "2"

# linux-image-6.18.15+deb13-cloud-amd64, linux-binary-unsigned-7.3.4+deb13-cloud-amd64, ...-cloud-amd64-unsigned
PACKAGE_NAME = re.compile(
    r"^linux-(?P<part>image|binary|modules|base)(?P<before>-unsigned)?-(?P<version>\d+\.\d+[^-]*-cloud-amd64)(?P<after>-unsigned)?$"
)

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# The type and owner of the ELF note XEN_ELFNOTE_PHYS32_ENTRY: where a PVH kernel starts.
PVH_NOTE = struct.pack("<I4s", 18, b"Xen\0")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache: its release, the image to boot and the disk image with its modules."""

    release: str
    image: Path
    modules_disk: Path


@dataclass(frozen=True, slots=True)
class KernelPackages:
    """The packages that together hold one kernel's image and modules."""

    release: str
    packages: tuple[str, ...]


def version_order(release: str) -> tuple[int, ...]:
    """Return the numbers of a kernel release, so that 6.12.107 sorts after 6.12.95."""
    return tuple(int(number) for number in re.findall(r"\d+", release.split("-cloud-", 1)[0]))


def choose_packages(names: Iterable[str], series: str) -> KernelPackages | None:
    """Pick the newest complete kernel of a series; None when the series has none.

    Up to 6.18 ``linux-image-V`` holds image and modules; from 6.19 on ``linux-binary-V`` (or
    ``linux-binary-unsigned-V``) holds the image, ``linux-modules-V`` the modules and ``linux-base-V`` the list of
    what is built in. A version whose parts are not all there is passed over:
    mirrors drop the parts of old versions one by one.
    """
    versions: dict[str, dict[str, list[str]]] = {}
    for name in names:
        found = PACKAGE_NAME.match(name)
        if found and found["version"].startswith(f"{series}."):
            versions.setdefault(found["version"], {}).setdefault(found["part"], []).append(name)
    for release in sorted(versions, key=version_order, reverse=True):
        parts = {part: min(packages, key=len) for part, packages in versions[release].items()}
        if {"binary", "modules", "base"} <= parts.keys():
            return KernelPackages(release, (parts["binary"], parts["modules"], parts["base"]))
        if "image" in parts and "binary" not in parts and version_order(release) < (6, 19):
            return KernelPackages(release, (parts["image"],))
    return None


def ensure_kernel(cache: Cache, series: str) -> Kernel:
    """Return the kernel of ``series``, fetching the newest one when the cache has none.

    Once fetched it stays (and needs no network) until the cache is cleaned.
    """
    key = hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, series, *SUITES])
    place = cache.layer(
        f"kernel-{series}",
        key,
        lambda directory: _build(cache, series, directory),
        keep=2,
        on_wait=lambda: say(f"waiting for another vm/run that fetches kernel {series}"),
    )
    release = (place / "release").read_text().strip()
    return Kernel(release, place / "vmlinuz", place / "modules.img")


def _build(cache: Cache, series: str, directory: Path) -> None:
    mirror = host_sources(require_debian().codename)[0].uri
    with cache.lock("apt"):
        apt = guest_apt(cache, mirror, SUITES)
        apt.update()
        names = apt.names("linux-")
        chosen = choose_packages(names, series)
        if chosen is None:
            apt.update(force=True)
            names = apt.names("linux-")
            chosen = choose_packages(names, series)
        if chosen is None:
            raise SetupError(describe_missing_series(names, series))
        with (
            step(f"fetching kernel {chosen.release}"),
            tempfile.TemporaryDirectory(dir=directory) as scratch,
        ):
            _unpack(
                apt.download(chosen.packages, Path(scratch)),
                chosen.release,
                Path(scratch) / "tree",
                directory,
                cache.log("kernel"),
            )


def _unpack(archives: list[Path], release: str, tree: Path, directory: Path, log: Path) -> None:
    tree.mkdir()
    for archive in archives:
        run_logged(["dpkg", "-x", archive, tree], log)
    # Debian moved /lib into /usr, packages of both ages are on offer, and depmods of both ages look in either.
    modules = tree / "usr" / "lib" / "modules"
    if not modules.is_dir():
        modules.parent.mkdir(parents=True, exist_ok=True)
        (tree / "lib" / "modules").rename(modules)
    if (tree / "lib").is_dir():
        shutil.rmtree(tree / "lib")
    (tree / "lib").symlink_to("usr/lib")
    run_logged(["depmod", "-b", tree, "-a", release], log)
    images = [*tree.glob(f"boot/vmlinuz-{release}*"), *modules.glob("*/vmlinuz*")]
    if not images:
        raise SetupError(
            f"the packages of kernel {release} hold no kernel image. Next step: choose another series."
        )
    unpacked = unpack_vmlinux(images[0].read_bytes())
    if unpacked is None:
        shutil.copyfile(images[0], directory / "vmlinuz")
    else:
        (directory / "vmlinuz").write_bytes(unpacked)
    images[0].unlink()
    disk.make_image(directory / "modules.img", modules, log)
    (directory / "release").write_text(f"{release}\n")


def unpack_vmlinux(image: bytes) -> bytes | None:
    """Return the ELF kernel inside a bzImage; None when it is packed in another way than zstd or is no PVH kernel.

    QEMU starts it by its PVH entry, without firmware and without unpacking under emulation: 2 s less of every boot.
    Layout: Documentation/arch/x86/boot.rst, setup_sects, payload_offset and payload_length.
    """
    if image[0x202:0x206] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    # The packed kernel is followed by its unpacked size, four bytes that zstd does not know.
    payload = image[start : start + length - 4]
    if not payload.startswith(ZSTD_MAGIC):
        return None
    done = subprocess.run(["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, check=False)
    return done.stdout if done.returncode == 0 and PVH_NOTE in done.stdout else None


def describe_missing_series(names: Iterable[str], series: str) -> str:
    """Return the message for a series that Debian does not offer, with those it does."""
    found = {".".join(match["version"].split(".")[:2]) for match in map(PACKAGE_NAME.match, names) if match}
    usable = sorted((other for other in found if choose_packages(names, other)), key=version_order)
    return (
        f"Debian offers no complete cloud kernel of series {series} any more. Next step: choose one with --kernel;"
        f" on offer: {', '.join(usable) or 'none'}."
    )
