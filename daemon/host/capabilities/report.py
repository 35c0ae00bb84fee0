"""`agentcgroupd --check-host`: what this host can do, for people and for machines."""

import json
import platform
from pathlib import Path
from typing import Final

from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.host.capabilities.probing import probe, tier
from agentcgroup.daemon.host.capabilities.rows import TIER_NEEDS
from agentcgroup.daemon.host.prepare import DEFAULT_ROOT
from agentcgroup.daemon.model import Capability, Tier

__all__ = ["render_json", "render_text", "report"]

_TIER_MEANS: Final = {
    Tier.NONE: "calls can be placed at most, nothing is enforced",
    Tier.CGROUP: "limits are enforced by cgroup files",
    Tier.BPF: "limits are enforced by cgroup files, events come from the kernel in real time",
    Tier.SCX: "everything, with agent-aware scheduling and memory-driven holds inside the kernel",
}


def report(config: Config, as_json: bool = False) -> int:
    """Prints what this host can do; the exit status is 0 when limits are enforced here, 1 when not.

    Makes throw-away cgroups where the sessions would live and removes them.
    """
    root = _cgroup_root(config)
    capabilities = probe(root, config.docker.socket)
    render = render_json if as_json else render_text
    print(render(root, capabilities))
    return 0 if tier(capabilities) is not Tier.NONE else 1


def _cgroup_root(config: Config) -> Path:
    try:
        mount = find_mount().path
    except CgroupError:
        mount = Path("/sys/fs/cgroup")
    return mount / (config.host.cgroup_root or DEFAULT_ROOT).strip("/")


def _is_needed(capability: Capability) -> bool:
    return any(capability.name in needs for needs in TIER_NEEDS.values())


def render_json(cgroup_root: Path, capabilities: tuple[Capability, ...]) -> str:
    """One JSON object; `needed` says that the capability's tier cannot do without it."""
    content = {
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
    return json.dumps(content, indent=2)


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
