/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Holds that begin at once: where a task goes back to user mode from what it is doing in the kernel now, with no lock of
 * the kernel. For the writers of holds, whose contract is in holds.bpf.h; needs task work (kernel 6.18) and a scheduler of
 * sched_ext. Where one of them is missing, a hold begins at a tick in user mode, or not at all.
 */
#ifndef AGENTCGROUP_HOLDS_RETURN_BPF_H
#define AGENTCGROUP_HOLDS_RETURN_BPF_H

#include "compat.bpf.h"
#include "holds.bpf.h"

enum {
	KICK_LOOKS = 256,
};

#define KICK_NS (50 * 1000ULL)

/* Set to 0 where the kernel will not have task work as it is used here, which has changed twice since 6.18. */
const volatile u32 uses_task_work = 1;

/* The class of tasks that sched_ext schedules; without it nobody can be held. */
extern const void ext_sched_class __ksym __weak;

/* Whether a scheduler of sched_ext has the task: every one in mode full, and none without. */
static __always_inline bool can_be_held(struct task_struct *task)
{
	return &ext_sched_class && (u64)task->sched_class == (u64)&ext_sched_class;
}

struct kick {
	struct scheduler_hold *hold;
	u64 until_ns;
	u32 holds;
};

static long has_come(u32 look, struct kick *kick)
{
	return *(volatile u32 *)&kick->hold->holds != kick->holds || bpf_ktime_get_ns() > kick->until_ns;
}

/*
 * Called on the way back to user mode, no lock held: here the scheduler may take the task off. The kick is an interrupt,
 * which may take a moment to come; a kernel that can be preempted returns from it when the hold is over, one that cannot is
 * left to the tick: false.
 */
static __always_inline bool be_held(struct scheduler_hold *hold)
{
	struct kick kick = {.hold = hold, .until_ns = bpf_ktime_get_ns() + KICK_NS, .holds = hold->holds};

	hold->on_way_back = 1;
	/* Taken off when preemption is enabled again, not within the kick: there it is an RCU reader, for which all wait. */
	bpf_preempt_disable();
	scx_bpf_kick_cpu(bpf_get_smp_processor_id(), SCX_KICK_PREEMPT_);
	bpf_preempt_enable();
	bpf_loop(KICK_LOOKS, has_come, &kick, 0);
	hold->on_way_back = 0;
	return hold->holds != kick.holds;
}

/*
 * `task`, which is the current one and has a hold: let it begin on its way back, in `callback`. `work` lies in a value of
 * `map`, a hash.
 */
static __always_inline void hold_on_way_back(struct task_struct *task, struct bpf_task_work *work, void *map,
					     task_work_callback *callback)
{
	if (uses_task_work && bpf_ksym_exists(scx_bpf_kick_cpu) && bpf_ksym_exists(bpf_preempt_enable))
		call_on_way_back(task, work, map, callback);
}

#endif
