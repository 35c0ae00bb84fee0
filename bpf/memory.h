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

	/* The kernel's own: begin of the stretch over which the next growth is taken, usage then, and where it is counted. */
	__u64 window_at_ns;
	__u64 window_usage_bytes;
	__u64 counter;

	/*
	 * Guard, of a call: holds that were asked for and how long, holds that took place and how long, the time added up over
	 * threads, and how often none was asked for because `memory_numbers.hold_total_ns` was used up.
	 */
	__u64 asked_ns;
	__u64 holds;
	__u64 held_ns;
	__u64 holds_refused;
	__u64 told_at_ns;
	/* The kernel's own: until when the holds of all its threads, one after the other, would last; the latest was asked for. */
	__u64 paid_until_ns;
	__u64 asked_at_ns;

	/* Guard, of a session: its waits for memory that it shares with others. */
	__u64 stalls;
	__u64 stalled_ns;
	__u64 stall_last_ns;
	__u64 stalled_until_ns;

	/* Guard, of a session: what it has been promised, by that `memory_numbers.revision`. */
	__u64 promised_bytes;
	__u64 promised_revision;
};

/*
 * What a session is guarded by, in map `memory_guards` by the cgroup id of the session: the daemon's. `rank`: sessions of a
 * smaller one are slowed for it. `protection_bytes`: what it has been promised.
 */
struct memory_guard {
	__u64 protection_bytes;
	__u32 rank;
	__u32 reserved;
};

/* The daemon's numbers for all sessions, in the only entry of `memory_numbers`. */
struct memory_numbers {
	/* The cgroup whose memory.max they share; it has an account. */
	__u64 shared_id;
	/* With more than this free nobody can be short: all protections and the margin. 0: the guard is off. */
	__u64 watch_bytes;
	/* Room beside what is promised and not yet used. */
	__u64 margin_bytes;
	/* A session counts as active so long after its last charge. */
	__u64 active_ns;
	/* A wait for memory of this length is answered with the longest hold; it counts for `stall_linger_ns`. */
	__u64 stall_full_ns;
	__u64 stall_linger_ns;
	/* Longest hold for one batch, 0: nobody is held; and all holds of one call, added up over its threads. */
	__u64 hold_max_ns;
	__u64 hold_total_ns;
	/* A call that grows as fast as this, or faster, is held in full, a slower one in proportion. */
	__u64 full_rate_bytes_per_s;
	/* Another one, never 0, whenever somebody has been promised something else. */
	__u64 revision;
};

/* Through the ring `memory_breaches`: a call grows while a session of higher rank is short. Once a second for a call. */
struct memory_breach {
	__u64 at_ns;
	/* Account of the call, its session, and the session it is slowed for. */
	__u64 call_id;
	__u64 session_id;
	__u64 for_session_id;
	__u64 rate_bytes_per_s;
	/* What is missing of what is promised and the margin, and the longest recent wait; what came of it. */
	__u64 missing_bytes;
	__u64 stall_ns;
	__u64 hold_ns;
};

enum {
	/* From a charge that asks for a hold to its begin, in steps of WAIT_STEP_NS; the last bucket has all above. */
	WAIT_BUCKETS = 64,
	WAIT_STEP_NS = 250000,
};

/* The only entry of `memory_guard_figures`, of all calls since the start. */
struct memory_guard_figures {
	__u64 waits[WAIT_BUCKETS];
	/* Holds asked for; asked for and not possible for want of memory; released before their time. */
	__u64 asked;
	__u64 failed;
	__u64 released;
	/* Holds that have ended, and how long they took. */
	__u64 holds;
	__u64 held_ns;
};

/* What the programs did not see. */
struct memory_losses {
	/* A cgroup deeper than is walked. */
	__u64 depth;
	/* No room for a record in `memory_breaches`. */
	__u64 breaches;
};

/* Constants of memory.bpf.c, set before it is loaded. */
struct memory_knobs {
	/* Growth is taken over stretches of at least `window_ns` and averaged over about `averaging_ns`. */
	__u64 window_ns;
	__u64 averaging_ns;
};

#endif
