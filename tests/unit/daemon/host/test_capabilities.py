"""The tier that a set of capabilities makes, and how the report says it."""

import json
from pathlib import Path

import pytest

from agentcgroup.daemon.host.capabilities import NAMES, TIER_NEEDS, tier, without_bpf
from agentcgroup.daemon.host.capabilities.probing import _capability
from agentcgroup.daemon.host.capabilities.report import render_json, render_text
from agentcgroup.daemon.host.capabilities.rows import ROWS
from agentcgroup.daemon.host.capabilities.trial import CONTROLLERS, Found
from agentcgroup.daemon.model import Capability, Tier

EVERYTHING = frozenset(NAMES)
ROOT = Path("/sys/fs/cgroup/agentcgroup.slice")


def host_with(available: frozenset[str]) -> tuple[Capability, ...]:
    found = {name: Found(name in available, f"tried {name}") for name in NAMES}
    return tuple(_capability(row, found) for row in ROWS)


def test_a_host_with_everything_reaches_the_highest_tier() -> None:
    assert tier(host_with(EVERYTHING)) is Tier.SCX


@pytest.mark.parametrize("name", TIER_NEEDS[Tier.CGROUP])
def test_without_one_need_of_the_first_tier_there_is_none(name: str) -> None:
    assert tier(host_with(EVERYTHING - {name})) is Tier.NONE


@pytest.mark.parametrize("name", TIER_NEEDS[Tier.BPF])
def test_without_one_bpf_need_cgroup_files_are_what_is_left(name: str) -> None:
    assert tier(host_with(EVERYTHING - {name})) is Tier.CGROUP


def test_with_bpf_switched_off_cgroup_files_are_what_is_left_and_the_costs_are_said() -> None:
    capabilities = without_bpf(host_with(EVERYTHING), "switched off")
    assert tier(capabilities) is Tier.CGROUP
    assert [one.name for one in capabilities] == list(NAMES)
    off = [one for one in capabilities if not one.available]
    assert {one.tier for one in off} == {Tier.BPF, Tier.SCX}
    assert all(one.detail == "switched off" and one.cost and one.remedy for one in off)


@pytest.mark.parametrize("name", TIER_NEEDS[Tier.SCX])
def test_without_sched_ext_or_fentry_the_bpf_tier_is_left(name: str) -> None:
    assert tier(host_with(EVERYTHING - {name})) is Tier.BPF


def test_what_no_tier_needs_takes_none_away() -> None:
    needed = {name for needs in TIER_NEEDS.values() for name in needs}
    assert tier(host_with(frozenset(needed))) is Tier.SCX


def test_names_are_unique_and_cover_every_need() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert EVERYTHING.issuperset(name for needs in TIER_NEEDS.values() for name in needs)
    assert EVERYTHING.issuperset(CONTROLLERS)


def test_what_is_missing_tells_its_cost_and_the_remedy_and_what_is_there_tells_neither() -> None:
    for capability in host_with(frozenset()):
        assert capability.cost and capability.remedy, capability.name
        assert "{" not in capability.remedy, capability.name
    for capability in host_with(EVERYTHING):
        assert capability.cost == "" and capability.remedy == "", capability.name


def test_what_could_not_be_tried_says_what_it_waits_for() -> None:
    one = next(row for row in ROWS if row.name == "memory_peak")
    capability = _capability(one, {})
    assert not capability.available
    assert capability.detail == "could not be tried without memory"
    assert capability.remedy == "get memory first"


def test_the_text_report_shows_every_capability_and_marks_what_the_tier_cannot_do_without() -> None:
    text = render_text(ROOT, host_with(EVERYTHING - {"memory", "favordynmods"}))
    assert "tier none" in text
    lines = {
        line.split()[1]: line.split()[0]
        for line in text.splitlines()
        if line.startswith(("  yes", "  no", "  NO"))
    }
    assert set(lines) == EVERYTHING
    assert lines["memory"] == "NO"
    assert lines["favordynmods"] == "no"
    assert lines["cpu"] == "yes"


def test_the_json_report_holds_every_capability() -> None:
    report = json.loads(render_json(ROOT, host_with(EVERYTHING - {"sched_ext"})))
    assert report["tier"] == "bpf"
    assert report["cgroup_root"] == str(ROOT)
    by_name = {one["name"]: one for one in report["capabilities"]}
    assert set(by_name) == EVERYTHING
    assert by_name["sched_ext"]["available"] is False and by_name["sched_ext"]["needed"] is True
    assert by_name["favordynmods"]["needed"] is False
