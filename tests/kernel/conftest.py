"""What cannot be tried on a kernel is not collected there: in the guest a skip is a failure."""

from agentcgroup.bpf import features

# Without sched_ext, what is left to test is that we say so: test_scheduler_tiers.py.
collect_ignore = (
    []
    if features.sched_ext().is_available
    else [
        "test_scheduler.py",
        "test_scheduler_daemon.py",
        "test_scheduler_lifecycle.py",
        "test_memory_guard.py",
        "test_memory_guard_modes.py",
    ]
)
