"""Choosing where to run: from what the kernel says of its cgroup2 mount."""

from pathlib import Path

from demo import host

V2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def tree(top: Path, controllers: str) -> str:
    """A directory that looks like a cgroup2 mount as far as it is read, and its line of mountinfo."""
    (top / "cgroup.controllers").write_text(controllers)
    return f"31 24 0:27 / {top} rw - cgroup2 cgroup2 rw"


def test_the_mount_is_found_among_others() -> None:
    assert host.find_cgroup2(f"{V1}\n{V2}\n") == (Path("/sys/fs/cgroup"), True)


def test_a_read_only_mount_is_known_as_such() -> None:
    assert host.find_cgroup2(V2.replace(" rw,nosuid", " ro,nosuid")) == (Path("/sys/fs/cgroup"), False)
    assert (
        host.problem_of_cgroups(V2.replace(" rw,nosuid", " ro,nosuid"))
        == "/sys/fs/cgroup is mounted read-only"
    )


def test_a_mount_point_with_a_blank_is_read() -> None:
    assert host.find_cgroup2(V2.replace("/sys/fs/cgroup", "/my\\040cgroups")) == (Path("/my cgroups"), True)


def test_without_cgroup_v2_the_problem_is_named() -> None:
    assert host.problem_of_cgroups(f"{V1}\n") == "no cgroup v2 hierarchy is mounted"


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    assert host.problem_of_cgroups(tree(tmp_path, "cpuset pids\n")) == (
        f"cgroup v2 at {tmp_path} offers no cpu, memory controller"
    )


def test_a_kernel_without_a_needed_file_is_told_by_the_file(tmp_path: Path) -> None:
    assert host.problem_of_cgroups(tree(tmp_path, "cpu memory pids\n")) == (
        "this kernel has no cgroup.kill (it came with Linux 5.14)"
    )
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_mount_that_is_gone_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    assert "No such file or directory" in host.problem_of_cgroups(
        f"31 24 0:27 / {gone} rw - cgroup2 cgroup2 rw"
    )


def test_the_choice_on_this_very_host_has_a_reason() -> None:
    assert host.choose().why
