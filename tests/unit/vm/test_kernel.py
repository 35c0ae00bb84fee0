"""Which packages make a kernel of a series, and what is inside its image."""

import shutil
import struct
import subprocess

import pytest

from vm.kernel import PVH_NOTE, choose_packages, describe_missing_series, unpack_vmlinux, version_order

# As a mirror shows them: old versions lose their parts one by one.
NAMES = [
    f"linux-{name}"
    for name in (
        "image-6.12.95+deb13-cloud-amd64",
        "image-6.12.107+deb13-cloud-amd64",
        "image-6.12.107+deb13-cloud-amd64-unsigned",
        "image-6.12.107+deb13-amd64",
        "headers-6.12.107+deb13-cloud-amd64",
        "image-6.18.9+deb13-cloud-amd64",
        "image-6.18.15+deb13-cloud-amd64",
        "image-7.1.13+deb13-cloud-amd64",
        "binary-7.1.13+deb13-cloud-amd64",
        "image-7.2.11+deb13-cloud-amd64",
        "binary-7.2.11+deb13-cloud-amd64",
        "binary-unsigned-7.2.11+deb13-cloud-amd64",
        "modules-7.2.11+deb13-cloud-amd64",
        "base-7.2.11+deb13-cloud-amd64",
        "image-7.2.12+deb13-cloud-amd64",
        "binary-7.2.12+deb13-cloud-amd64",
        "binary-unsigned-7.3.4+deb13-cloud-amd64",
        "modules-7.3.4+deb13-cloud-amd64",
        "base-7.3.4+deb13-cloud-amd64",
        "base-cloud-amd64",
        "image-cloud-amd64",
    )
]


def test_versions_are_ordered_by_number() -> None:
    releases = ["6.12.107+deb13-cloud-amd64", "6.12.95+deb13-cloud-amd64", "6.12.90+deb12.1-cloud-amd64"]
    assert sorted(releases, key=version_order) == releases[::-1]


@pytest.mark.parametrize(
    ("series", "release", "packages"),
    [
        ("6.12", "6.12.107+deb13-cloud-amd64", ["linux-image-6.12.107+deb13-cloud-amd64"]),
        ("6.18", "6.18.15+deb13-cloud-amd64", ["linux-image-6.18.15+deb13-cloud-amd64"]),
        # 7.2.12 has lost its modules; of 7.2.11 the signed image is taken.
        (
            "7.2",
            "7.2.11+deb13-cloud-amd64",
            [f"linux-{part}-7.2.11+deb13-cloud-amd64" for part in ("binary", "modules", "base")],
        ),
        (
            "7.3",
            "7.3.4+deb13-cloud-amd64",
            [f"linux-{part}-7.3.4+deb13-cloud-amd64" for part in ("binary-unsigned", "modules", "base")],
        ),
    ],
)
def test_the_newest_complete_kernel_of_a_series_is_chosen(
    series: str, release: str, packages: list[str]
) -> None:
    chosen = choose_packages(NAMES, series)
    assert chosen is not None
    assert (chosen.release, list(chosen.packages)) == (release, packages)


@pytest.mark.parametrize("series", ["7.1", "7.0", "6.1"])
def test_a_series_without_a_complete_kernel_has_none(series: str) -> None:
    assert choose_packages(NAMES, series) is None


def test_the_message_for_a_missing_series_offers_the_others() -> None:
    message = describe_missing_series(NAMES, "7.1")
    assert "series 7.1" in message
    assert "6.12, 6.18, 7.2, 7.3" in message


def bz_image(payload: bytes) -> bytes:
    """Make the parts of a bzImage that say where its payload is: one setup sector, payload 64 bytes into the rest."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + b"trailer"


def zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed; vm/run installs it")
    packed = subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return packed + struct.pack("<I", len(data))


def test_the_kernel_inside_an_image_is_unpacked() -> None:
    kernel = b"\x7fELF" + bytes(100) + PVH_NOTE + b"code"
    assert unpack_vmlinux(bz_image(zstd(kernel))) == kernel


def test_a_kernel_without_a_pvh_entry_is_booted_as_it_is() -> None:
    assert unpack_vmlinux(bz_image(zstd(b"\x7fELF without a note"))) is None


@pytest.mark.parametrize("image", [b"", b"MZ", bytes(4096), bz_image(b"\xfd7zXZ\0 packed by xz")])
def test_an_image_packed_otherwise_is_booted_as_it_is(image: bytes) -> None:
    assert unpack_vmlinux(image) is None
