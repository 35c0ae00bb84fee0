"""The held directory, on plain folders."""

import os
from pathlib import Path

import pytest

from agentcgroup.cgroups.directory import CGROUP2_SUPER_MAGIC, Directory, filesystem_magic
from agentcgroup.cgroups.errors import CgroupGone, NotCgroup2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.procs").touch()
    return tmp_path


def test_a_folder_that_is_not_on_cgroup2_is_refused(folder: Path) -> None:
    with pytest.raises(NotCgroup2, match="magic"):
        Directory.open(str(folder))


def test_a_path_that_does_not_exist_is_a_cgroup_that_is_gone(folder: Path) -> None:
    with pytest.raises(CgroupGone, match="there is no such cgroup"):
        Directory.open(str(folder / "nowhere"))


def test_a_file_is_not_a_cgroup(folder: Path) -> None:
    with pytest.raises(NotCgroup2, match="not a directory"):
        Directory.open(str(folder / "cgroup.procs"))


def test_the_magic_number_is_that_of_the_file_system(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert filesystem_magic(fd) not in (0, CGROUP2_SUPER_MAGIC)
    finally:
        os.close(fd)


def test_the_directory_descriptor_is_not_passed_to_other_programs(folder: Path) -> None:
    directory = Directory.open(str(folder), verify=False)
    assert not os.get_inheritable(directory.fileno())
    directory.close()


def test_a_long_file_is_read_whole(folder: Path) -> None:
    text = "".join(f"{number}\n" for number in range(20000))
    (folder / "long").write_text(text)
    directory = Directory.open(str(folder), verify=False)
    assert directory.read("long") == text


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 4095, 4096, 4097, 8192])
def test_a_file_of_any_length_around_a_page_is_read_whole(size: int, folder: Path) -> None:
    (folder / "file").write_text("x" * size)
    directory = Directory.open(str(folder), verify=False)
    assert directory.read("file") == "x" * size


def test_a_shorter_text_replaces_a_longer_one(folder: Path) -> None:
    (folder / "file").write_text("123456")
    directory = Directory.open(str(folder), verify=False)
    assert directory.write("file", "7")
    assert (folder / "file").read_text() == "7"


def test_a_missing_file_is_neither_read_nor_made(folder: Path) -> None:
    directory = Directory.open(str(folder), verify=False)
    assert directory.read("memory.max") is None
    assert directory.write("memory.max", "1") is False
    assert not (folder / "memory.max").exists()


def test_in_a_removed_directory_a_missing_file_means_that_the_cgroup_is_gone(tmp_path: Path) -> None:
    child = tmp_path / "child"
    child.mkdir()
    (child / "cgroup.procs").touch()
    directory = Directory.open(str(child), verify=False)
    (child / "cgroup.procs").unlink()
    child.rmdir()
    assert not directory.is_alive()
    for use in (lambda: directory.read("memory.max"), lambda: directory.write("memory.max", "1")):
        with pytest.raises(CgroupGone):
            use()


def test_a_closed_directory_is_gone_and_closing_twice_is_harmless(folder: Path) -> None:
    directory = Directory.open(str(folder), verify=False)
    directory.close()
    directory.close()
    assert directory.fileno() == -1
    assert not directory.is_alive()
    with pytest.raises(CgroupGone):
        directory.read("cgroup.procs")
    with pytest.raises(CgroupGone):
        directory.child_names()


def test_a_dropped_directory_does_not_leak_its_descriptor(folder: Path) -> None:
    fd = Directory.open(str(folder), verify=False).fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_symbolic_link_in_a_cgroup_is_not_followed(folder: Path) -> None:
    (folder / "link").symlink_to("/")
    directory = Directory.open(str(folder), verify=False)
    assert directory.child_names() == []
    with pytest.raises(OSError, match="link"):
        directory.open_child("link")
