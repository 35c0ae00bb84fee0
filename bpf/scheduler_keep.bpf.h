/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Whether the task that just ran goes on: a CPU that looks for work keeps it while nobody waits who goes before it.
 */
#ifndef AGENTCGROUP_SCHEDULER_KEEP_BPF_H
#define AGENTCGROUP_SCHEDULER_KEEP_BPF_H

#include "scheduler_park.bpf.h"

/* Group of the task that just ran and could go on, or none. */
static u32 group_to_go_on(struct task_struct *prev)
{
	struct scheduler_task *state;

	if (!prev || !(fields(prev)->scx.flags & SCX_TASK_QUEUED_))
		return NO_GROUP;
	state = state_of(prev);
	if (!state || is_held(prev, state) || group_throttled(state->group))
		return NO_GROUP;
	return state->group;
}

/* Whether the task that just ran goes on: nobody waits that goes before it. */
static bool keep_running(struct cpu_state *here, struct task_struct *prev, u32 rival, u32 going_on)
{
	struct scheduler_task *state, *other;
	struct bpf_iter_scx_dsq it;
	struct task_struct *head;
	bool keep = true;

	if (!prev || !going_on)
		return false;
	if (rival && rival != going_on) {
		bpf_spin_lock(&tree_lock);
		keep = is_before(going_on, rival);
		bpf_spin_unlock(&tree_lock);
	}
	state = state_of(prev);
	if (!keep || !state)
		return false;
	if (rival == going_on) {
		if (!bpf_iter_scx_dsq_new(&it, GROUP_QUEUE + rival, 0)) {
			head = bpf_iter_scx_dsq_next(&it);
			if (head) {
				other = state_of(head);
				keep = !other || (s64)(other->vtime_ns - state->vtime_ns) > 0;
			}
		}
		bpf_iter_scx_dsq_destroy(&it);
		if (!keep)
			return false;
	}
	bpf_spin_lock(&tree_lock);
	advance(going_on);
	prepay(here, going_on);
	bpf_spin_unlock(&tree_lock);
	count(PLACED_KEPT);
	set_slice(prev, slice_of(latency_of(going_on)));
	return true;
}

#endif
