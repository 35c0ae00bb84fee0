"""What the kernel says of schedulers."""

from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import attached_scheduler, possible_cpus


def test_no_scheduler_is_attached_while_the_kernel_says_disabled(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("disabled\n")
    assert attached_scheduler(tmp_path) is None


def test_an_attached_scheduler_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ops").write_text("other_1.0\n")
    (tmp_path / "state").write_text("enabled\n")
    assert attached_scheduler(tmp_path) == "other_1.0"


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-3,8-11\n", 12), ("0,5\n", 6)])
def test_possible_cpus_end_at_the_largest_number(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "possible").write_text(text)
    assert possible_cpus(tmp_path / "possible") == count
