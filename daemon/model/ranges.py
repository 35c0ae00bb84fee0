"""What quantities may be at least and at most, in requests and in the configuration: what kernel and history can carry."""

from typing import Final

# No program starts in less: who asks for less has forgotten the unit.
LEAST_DECLARED_BYTES: Final = 1 << 20
# 4 EiB: nothing larger is a memory size, and the kernel's and SQLite's 64 bits hold it.
MOST_BYTES: Final = 1 << 62
# The kernel refuses a cpu.max quota under 1 ms (min_cfs_quota_period); of a period of 100 ms that is 1 %.
LEAST_CPU_MILLI: Final = 10
MOST_CPU_MILLI: Final = 2**31 - 1
# cpu.weight, cgroup-v2.rst.
LEAST_WEIGHT: Final = 1
MOST_WEIGHT: Final = 10_000
# PID_MAX_LIMIT of 64-bit kernels; pids.max takes no more.
MOST_PIDS: Final = 4_194_304
# Ten years: no call is longer, and sums with the clock stay far from overflow.
MOST_DURATION_MS: Final = 3650 * 86_400_000
MOST_CALLS: Final = 1_000_000
