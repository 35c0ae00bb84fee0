"""`agentcgroupd --check-host`: what this host can do, for people and for machines."""

import json
import platform
from pathlib import Path
from typing import Final

from agentcgroup.daemon.host.capabilities import TIER_NEEDS, probe, tier
from agentcgroup.daemon.model import Capability, Tier

__all__ = ["check_host", "render_json", "render_text"]

_TIER_MEANS: Final = {
    Tier.NONE: "calls can be placed at most, nothing is enforced",
    Tier.CGROUP: "limits are enforced by cgroup files",
    Tier.BPF: "limits are enforced by cgroup files, events come from the kernel in real time",
    Tier.SCX: "everything, with agent-aware scheduling and memory-driven holds inside the kernel",
}


def check_host(cgroup_root: Path, as_json: bool = False) -> tuple[str, int]:
    """The report and the exit status: 0 when limits are enforced on this host, 1 when not.

    Makes throw-away cgroups under `cgroup_root`, or where it would be, and removes them.
    """
    capabilities = probe(cgroup_root)
    render = render_json if as_json else render_text
    return render(cgroup_root, capabilities), 0 if tier(capabilities) is not Tier.NONE else 1


def _is_needed(capability: Capability) -> bool:
    return any(capability.name in needs for needs in TIER_NEEDS.values())


def render_json(cgroup_root: Path, capabilities: tuple[Capability, ...]) -> str:
    """One JSON object; `needed` says that the capability's tier cannot do without it."""
    report = {
        "kernel": platform.release(),
        "tier": tier(capabilities),
        "cgroup_root": str(cgroup_root),
        "capabilities": [
            {
                "name": one.name,
                "available": one.available,
                "needed": _is_needed(one),
                "tier": one.tier,
                "detail": one.detail,
                "cost": one.cost,
                "remedy": one.remedy,
            }
            for one in capabilities
        ],
    }
    return json.dumps(report, indent=2)


def render_text(cgroup_root: Path, capabilities: tuple[Capability, ...]) -> str:
    """Lines for a terminal: each tier with its capabilities, what is missing with its cost and remedy."""
    reached = tier(capabilities)
    lines = [
        f"kernel {platform.release()}, sessions under {cgroup_root}",
        f"tier {reached}: {_TIER_MEANS[reached]}",
    ]
    for level in TIER_NEEDS:
        lines += ["", f"{level} tier"]
        for one in capabilities:
            if one.tier is level:
                lines += _lines(one)
    return "\n".join(lines)


def _lines(capability: Capability) -> list[str]:
    missing = "NO" if _is_needed(capability) else "no"
    mark = "yes" if capability.available else missing
    lines = [f"  {mark:<4}{capability.name:<18}{capability.detail}"]
    if capability.cost:
        lines.append(f"{'':24}costs: {capability.cost}")
    if capability.remedy:
        lines.append(f"{'':24}to do: {capability.remedy}")
    return lines
