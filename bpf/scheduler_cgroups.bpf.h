/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Cgroups come, change and go; tasks move between them.
 */
#ifndef AGENTCGROUP_SCHEDULER_CGROUPS_BPF_H
#define AGENTCGROUP_SCHEDULER_CGROUPS_BPF_H

#include "scheduler_charge.bpf.h"

static u32 group_of(struct cgroup *cgrp)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id);
	u32 *group = bpf_map_lookup_elem(&scheduler_groups, &id);

	return group ? *group : root_group;
}

static __always_inline void set_idle(struct group *group, bool is_idle)
{
	if (is_idle)
		group->flags |= GROUP_IDLE;
	else
		group->flags &= ~GROUP_IDLE;
}

/* Look whether cpu.idle of a group's cgroup has changed. */
static void follow_idle(struct group *group)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(group->cgroup_id);
	bool is_idle;

	if (!cgrp)
		return;
	is_idle = is_idle_cgroup(cgrp);
	bpf_cgroup_release(cgrp);
	if (is_idle == !!(group->flags & GROUP_IDLE))
		return;
	bpf_spin_lock(&tree_lock);
	set_idle(group, is_idle);
	idle_changes++;
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_cgroup_move")
void BPF_PROG(agentcg_cgroup_move, struct task_struct *p, struct cgroup *from, struct cgroup *to)
{
	struct scheduler_task *state = state_of(p);
	u32 number = group_of(to);

	if (!state)
		return;
	leave_queue(state);
	bpf_spin_lock(&tree_lock);
	rest(state);
	unreference(state->group);
	state->group = number;
	at(number)->references++;
	state->vtime_ns = at(number)->task_clock;
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops.s/agentcg_cgroup_init")
s32 BPF_PROG(agentcg_cgroup_init, struct cgroup *cgrp, struct scx_cgroup_init_args *args)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id), period = 0, quota = 0, burst = 0, now = scx_bpf_now(), clock;
	struct cgroup *above = BPF_CORE_READ(cgrp, self.parent, cgroup);
	u32 parent = above ? group_of(above) : NO_GROUP, number, weight = args->weight;
	struct group *group;
	bool is_made, is_idle = is_idle_cgroup(cgrp);
	s32 error;

	if (bpf_core_field_exists(args->bw_quota_us)) {
		period = args->bw_period_us;
		quota = args->bw_quota_us;
		burst = args->bw_burst_us;
	}
	bpf_spin_lock(&tree_lock);
	number = parent && at(parent)->level + 1 >= DEPTH_MAX ? NO_GROUP : take_free_group();
	bpf_spin_unlock(&tree_lock);
	if (!number) {
		/* It shares its parent's group: a cgroup must not fail to be made because of us. */
		count(GROUPS_MISSING);
		bpf_map_update_elem(&scheduler_groups, &id, &parent, BPF_ANY);
		return 0;
	}
	group = at(number);
	/* Queues are made once and serve every group that ever has this number. */
	is_made = group->task_clock != 0;
	if (!is_made) {
		error = scx_bpf_create_dsq(GROUP_QUEUE + number, -1);
		if (error)
			return error;
	}
	bpf_spin_lock(&tree_lock);
	group->cgroup_id = id;
	group->weight = weight;
	group->parent = parent;
	group->level = parent ? at(parent)->level + 1 : 0;
	group->heap = NO_GROUP;
	group->queued = 0;
	group->runnable = 0;
	group->references = 0;
	group->flags = 0;
	set_idle(group, is_idle);
	group->class_version = 0;
	group->debt = 0;
	group->clock = 0;
	group->own_key = 0;
	group->quota_ns = 0;
	if (!is_made)
		group->task_clock = 1000 * 1000 * 1000;
	if (parent) {
		at(parent)->references++;
		clock = at(parent)->clock;
		group->key = clock;
	} else {
		root_group = number;
	}
	set_cap(group, period, quota, burst, now);
	bpf_spin_unlock(&tree_lock);
	count(GROUPS_MADE);
	bpf_map_update_elem(&scheduler_groups, &id, &number, BPF_ANY);
	return 0;
}

SEC("struct_ops.s/agentcg_cgroup_exit")
void BPF_PROG(agentcg_cgroup_exit, struct cgroup *cgrp)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id);
	u32 number = group_of(cgrp);

	bpf_map_delete_elem(&scheduler_groups, &id);
	bpf_map_delete_elem(&latency_classes, &id);
	bpf_spin_lock(&tree_lock);
	if (at(number)->cgroup_id == id && number != root_group) {
		at(number)->flags |= GROUP_DEAD;
		/* What is left of it are tasks about to end: they must get there. */
		at(number)->quota_ns = 0;
	}
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_set_weight")
void BPF_PROG(agentcg_set_weight, struct cgroup *cgrp, u32 weight)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id);
	u32 number = group_of(cgrp);

	bpf_spin_lock(&tree_lock);
	if (at(number)->cgroup_id == id)
		at(number)->weight = weight;
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_set_bandwidth")
void BPF_PROG(agentcg_set_bandwidth, struct cgroup *cgrp, u64 period_us, u64 quota_us, u64 burst_us)
{
	u64 now = scx_bpf_now(), id = BPF_CORE_READ(cgrp, kn, id);
	u32 number = group_of(cgrp);

	bpf_spin_lock(&tree_lock);
	if (at(number)->cgroup_id == id)
		set_cap(at(number), period_us, quota_us, burst_us, now);
	bpf_spin_unlock(&tree_lock);
	need_timer(HOLD_CHECK_NS);
}

#endif
