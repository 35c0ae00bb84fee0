"""Parsing of /proc/PID/cgroup and mountinfo, and this very process."""

import os
from pathlib import Path

import pytest

from agentcgroup.cgroups.errors import NotCgroup2, ProcessGone
from agentcgroup.cgroups.membership import (
    Membership,
    MountOptions,
    cgroup_of,
    find_mount,
    is_kernel_thread,
    parse_membership,
    parse_mounts,
)

HYBRID = """\
25 1 259:0 / / rw,relatime - ext4 /dev/root rw
31 25 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = (
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 "
    "rw,nsdelegate,favordynmods,memory_recursiveprot\n"
)
BIND = "90 23 0:26 /user.slice/a\\040b /mnt/my\\040cgroup ro,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/\n", Membership("/")),
        ("9:name=systemd:/x\n4:memory:/y\n0::/a.slice/b\n", Membership("/a.slice/b")),
        ("0::/call (deleted)\n", Membership("/call", is_deleted=True)),
        ("0::/../outside\n", Membership("/../outside")),
        ("0::/odd:name with: colons\n", Membership("/odd:name with: colons")),
    ],
)
def test_the_line_of_cgroup_v2_is_found_among_those_of_v1(text: str, expected: Membership) -> None:
    assert parse_membership(text) == expected


def test_a_host_without_cgroup_v2_has_no_such_line() -> None:
    with pytest.raises(ValueError, match="0::"):
        parse_membership("4:memory:/y\n")


def test_a_hybrid_host_is_recognised() -> None:
    (mount,) = parse_mounts(HYBRID)
    assert mount.path == Path("/sys/fs/cgroup/unified")
    assert mount.is_hybrid
    assert not mount.is_read_only
    assert mount.options == MountOptions()


def test_mount_options_are_read_from_the_file_system_and_not_from_the_mount() -> None:
    (mount,) = parse_mounts(UNIFIED)
    assert not mount.is_hybrid
    assert mount.options == MountOptions(favordynmods=True, nsdelegate=True, memory_recursiveprot=True)


def test_the_mount_of_the_whole_hierarchy_comes_before_a_bind_mount() -> None:
    first, second = parse_mounts(BIND + UNIFIED)
    assert first.root == "/"
    assert second.path == Path("/mnt/my cgroup")
    assert second.root == "/user.slice/a b"
    assert second.is_read_only


def test_no_mount_is_an_error_that_says_how_to_mount(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("25 1 259:0 / / rw,relatime - ext4 /dev/root rw\nnonsense\n\n")
    with pytest.raises(NotCgroup2, match="mount -t cgroup2"):
        find_mount(mountinfo)


def test_a_process_that_does_not_exist_is_gone() -> None:
    # One above the highest pid the kernel can give.
    for ask in (cgroup_of, is_kernel_thread):
        with pytest.raises(ProcessGone) as caught:
            ask(2**22 + 1)
        assert caught.value.path.startswith("/proc/4194305/")


def test_this_process_is_not_a_kernel_thread() -> None:
    assert is_kernel_thread(os.getpid()) is False
