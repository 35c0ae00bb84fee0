"""What this host can do, found by trying, with what each absence costs the user and what to do about it.

Used at start, by `agentcgroupd --check-host` and by GetHost. Names are metric labels, so the list is closed.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentcgroup.bpf import features
from agentcgroup.bpf.features import BpfFact
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import Cgroup2Mount, find_mount
from agentcgroup.daemon.host.exits import ExitSource, probe_exit_source
from agentcgroup.daemon.host.trial import Found, try_cgroups
from agentcgroup.daemon.model import Capability, Tier

__all__ = ["NAMES", "TIER_NEEDS", "probe", "tier"]

_SYS_CLONE3: Final = 435
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000
_CLONE_ARGS_SIZE: Final = 88
_SO_PEERPIDFD: Final = 77


@dataclass(frozen=True, slots=True)
class _Row:
    """One capability: what its absence costs, and what to do to get it ("" where nothing can be done)."""

    name: str
    tier: Tier
    cost: str
    remedy: str


_DELEGATE: Final = (
    "run agentcgroupd as root or by its systemd unit; on a hybrid host boot with cgroup v2 alone"
)
_NEWER: Final = "run kernel {} or newer"

_ROWS: Final = (
    _Row(
        "cgroup2",
        Tier.CGROUP,
        "nothing can be placed, limited or killed as one",
        "mount cgroup2: mount -t cgroup2 cgroup2 /sys/fs/cgroup, and make it writable for agentcgroupd",
    ),
    _Row("memory", Tier.CGROUP, "no memory limit is enforced; one tool can take the host down", _DELEGATE),
    _Row(
        "cpu",
        Tier.CGROUP,
        "no CPU cap or weight is enforced; tools share CPUs as any processes do",
        _DELEGATE,
    ),
    _Row("pids", Tier.CGROUP, "no process limit is enforced; a fork bomb reaches the whole host", _DELEGATE),
    _Row(
        "cgroup_kill",
        Tier.CGROUP,
        "a call is killed process by process, which a fork bomb can outrun",
        _NEWER.format("5.14"),
    ),
    _Row("cgroup_freeze", Tier.CGROUP, "sessions and calls cannot be frozen", _NEWER.format("5.2")),
    _Row(
        "cgroup_events",
        Tier.CGROUP,
        "the end of background processes is noticed only when asked for",
        "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
    ),
    _Row(
        "xattr", Tier.CGROUP, "a restarted daemon cannot tell which call a cgroup was", _NEWER.format("5.7")
    ),
    _Row("memory_peak", Tier.CGROUP, "reports have no peak memory", _NEWER.format("5.19")),
    _Row(
        "memory_oom_group",
        Tier.CGROUP,
        "running out of memory kills one process of a call and leaves the others",
        _NEWER.format("4.19"),
    ),
    _Row(
        "swap_accounting",
        Tier.CGROUP,
        "a call over its memory limit swaps instead of ending; harmless on a host without swap",
        "boot without swapaccount=0, on a kernel with CONFIG_SWAP",
    ),
    _Row("memory_reclaim", Tier.CGROUP, "idle memory cannot be taken back early", _NEWER.format("5.19")),
    _Row("psi", Tier.CGROUP, "stalls are neither reported nor acted on", "boot with psi=1 (CONFIG_PSI)"),
    _Row(
        "clone_into_cgroup",
        Tier.CGROUP,
        "a process that the daemon starts is moved after its birth, which takes longer",
        _NEWER.format("5.7"),
    ),
    _Row(
        "exit_status",
        Tier.CGROUP,
        "how a call ended is known only when its parent is slow to reap it; else the verdict is unknown",
        "run kernel 6.15 or newer, or give the daemon CAP_NET_ADMIN in the host's namespaces",
    ),
    _Row(
        "peer_pidfd",
        Tier.CGROUP,
        "a launcher is told from a process that took over its pid by its start time, not by the kernel",
        _NEWER.format("6.5"),
    ),
    _Row(
        "favordynmods",
        Tier.CGROUP,
        "placing a running process waits for an RCU grace period: up to milliseconds a call on a busy host",
        "mount -o remount,favordynmods {mount} (every fork and exit of the host gets a little dearer)",
    ),
    _Row(
        "btf",
        Tier.BPF,
        "no BPF program can be loaded; events come from cgroup files",
        "run a kernel with CONFIG_DEBUG_INFO_BTF",
    ),
    _Row(
        "libbpf", Tier.BPF, "no BPF program can be loaded; events come from cgroup files", "install libbpf1"
    ),
    _Row(
        "bpf_load",
        Tier.BPF,
        "no BPF program can be loaded; events come from cgroup files",
        "give the daemon CAP_BPF and CAP_PERFMON, and let bpf(2) through its seccomp filter",
    ),
    _Row(
        "bpf_tracing",
        Tier.BPF,
        "exec, exit and out-of-memory are not seen in real time",
        "give the daemon CAP_PERFMON, on a kernel that allows tracing programs",
    ),
    _Row("bpf_ring_buffer", Tier.BPF, "events cannot reach the daemon in order", _NEWER.format("5.8")),
    _Row(
        "bpf_fentry",
        Tier.SCX,
        "memory growth is seen by counters only, after it happened",
        "run a kernel with CONFIG_FUNCTION_TRACER and trampolines that allows fentry programs",
    ),
    _Row(
        "sched_ext",
        Tier.SCX,
        "the default scheduler enforces weights and caps; no hold of low-priority calls inside the kernel",
        "run a kernel with CONFIG_SCHED_CLASS_EXT (Debian: 6.16 or newer)",
    ),
)

NAMES: Final = tuple(row.name for row in _ROWS)

# What each tier stands on; each includes the tiers before it. The rest makes a tier better, not possible.
TIER_NEEDS: Final = {
    Tier.CGROUP: ("cgroup2", "memory", "cpu", "pids", "cgroup_kill"),
    Tier.BPF: ("btf", "libbpf", "bpf_load", "bpf_tracing", "bpf_ring_buffer"),
    Tier.SCX: ("bpf_fentry", "sched_ext"),
}


def probe(cgroup_root: Path) -> tuple[Capability, ...]:
    """Try everything, with sessions to live under `cgroup_root`, which need not exist yet.

    Makes throw-away cgroups and removes them; takes some milliseconds. Never raises for what the host cannot
    do.
    """
    found = _try_hierarchy(cgroup_root)
    found["clone_into_cgroup"] = _try_clone_into_cgroup()
    found["exit_status"] = _try_exit_status()
    found["peer_pidfd"] = _try_peer_pidfd()
    for name, fact in _BPF_FACTS.items():
        answer = fact()
        found[name] = Found(answer.is_available, answer.detail)
    return tuple(_capability(row, found) for row in _ROWS)


def tier(capabilities: tuple[Capability, ...]) -> Tier:
    """The highest tier whose needs, and those of all lower tiers, are there."""
    available = {capability.name for capability in capabilities if capability.available}
    highest = Tier.NONE
    for level, needs in TIER_NEEDS.items():
        if not available.issuperset(needs):
            break
        highest = level
    return highest


_BPF_FACTS: Final[dict[str, Callable[[], BpfFact]]] = {
    "btf": features.type_information,
    "libbpf": features.libbpf,
    "bpf_load": features.program_load,
    "bpf_tracing": features.tracing,
    "bpf_ring_buffer": features.ring_buffer,
    "bpf_fentry": features.fentry,
    "sched_ext": features.sched_ext,
}


def _capability(row: _Row, found: dict[str, Found]) -> Capability:
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
    for name in ("memory", "cpu", "pids"):
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


def _try_clone_into_cgroup() -> Found:
    """clone3(2) into a descriptor that is not open: EBADF from a kernel that knows the flag, and no child."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct clone_args: flags first, cgroup last; a number no descriptor can have, as the limit is lower.
    arguments = struct.pack("=11Q", _CLONE_INTO_CGROUP, *[0] * 9, 0x7FFF_FFFF)
    libc.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_long(_CLONE_ARGS_SIZE))
    code = ctypes.get_errno()
    if code == errno.EBADF:
        return Found(True, "clone3 knows CLONE_INTO_CGROUP")
    return Found(False, f"clone3 with CLONE_INTO_CGROUP: {os.strerror(code)}")


def _try_exit_status() -> Found:
    match probe_exit_source():
        case ExitSource.PIDFD_INFO:
            return Found(True, "the kernel keeps the exit status with the pidfd")
        case ExitSource.PROC_CONNECTOR:
            return Found(
                True, "from the process connector (the kernel keeps none with the pidfd before 6.15)"
            )
        case ExitSource.ZOMBIE:
            return Found(False, "neither pidfds nor the process connector tell it")


def _try_peer_pidfd() -> Found:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            pidfd = ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            return Found(False, f"SO_PEERPIDFD: {error.strerror}")
    os.close(pidfd)
    return Found(True, "sockets give a pidfd of their peer")
