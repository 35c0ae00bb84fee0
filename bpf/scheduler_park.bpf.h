/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The scheduler's side of holds: taking tasks off, keeping them, letting them go. The contract is in holds.bpf.h.
 *
 * A task is held only where it has no lock of the kernel: when a tick interrupted it in user mode, or when the writer of
 * its hold found it on its way back there. A task that takes one page fault after the other is in the kernel at most of
 * its ticks, so a hold of it begins late unless its writer can do the latter (kernel 6.18).
 */
#ifndef AGENTCGROUP_SCHEDULER_PARK_BPF_H
#define AGENTCGROUP_SCHEDULER_PARK_BPF_H

#include "scheduler_latency.bpf.h"

static __always_inline struct scheduler_hold *hold_of(struct task_struct *p)
{
	return bpf_task_storage_get(&scheduler_holds, p, NULL, 0);
}

/* Whether somebody wants `p` held; the clock is the writer's, not scx_bpf_now, which drifts from it. */
static __always_inline bool is_hold_wanted(struct task_struct *p)
{
	struct scheduler_hold *hold = hold_of(p);

	return hold && hold->until_ns && hold->until_ns > bpf_ktime_get_ns() && !is_ending(p);
}

static __always_inline bool is_held(struct task_struct *p, const struct scheduler_task *state)
{
	struct scheduler_hold *hold = hold_of(p);

	/* Its writer found it on its way back, see `on_way_back`. */
	if (hold && hold->on_way_back)
		return is_hold_wanted(p);
	return state->may_park && is_hold_wanted(p);
}

/* Put `p` away until its hold ends. False: it has been held for as long as a task may be. */
static bool park(struct task_struct *p, u64 enq_flags)
{
	struct scheduler_hold *hold = hold_of(p);

	if (!hold)
		return false;
	if (hold->total_ns >= knobs.hold_total_max_ns) {
		hold->until_ns = 0;
		count(HOLDS_REFUSED_TOTAL);
		return false;
	}
	/* Else it was queued anew while it was held: moved to another cgroup, say. */
	if (!hold->begun_at_ns) {
		hold->begun_at_ns = bpf_ktime_get_ns();
		hold->holds++;
		if (hold->asked_at_ns)
			hold->waited_ns = hold->begun_at_ns - hold->asked_at_ns;
		hold->asked_at_ns = 0;
		count(HOLDS);
	}
	scx_bpf_dsq_insert(p, HOLD_QUEUE, slice_of(LATENCY_NORMAL), enq_flags);
	need_timer(HOLD_CHECK_NS);
	return true;
}

/* `p` runs again after a hold. */
static void end_hold(struct task_struct *p)
{
	struct scheduler_hold *hold = hold_of(p);

	if (!hold)
		return;
	if (hold->begun_at_ns)
		hold->total_ns += bpf_ktime_get_ns() - hold->begun_at_ns;
	hold->begun_at_ns = 0;
	hold->until_ns = 0;
}

/* Let every task go whose hold ended or was lifted. When to look next. */
static u64 end_holds(void)
{
	u64 now = bpf_ktime_get_ns();
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 looked = zero;

	if (scx_bpf_dsq_nr_queued(HOLD_QUEUE) <= 0)
		return SWEEP_NS;
	if (!bpf_iter_scx_dsq_new(&it, HOLD_QUEUE, 0)) {
		while (looked < GROUPS && can_loop && (p = bpf_iter_scx_dsq_next(&it))) {
			struct scheduler_hold *hold = hold_of(p);

			looked++;
			if (hold && hold->until_ns > now && now - hold->begun_at_ns < knobs.hold_max_ns && !is_ending(p))
				continue;
			rescue_used_at_ns = scx_bpf_now();
			if (scx_bpf_dsq_move(&it, p, RESCUE_QUEUE, 0))
				count(HOLDS_RELEASED);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return HOLD_CHECK_NS;
}

/* At a tick: take `p` off if it is to be held and runs user code. */
static bool take_off(struct task_struct *p, struct scheduler_task *state)
{
	if (!is_hold_wanted(p) || !interrupted_user_code())
		return false;
	state->may_park = 1;
	set_slice(p, 0);
	return true;
}

#endif
