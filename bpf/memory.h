/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What memory.bpf.c shares with the daemon: map values and knobs. Fixed widths and no padding; memory.py holds the same as
 * ctypes. Times in ns of CLOCK_MONOTONIC.
 */
#ifndef AGENTCGROUP_MEMORY_H
#define AGENTCGROUP_MEMORY_H

#include <linux/types.h>

/*
 * How one cgroup with everything below it grows, in map `memory_accounts` by cgroup id. Made by the daemon before the first
 * process; the kernel writes it once per charge batch (64 pages, or one huge page), so a figure is as old as `at_ns`.
 */
struct memory_account {
	/* The daemon's, fixed when the account is opened: what counts as over the soft limit where memory.high is not set. */
	__u64 soft_limit_bytes;

	/* The last batch, and what was used with it. What is freed is seen at the next batch. */
	__u64 at_ns;
	__u64 usage_bytes;
	__u64 batches;
	/* Net growth, as a moving average over about `memory_knobs.averaging_ns`; a shrinking cgroup counts as growing by 0. */
	__u64 rate_bytes_per_s;
	__u64 peak_rate_bytes_per_s;
	/* Stretches over the soft limit that have ended; the present one began at `over_soft_since_ns`, 0: not over it. */
	__u64 over_soft_ns;
	__u64 over_soft_since_ns;
	/* How often the soft limit was crossed upwards. */
	__u64 breaches;

	/* The kernel's own: begin of the stretch over which the next growth is taken, and usage then. */
	__u64 window_at_ns;
	__u64 window_usage_bytes;
};

/* What the programs did not see. */
struct memory_losses {
	/* A cgroup deeper than is walked. */
	__u64 depth;
};

/* Constants of memory.bpf.c, set before it is loaded. */
struct memory_knobs {
	/* Growth is taken over stretches of at least `window_ns` and averaged over about `averaging_ns`. */
	__u64 window_ns;
	__u64 averaging_ns;
};

#endif
