/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Tasks that may not run on every CPU: one queue for each CPU, whose tasks are compared with the tree's choice.
 */
#ifndef AGENTCGROUP_SCHEDULER_AFFINITY_BPF_H
#define AGENTCGROUP_SCHEDULER_AFFINITY_BPF_H

#include "scheduler_park.bpf.h"

static void wait_on_cpu(struct task_struct *p, struct scheduler_task *state, u64 slice, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);

	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	bpf_spin_unlock(&tree_lock);
	scx_bpf_dsq_insert(p, PINNED_QUEUE + cpu, slice, enq_flags);
	kick_idle(fields(p)->cpus_ptr);
}

/*
 * Run the first task in the queue of CPU `owner` that `cpu` may run and that goes before the tree's choice `rival` and
 * before the group of the task that just ran, or that waited too long.
 */
static bool run_pinned(s32 cpu, s32 owner, u32 rival, u32 going_on, u64 now)
{
	struct task_struct *p;
	struct bpf_iter_scx_dsq it;
	u32 looked = zero;
	bool moved = false, throttled, before;

	if (scx_bpf_dsq_nr_queued(PINNED_QUEUE + owner) <= 0)
		return false;
	if (bpf_iter_scx_dsq_new(&it, PINNED_QUEUE + owner, 0))
		goto out;
	while (looked < LOOK_AHEAD && (p = bpf_iter_scx_dsq_next(&it))) {
		struct scheduler_task *state = state_of(p);
		bool must_run;

		looked++;
		if (!state || !bpf_cpumask_test_cpu(cpu, fields(p)->cpus_ptr))
			continue;
		must_run = now - state->queued_at_ns > knobs.rescue_after_ns || is_ending(p);
		bpf_spin_lock(&tree_lock);
		throttled = is_throttled(state->group);
		before = (!rival || is_before(state->group, rival)) &&
			 (!going_on || is_before(state->group, going_on));
		bpf_spin_unlock(&tree_lock);
		if (must_run || (before && !throttled)) {
			moved = scx_bpf_dsq_move(&it, p, DSQ_LOCAL, 0);
			if (moved)
				break;
		}
	}
out:
	bpf_iter_scx_dsq_destroy(&it);
	if (moved)
		count(PLACED_PINNED);
	return moved;
}

/* For a CPU that found nothing: tasks of any CPU's queue, its own first, which a CPU that goes offline must empty. */
static bool steal_pinned(s32 cpu, u64 now)
{
	u32 i;

	for (i = zero; i < knobs.cpus && i < CPUS && can_loop; i++) {
		u32 other = cpu + i;

		if (other >= knobs.cpus)
			other -= knobs.cpus;
		if (run_pinned(cpu, other, NO_GROUP, NO_GROUP, now))
			return true;
	}
	return false;
}

#endif
