"""The ground the sessions stand on: the root cgroup with its controllers, found or made before the daemon serves anybody."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import Cgroup2Mount, find_mount
from agentcgroup.cgroups.subtree import Subtree
from agentcgroup.cgroups.values import MAX, CpuMax
from agentcgroup.daemon.config import Config, HostConfig
from agentcgroup.daemon.host.groups import AGENT, CONTROLLERS, COUNTED
from agentcgroup.daemon.host.kept import read_record
from agentcgroup.daemon.host.mount_options import favor_moves
from agentcgroup.daemon.model.ranges import LEAST_DECLARED_BYTES
from agentcgroup.proto.quantity import format_size

log = logging.getLogger("agentcgroup.host")

DEFAULT_ROOT: Final = "agentcgroup.slice"


class HostUnfit(Exception):
    """This host cannot run the daemon as configured; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The root cgroup, held; `controllers` are enabled for its children."""

    root: Cgroup
    mount: Path
    controllers: frozenset[str]


def prepare(config: Config) -> Ground:
    """Finds or makes the root and enables what there is of memory, cpu and pids down to it. Raises HostUnfit."""
    try:
        mount = find_mount()
        if mount.is_read_only:
            raise HostUnfit(
                f"{mount.path} is mounted read-only: remount it read-write, or run the daemon on the host"
            )
        if config.host.favordynmods and not config.daemon.dry_run:
            _favor_moves(mount)
        path = mount.path / (config.host.cgroup_root or DEFAULT_ROOT).strip("/")
        subtree = Subtree.open_or_create(path, CONTROLLERS | COUNTED)
        root, controllers = subtree.root, subtree.enabled_controllers() & (CONTROLLERS | COUNTED)
    except CgroupError as error:
        raise HostUnfit(
            f"{error}. The daemon needs root and a writable cgroup v2 hierarchy (`agentcgroupd --check-host`)"
        ) from error
    missing = CONTROLLERS - controllers
    if missing and config.host.unenforced == "refuse":
        raise HostUnfit(
            f"cgroup v2 at {mount.path} offers no {', '.join(sorted(missing))} controller"
            + (" (they are bound to cgroup v1: boot with cgroup_no_v1=all)" if mount.is_hybrid else "")
            + '. To run without these limits all the same, set host.unenforced = "run"'
        )
    if missing:
        log.warning(
            "not enforced on this host: %s (no such controllers in cgroup v2)", ", ".join(sorted(missing))
        )
    return Ground(root, mount.path, controllers)


def _favor_moves(mount: Cgroup2Mount) -> None:
    try:
        if favor_moves(mount):
            log.info(
                "%s has the mount option favordynmods now: processes are placed without waiting", mount.path
            )
    except OSError as error:
        log.warning(
            "placing a process takes milliseconds: the mount option favordynmods is missing: %s", error
        )


def memory_capacity(config: HostConfig, total_bytes: int) -> int:
    """What all sessions together may use of a host with `total_bytes`, in bytes. Raises HostUnfit when that is nothing."""
    if config.memory > total_bytes:
        log.warning(
            "host.memory, %s, is more than this host has: its %s count",
            format_size(config.memory),
            format_size(total_bytes),
        )
    if config.memory:
        return min(config.memory, total_bytes)
    left_bytes = total_bytes - config.memory_reserve
    if left_bytes < LEAST_DECLARED_BYTES:
        raise HostUnfit(
            f"host.memory_reserve, {format_size(config.memory_reserve)}, leaves nothing for sessions of the "
            f"{format_size(total_bytes)} of this host: make it smaller, or set host.memory"
        )
    return left_bytes


def limit_root(root: Cgroup, memory_capacity_bytes: int, config: Config) -> None:
    """What all sessions together may use: admission keeps to it, and so does the kernel."""
    current = root.read(files.MEMORY_CURRENT) or 0
    if current > memory_capacity_bytes:
        # What an earlier daemon left must not be killed for a changed configuration.
        log.warning(
            "sessions use %d MiB, more than the %d MiB of host.memory: the limit comes with a start at which they use less",
            current >> 20,
            memory_capacity_bytes >> 20,
        )
    else:
        root.write_if_present(files.MEMORY_MAX, memory_capacity_bytes)
    # The sum of what is promised below, which an earlier daemon may have left.
    root.write_if_present(files.MEMORY_LOW, 0)
    root.write_if_present(files.PIDS_MAX, config.host.pids_max)
    cpu = config.host.cpu
    root.write_if_present(files.CPU_MAX, CpuMax(cpu * 100, 100_000) if cpu else CpuMax(MAX, 100_000))


def sweep(root: Cgroup) -> None:
    """Removes what an earlier daemon left and nobody can take over, for want of a record (host/kept.py).

    Of such sessions those without a live agent go, with what their calls left running. One whose agent is alive is left
    alone: its limits hold, but this daemon does not follow it.
    """
    for name in root.child_names():
        with root.open_child(name) as session:
            if AGENT not in session.child_names():
                if not session.is_populated():
                    session.try_remove_tree()
                continue
            if read_record(session) is not None:
                continue
            with session.open_child(AGENT) as agent:
                alive = agent.is_populated()
            if alive:
                log.warning(
                    "session %s of an earlier daemon has no record and a live agent: its limits hold, it is not followed."
                    " Next step: end the agent and remove the cgroup %s",
                    name,
                    session.path,
                )
            else:
                log.info("removing session %s of an earlier daemon: its agent has ended", name)
                session.remove_tree(5.0)
