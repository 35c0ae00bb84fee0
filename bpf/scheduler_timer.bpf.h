/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What must happen without a task's doing: the ends of throttles and holds, and once a second the sweep.
 */
#ifndef AGENTCGROUP_SCHEDULER_TIMER_BPF_H
#define AGENTCGROUP_SCHEDULER_TIMER_BPF_H

#include "scheduler_affinity.bpf.h"
#include "scheduler_cgroups.bpf.h"

/* Tasks of one queue that have waited too long, or are to end, go where every CPU looks first. */
static void rescue_from(u32 queue, u64 now)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 looked = zero;

	if (!bpf_iter_scx_dsq_new(&it, queue, 0)) {
		while (looked < SWEEP_TASKS && can_loop && (p = bpf_iter_scx_dsq_next(&it))) {
			struct scheduler_task *state = state_of(p);

			looked++;
			if (!state || now <= state->queued_at_ns)
				continue;
			if (now - state->queued_at_ns > knobs.rescue_after_ns || is_ending(p)) {
				rescue_used_at_ns = now;
				scx_bpf_dsq_move(&it, p, RESCUE_QUEUE, 0);
			}
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
}

static __always_inline void look_into(u64 queue, u64 *used_at_ns, u64 now)
{
	if (scx_bpf_dsq_nr_queued(queue) > 0)
		*used_at_ns = now;
}

/* Once a second: free the groups of cgroups that are gone, rescue who waited too long, see which queues are in use. */
static void sweep(u64 now)
{
	u32 number, cpu;
	bool freed;

	for (cpu = zero; cpu < knobs.cpus && cpu < CPUS && can_loop; cpu++) {
		struct cpu_state *state = cpu_at(cpu);

		look_into(PINNED_QUEUE + cpu, &state->pinned_used_at_ns, now);
		if (state->pinned_used_at_ns == now)
			rescue_from(PINNED_QUEUE + cpu, now);
	}
	look_into(PROMPT_QUEUE, &prompt_used_at_ns, now);
	look_into(RESCUE_QUEUE, &rescue_used_at_ns, now);
	for (number = zero + 1; number <= groups_high && number < GROUPS && can_loop; number++) {
		struct group *group = at(number);

		if (group->flags & GROUP_DEAD && !group->references) {
			freed = false;
			bpf_spin_lock(&tree_lock);
			if ((group->flags & ~GROUP_IDLE) == GROUP_DEAD && !group->references && !group->heap) {
				unreference(group->parent);
				group->flags = 0;
				group->cgroup_id = 0;
				group->next_free = first_free;
				first_free = number;
				freed = true;
			}
			bpf_spin_unlock(&tree_lock);
			if (freed)
				count(GROUPS_FREED);
			continue;
		}
		if (group->runnable && number != root_group)
			follow_idle(group);
		if (group->queued && scx_bpf_dsq_nr_queued(GROUP_QUEUE + number) > 0)
			rescue_from(GROUP_QUEUE + number, now);
	}
}

static u64 swept_at_ns;

static int on_timer(void *map, u32 *key, struct timer_value *value)
{
	u64 now = scx_bpf_now(), next, wait;
	u32 cpu, throttled = throttled_groups;
	bool looks_at_pinned;

	/* So that what is asked for while we look is seen below. */
	timer_at_ns = now + SWEEP_NS;
	next = end_throttles(now);
	looks_at_pinned = throttled_groups < throttled;
	wait = end_holds();
	if (wait < next)
		next = wait;
	if (now - swept_at_ns >= SWEEP_NS) {
		swept_at_ns = now;
		sweep(now);
		looks_at_pinned = true;
	}
	/* A task that waited in the queue of a CPU, throttled, did not keep that CPU from going to sleep. */
	if (is_work_waiting(now) || (looks_at_pinned && is_pinned_waiting(now))) {
		for (cpu = zero; cpu < knobs.cpus && cpu < CPUS && can_loop; cpu++)
			kick(cpu, SCX_KICK_IDLE_);
	}
	if (timer_at_ns < now + next)
		next = timer_at_ns - now;
	if (next < 100000)
		next = 100000;
	timer_at_ns = now + next;
	bpf_timer_start(&value->timer, next, 0);
	return 0;
}

#endif
