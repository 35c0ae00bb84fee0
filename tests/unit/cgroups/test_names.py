"""Names of cgroups."""

import pytest

from agentcgroup.cgroups.errors import BadFormat
from agentcgroup.cgroups.names import check_name


@pytest.mark.parametrize(
    "name", ["a", "call-1", "pytest -q", "ünïcode", "x.scope", ".hidden", "...", "memoryhog", "x" * 255]
)
def test_an_ordinary_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a/b", "/", "a\nb", "a\0b", "x" * 256, "ü" * 128,
        "cgroup.procs", "cgroup.new", "memory.max", "cpu.anything", "pids.x", "io.", "hugetlb.2MB.max", "irq.pressure",
    ],
)  # fmt: skip
def test_a_name_that_is_impossible_or_could_be_a_file_of_the_kernel_is_refused(name: str) -> None:
    with pytest.raises(BadFormat) as caught:
        check_name(name, "/sys/fs/cgroup/session")
    assert caught.value.path == "/sys/fs/cgroup/session"
    assert "cannot name a cgroup" in caught.value.reason
    assert len(caught.value.reason) < 300
