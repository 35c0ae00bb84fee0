"""What a cgroup consumed, as daemon and SDK both hold it: the message Usage of v1/types.proto as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cgroup consumed. None: this kernel does not say."""

    memory_current_bytes: int | None = None
    memory_peak_bytes: int | None = None
    swap_peak_bytes: int | None = None
    cpu_usage_us: int | None = None
    cpu_user_us: int | None = None
    cpu_system_us: int | None = None
    cpu_throttled_us: int | None = None
    pids_current: int | None = None
    pids_peak: int | None = None
    pids_max_events: int | None = None
    memory_high_events: int | None = None
    memory_max_events: int | None = None
    oom_kill_events: int | None = None
    # PSI totals: wall time in which some task waited for memory, or for a CPU.
    memory_stall_us: int | None = None
    cpu_stall_us: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    # From the kernel's events, which a host may not have. Time in which memory.high held threads back, added up over
    # threads; processes that ever ran in it, those forked in it, and the longest life of one of these that has ended.
    memory_throttled_us: int | None = None
    processes: int | None = None
    forks: int | None = None
    longest_child_us: int | None = None
    # From the memory program, which sees charges: net growth now and at its fastest, and time over memory.high or, without
    # it, over the declared need.
    memory_growth_bytes_per_s: int | None = None
    memory_growth_peak_bytes_per_s: int | None = None
    memory_over_soft_us: int | None = None
    # Time for which the guard held its threads for the sake of other sessions, added up over threads.
    memory_held_us: int | None = None
