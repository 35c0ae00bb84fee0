/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Latency by class: a place in the queue, never more time.
 */
#ifndef AGENTCGROUP_SCHEDULER_LATENCY_BPF_H
#define AGENTCGROUP_SCHEDULER_LATENCY_BPF_H

#include "scheduler_charge.bpf.h"

enum {
	/* A class is looked for in the task's cgroup and so many above it. */
	CLASS_LEVELS = 3,
	/* CPUs whose task a wake-up looks at before it queues up like the others. */
	DISPLACE_TRIES = 8,
};

static u32 find_latency(u32 group)
{
	enum latency_class *class;
	u64 id;
	int i;

	for (i = 0; i < CLASS_LEVELS && group; i++) {
		if (at(group)->flags & GROUP_IDLE)
			return LATENCY_BATCH;
		id = at(group)->cgroup_id;
		class = bpf_map_lookup_elem(&latency_classes, &id);
		if (class)
			return *class < LATENCY_CLASSES ? *class : LATENCY_NORMAL;
		group = at(group)->parent;
	}
	return LATENCY_NORMAL;
}

/* Its group keeps what was found until some class changes. Racing finders find the same, or will have to look again. */
static __always_inline u32 latency_of(u32 number)
{
	struct group *group = at(number);
	u32 first = 0, *changes = bpf_map_lookup_elem(&latency_changes, &first), version;

	/* Both only grow, so that their sum is the same only while both are; 0 is for never. */
	version = (changes ? *changes : 0) + idle_changes + 1;
	if (group->class_version == version)
		return group->latency;
	group->class_version = 0;
	group->latency = find_latency(number);
	group->class_version = version;
	return group->latency;
}

static __always_inline u64 slice_of(u32 latency)
{
	return knobs.slice_ns[latency & 3];
}

/* Which of two classes is served first; an agent runtime is interactive. */
static __always_inline u32 rank(u32 latency)
{
	return latency == LATENCY_AGENT ? LATENCY_INTERACTIVE : latency;
}

/*
 * Whether a task of group `number` may take the CPU from one of `victim`: by the books of the groups in which they
 * compete, those below the one that both are in. An agent runtime takes it from its own session whatever the books say.
 */
static bool may_displace(u32 number, u32 victim, u32 latency)
{
	u32 top;
	bool may;

	bpf_spin_lock(&tree_lock);
	top = common_ancestor(number, victim);
	may = latency == LATENCY_AGENT && top == at(number)->parent;
	if (!may)
		may = is_entitled(number, top, knobs.prompt_allowance_ns);
	bpf_spin_unlock(&tree_lock);
	return may;
}

/* A CPU whose task `p` may displace, the lowest class first, the nearest first; or -1. */
static s32 find_displaceable(struct task_struct *p, struct scheduler_task *state, u32 latency)
{
	const struct cpumask *allowed = fields(p)->cpus_ptr;
	s32 first = scx_bpf_task_cpu(p), found = -1;
	u32 found_rank = rank(latency), tries = 0;
	u32 i;

	for (i = zero; i < knobs.cpus && i < CPUS && can_loop; i++) {
		s32 cpu = first + (s32)i;
		struct cpu_state *other;

		if (cpu >= (s32)knobs.cpus)
			cpu -= knobs.cpus;
		other = cpu_at(cpu);
		if (!other->is_busy || rank(other->latency) <= found_rank)
			continue;
		if (!bpf_cpumask_test_cpu(cpu, allowed))
			continue;
		if (tries++ >= DISPLACE_TRIES)
			break;
		if (!may_displace(state->group, other->group, latency))
			continue;
		found = cpu;
		found_rank = rank(other->latency);
		if (found_rank == LATENCY_BATCH)
			break;
	}
	return found;
}

/* Serve a wake-up at once if its class and its groups' books allow it. */
static bool serve_promptly(struct task_struct *p, struct scheduler_task *state, u32 latency, u64 enq_flags)
{
	bool entitled;
	s32 cpu;

	if (rank(latency) == LATENCY_BATCH)
		return false;
	cpu = find_displaceable(p, state, latency);
	if (cpu >= 0) {
		/* Until it runs, so that the next wake-up looks elsewhere. */
		cpu_at(cpu)->latency = latency;
		count(PLACED_PREEMPTING);
		scx_bpf_dsq_insert(p, DSQ_LOCAL_ON(cpu), slice_of(latency), enq_flags | ENQ_PREEMPT);
		return true;
	}
	if (rank(latency) != LATENCY_INTERACTIVE || is_restricted(p))
		return false;
	bpf_spin_lock(&tree_lock);
	entitled = is_entitled(state->group, NO_GROUP, knobs.prompt_allowance_ns);
	bpf_spin_unlock(&tree_lock);
	if (!entitled)
		return false;
	count(PLACED_PROMPT);
	prompt_used_at_ns = state->queued_at_ns;
	scx_bpf_dsq_insert(p, PROMPT_QUEUE, slice_of(latency), enq_flags);
	kick_idle(fields(p)->cpus_ptr);
	return true;
}

#endif
