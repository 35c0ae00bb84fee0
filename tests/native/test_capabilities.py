"""Capabilities of the very host the tests run on: whatever it can do, probing leaves no trace."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.daemon.config import parse
from agentcgroup.daemon.host.capabilities import NAMES, probe, report
from agentcgroup.daemon.host.capabilities.trial import CONTROLLERS, nearest_cgroup, try_cgroups


def writable_mount() -> Path | None:
    try:
        mount = find_mount()
    except CgroupError:
        return None
    return mount.path if os.access(mount.path, os.W_OK) and not mount.is_read_only else None


MOUNT = writable_mount()
needs_cgroup2 = pytest.mark.skipif(MOUNT is None, reason="needs root and a writable cgroup2 mount")


@pytest.fixture
def top() -> Iterator[Cgroup]:
    assert MOUNT is not None
    with Cgroup.open(MOUNT) as cgroup:
        yield cgroup


@needs_cgroup2
def test_probing_a_root_that_does_not_exist_leaves_the_hierarchy_as_it_was(top: Cgroup) -> None:
    before = top.child_names(), top.read(files.CGROUP_SUBTREE_CONTROL)
    found = {one.name: one for one in probe(Path(top.path) / "agentcgroup-nowhere.slice" / "deeper")}
    assert tuple(found) == NAMES
    assert found["cgroup2"].available
    assert (top.child_names(), top.read(files.CGROUP_SUBTREE_CONTROL)) == before


@needs_cgroup2
def test_a_controller_is_available_only_where_its_limit_can_be_written(top: Cgroup) -> None:
    present = top.read(files.CGROUP_CONTROLLERS) or frozenset()
    found = try_cgroups(Path(top.path)).found
    for name in CONTROLLERS:
        if name not in present:
            assert not found[name].is_available
            assert "cgroup.controllers" in found[name].detail


@needs_cgroup2
def test_freezing_and_events_are_tried_on_the_host_itself(top: Cgroup) -> None:
    found = try_cgroups(Path(top.path)).found
    assert found["cgroup_freeze"].is_available, found["cgroup_freeze"].detail
    assert found["cgroup_events"].is_available, found["cgroup_events"].detail


def test_a_root_outside_of_the_cgroup_filesystem_is_reported_not_raised(tmp_path: Path) -> None:
    found = try_cgroups(tmp_path / "slice").found
    assert not found["cgroup2"].is_available
    assert "cgroup2" in found["cgroup2"].detail


@needs_cgroup2
def test_the_nearest_cgroup_is_the_place_itself_when_it_exists(top: Cgroup) -> None:
    with nearest_cgroup(Path(top.path)) as nearest:
        assert nearest.same_as(top)
    with nearest_cgroup(Path(top.path) / "no" / "such" / "place") as nearest:
        assert nearest.same_as(top)


def test_the_report_ends_with_0_exactly_when_limits_are_enforced(capsys: pytest.CaptureFixture[str]) -> None:
    status = report(parse('host.cgroup_root = "/agentcgroup-nowhere.slice"'), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["tier"] == "none") == (status == 1)
    assert found["cgroup_root"].endswith("/agentcgroup-nowhere.slice")
