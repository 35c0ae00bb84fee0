"""Everything is tried once, and the answers are put into the table's rows."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Final

from agentcgroup.bpf import features
from agentcgroup.bpf.features import BpfFact
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import Cgroup2Mount, find_mount
from agentcgroup.daemon.host.capabilities import kernel
from agentcgroup.daemon.host.capabilities.rows import ROWS, TIER_NEEDS, Row
from agentcgroup.daemon.host.capabilities.trial import CONTROLLERS, Found, try_cgroups
from agentcgroup.daemon.model import Capability, Tier

__all__ = ["probe", "tier", "without_bpf"]


def probe(
    cgroup_root: str | PathLike[str], docker_socket: str = "/var/run/docker.sock"
) -> tuple[Capability, ...]:
    """Try everything, with sessions to live under `cgroup_root`, which need not exist yet.

    Makes throw-away cgroups and removes them; takes some milliseconds. Never raises for what the host cannot
    do.
    """
    found = _try_hierarchy(Path(cgroup_root))
    found["clone_into_cgroup"] = kernel.try_clone_into_cgroup()
    found["exit_status"] = kernel.try_exit_status()
    found["peer_pidfd"] = kernel.try_peer_pidfd()
    found["docker"] = kernel.try_docker(docker_socket)
    for name, fact in _BPF_FACTS.items():
        answer = fact()
        found[name] = Found(answer.is_available, answer.detail)
    return tuple(_capability(row, found) for row in ROWS)


def tier(capabilities: tuple[Capability, ...]) -> Tier:
    """The highest tier whose needs, and those of all lower tiers, are there."""
    available = {capability.name for capability in capabilities if capability.available}
    highest = Tier.NONE
    for level, needs in TIER_NEEDS.items():
        if not available.issuperset(needs):
            break
        highest = level
    return highest


def without_bpf(capabilities: tuple[Capability, ...], reason: str) -> tuple[Capability, ...]:
    """The same where no BPF program is to be loaded, for `reason`: what stands on programs costs what its absence costs."""
    return tuple(
        Capability(one.name, False, one.tier, reason, _ROW_OF[one.name].cost, "switch it on again")
        if one.tier is not Tier.CGROUP
        else one
        for one in capabilities
    )


_ROW_OF: Final = {row.name: row for row in ROWS}

_BPF_FACTS: Final[dict[str, Callable[[], BpfFact]]] = {
    "btf": features.type_information,
    "libbpf": features.libbpf,
    "bpf_load": features.program_load,
    "bpf_tracing": features.tracing,
    "bpf_ring_buffer": features.ring_buffer,
    "bpf_fentry": features.fentry,
    "bpf_task_work": features.task_work,
    "sched_ext": features.sched_ext,
}


def _capability(row: Row, found: dict[str, Found]) -> Capability:
    answer = found.get(row.name)
    if answer is None:
        # A question to a cgroup that could not be made, or about a controller that is not there.
        needed = "memory" if row.name.startswith(("memory_", "swap_")) else "cgroup2"
        detail = f"could not be tried without {needed}"
        return Capability(row.name, False, row.tier, detail, row.cost, f"get {needed} first")
    if answer.is_available:
        return Capability(row.name, True, row.tier, answer.detail)
    return Capability(
        row.name, False, row.tier, answer.detail, row.cost, row.remedy.format(mount=_mount_path())
    )


def _mount_path() -> str:
    try:
        return str(find_mount().path)
    except CgroupError:
        return "/sys/fs/cgroup"


def _try_hierarchy(cgroup_root: Path) -> dict[str, Found]:
    try:
        mount = find_mount()
    except CgroupError as error:
        return {"cgroup2": Found(False, str(error))}
    if mount.is_read_only:
        return {"cgroup2": Found(False, f"{mount.path} is mounted read-only")}
    found = try_cgroups(cgroup_root).found
    if found["cgroup2"].is_available:
        found["cgroup2"] = Found(True, f"mounted at {mount.path}; {found['cgroup2'].detail}")
    for name in CONTROLLERS:
        answer = found.get(name)
        if answer is not None and not answer.is_available and _is_on_v1(mount, name):
            found[name] = Found(False, f"bound to cgroup v1 on this host; {answer.detail}")
    options = mount.options
    found["favordynmods"] = Found(
        options.favordynmods,
        f"{mount.path} is mounted with{'' if options.favordynmods else 'out'} favordynmods",
    )
    return found


def _is_on_v1(mount: Cgroup2Mount, controller: str) -> bool:
    """Whether a v1 hierarchy holds the controller: /proc/cgroups then gives a hierarchy other than 0."""
    if not mount.is_hybrid:
        return False
    with open("/proc/cgroups", encoding="ascii") as lines:
        for line in lines:
            # name, hierarchy, number of cgroups, enabled
            name, hierarchy, *_ = line.split()
            if name == controller:
                return hierarchy != "0"
    return False
