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

	leave_queue(state);
	bpf_spin_lock(&tree_lock);
	stir(state);
	bpf_spin_unlock(&tree_lock);
	cpu_at(cpu)->pinned_used_at_ns = state->queued_at_ns;
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

	if (!is_waiting_in(PINNED_QUEUE + owner, cpu_at(owner)->pinned_used_at_ns, now))
		return false;
	if (bpf_iter_scx_dsq_new(&it, PINNED_QUEUE + owner, 0))
		goto out;
	while (looked < LOOK_AHEAD && can_loop && (p = bpf_iter_scx_dsq_next(&it))) {
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

/*
 * A CPU goes offline: the kernel waits until no task is its any more, and moves away those that it would run next, with
 * the affinity that this takes. It no longer asks us for them.
 */
static void leave_cpu(s32 cpu)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;

	if (!bpf_iter_scx_dsq_new(&it, PINNED_QUEUE + cpu, 0)) {
		while (can_loop && (p = bpf_iter_scx_dsq_next(&it)))
			scx_bpf_dsq_move(&it, p, DSQ_LOCAL_ON(cpu), 0);
	}
	bpf_iter_scx_dsq_destroy(&it);
	scx_bpf_kick_cpu(cpu, 0);
}

/* Whether a task waits in the queue of a CPU, throttled or not. */
static bool is_pinned_waiting(u64 now)
{
	u32 cpu;

	for (cpu = zero; cpu < knobs.cpus && cpu < CPUS && can_loop; cpu++) {
		if (is_waiting_in(PINNED_QUEUE + cpu, cpu_at(cpu)->pinned_used_at_ns, now))
			return true;
	}
	return false;
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
