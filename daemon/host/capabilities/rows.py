"""The table of capabilities: what each absence costs the user, and what to do about it."""

from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.model import Tier

__all__ = ["NAMES", "ROWS", "TIER_NEEDS", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One capability: what its absence costs, and what to do to get it ("" where nothing can be done)."""

    name: str
    tier: Tier
    cost: str
    remedy: str


_DELEGATE: Final = (
    "run agentcgroupd as root or by its systemd unit; where cgroup v1 holds the controller, boot with"
    " systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
)
_NEWER: Final = "run kernel {} or newer"

ROWS: Final = (
    Row(
        "cgroup2",
        Tier.CGROUP,
        "nothing can be placed, limited or killed as one",
        "mount cgroup2: mount -t cgroup2 cgroup2 /sys/fs/cgroup, and make it writable for agentcgroupd",
    ),
    Row("memory", Tier.CGROUP, "no memory limit is enforced; one tool can take the host down", _DELEGATE),
    Row(
        "cpu",
        Tier.CGROUP,
        "no CPU cap or weight is enforced; tools share CPUs as any processes do",
        _DELEGATE,
    ),
    Row("pids", Tier.CGROUP, "no process limit is enforced; a fork bomb reaches the whole host", _DELEGATE),
    Row(
        "cgroup_kill",
        Tier.CGROUP,
        "a call is killed process by process, which a fork bomb can outrun",
        _NEWER.format("5.14"),
    ),
    Row("cgroup_freeze", Tier.CGROUP, "sessions and calls cannot be frozen", _NEWER.format("5.2")),
    Row(
        "cgroup_events",
        Tier.CGROUP,
        "the end of background processes is noticed only when asked for",
        "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
    ),
    Row(
        "xattr",
        Tier.CGROUP,
        "a restarted daemon does not know what it finds: sessions run on under their limits, unmanaged",
        "give agentcgroupd CAP_SYS_ADMIN",
    ),
    Row("memory_peak", Tier.CGROUP, "reports have no peak memory", _NEWER.format("5.19")),
    Row(
        "memory_oom_group",
        Tier.CGROUP,
        "running out of memory kills one process of a call and leaves the others",
        _NEWER.format("4.19"),
    ),
    Row(
        "swap_accounting",
        Tier.CGROUP,
        "a call over its memory limit swaps instead of ending; harmless on a host without swap",
        "boot without swapaccount=0, on a kernel with CONFIG_SWAP",
    ),
    Row("memory_reclaim", Tier.CGROUP, "idle memory cannot be taken back early", _NEWER.format("5.19")),
    Row("psi", Tier.CGROUP, "stalls are neither reported nor acted on", "boot with psi=1 (CONFIG_PSI)"),
    Row(
        "clone_into_cgroup",
        Tier.CGROUP,
        "a process that the daemon starts is moved after its birth, which takes longer",
        _NEWER.format("5.7"),
    ),
    Row(
        "exit_status",
        Tier.CGROUP,
        "how a call ended is known only when its parent is slow to reap it; else the verdict is unknown",
        "run kernel 6.15 or newer, or give the daemon CAP_NET_ADMIN in the host's namespaces",
    ),
    Row(
        "peer_pidfd",
        Tier.CGROUP,
        "a launcher is told from a process that took over its pid by its start time, not by the kernel",
        _NEWER.format("6.5"),
    ),
    Row(
        "favordynmods",
        Tier.CGROUP,
        "placing a running process waits for an RCU grace period: up to milliseconds a call on a busy host",
        "mount -o remount,favordynmods {mount} (every fork and exit of the host gets a little dearer)",
    ),
    Row(
        "docker",
        Tier.CGROUP,
        "containers with the label agentcgroup.session do not become sessions",
        "start dockerd, name its socket in docker.socket, or set docker.enabled = false",
    ),
    Row(
        "btf",
        Tier.BPF,
        "no BPF program can be loaded; events come from cgroup files",
        "run a kernel with CONFIG_DEBUG_INFO_BTF",
    ),
    Row(
        "libbpf", Tier.BPF, "no BPF program can be loaded; events come from cgroup files", "install libbpf1"
    ),
    Row(
        "bpf_load",
        Tier.BPF,
        "no BPF program can be loaded; events come from cgroup files",
        "give the daemon CAP_BPF and CAP_PERFMON, and let bpf(2) through its seccomp filter",
    ),
    Row(
        "bpf_tracing",
        Tier.BPF,
        "ends and out-of-memory are not seen in real time; reports lack victim, processes, forks and longest child",
        "give the daemon CAP_PERFMON, on a kernel that allows tracing programs",
    ),
    Row("bpf_ring_buffer", Tier.BPF, "events cannot reach the daemon in order", _NEWER.format("5.8")),
    Row(
        "bpf_fentry",
        Tier.SCX,
        "memory growth is seen by counters only, after it happened; reports lack the time that memory.high took",
        "run a kernel with CONFIG_FUNCTION_TRACER and trampolines that allows fentry programs",
    ),
    Row(
        "bpf_task_work",
        Tier.SCX,
        "a thread that takes page fault after page fault is held only when a tick finds it in user mode: some ticks late",
        _NEWER.format("6.18"),
    ),
    Row(
        "sched_ext",
        Tier.SCX,
        "the default scheduler enforces weights and caps; no hold of low-priority calls inside the kernel",
        "run a kernel with CONFIG_SCHED_CLASS_EXT (Debian: 6.16 or newer)",
    ),
)

NAMES: Final = tuple(row.name for row in ROWS)

# What each tier stands on; each includes the tiers before it. The rest makes a tier better, not possible.
TIER_NEEDS: Final = {
    Tier.CGROUP: ("cgroup2", "memory", "cpu", "pids", "cgroup_kill"),
    Tier.BPF: ("btf", "libbpf", "bpf_load", "bpf_tracing", "bpf_ring_buffer"),
    Tier.SCX: ("bpf_fentry", "sched_ext"),
}
