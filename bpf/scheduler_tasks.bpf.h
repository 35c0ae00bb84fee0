/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A task's life: begun, running, stopped, ended; and what each does to the books.
 *
 * It is on the books of its groups (`runnable`) from when it is queued, or runs unqueued, until it stops to sleep. There
 * are no callbacks for runnable and quiescent: every one costs every switch of the host, called for nothing or not.
 */
#ifndef AGENTCGROUP_SCHEDULER_TASKS_BPF_H
#define AGENTCGROUP_SCHEDULER_TASKS_BPF_H

#include "scheduler_cgroups.bpf.h"
#include "scheduler_park.bpf.h"

SEC("struct_ops.s/agentcg_init_task")
s32 BPF_PROG(agentcg_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct scheduler_task *state = bpf_task_storage_get(&scheduler_tasks, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	struct scheduler_hold *hold = hold_of(p);

	if (!state)
		return -12;
	/* Of a scheduler before us, whose hold ended with it. */
	if (hold)
		hold->begun_at_ns = 0;
	state->group = group_of(args->cgroup);
	bpf_spin_lock(&tree_lock);
	at(state->group)->references++;
	state->vtime_ns = at(state->group)->task_clock;
	bpf_spin_unlock(&tree_lock);
	return 0;
}

SEC("struct_ops/agentcg_exit_task")
void BPF_PROG(agentcg_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	rest(state);
	unreference(state->group);
	state->group = NO_GROUP;
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_running")
void BPF_PROG(agentcg_running, struct task_struct *p)
{
	struct scheduler_task *state = state_of(p);
	struct cpu_state *cpu = cpu_at(scx_bpf_task_cpu(p));

	cpu->idle_retries = 0;
	if (!state)
		return;
	if (state->may_park) {
		state->may_park = 0;
		end_hold(p);
	}
	state->charged_ns = fields(p)->se.sum_exec_runtime;
	leave_queue(state);
	if (!state->runnable_in) {
		bpf_spin_lock(&tree_lock);
		stir(state);
		bpf_spin_unlock(&tree_lock);
	}
	cpu->group = state->group;
	cpu->latency = latency_of(state->group);
	cpu->is_busy = 1;
}

SEC("struct_ops/agentcg_stopping")
void BPF_PROG(agentcg_stopping, struct task_struct *p, bool runnable)
{
	struct scheduler_task *state = state_of(p);

	cpu_at(scx_bpf_task_cpu(p))->is_busy = 0;
	if (!state)
		return;
	charge_task(p, state, !runnable);
	if (!runnable)
		state->may_park = 0;
}

/* Of another class from now on, or about to end; it may have waited. One that ran has stopped before. */
SEC("struct_ops/agentcg_disable")
void BPF_PROG(agentcg_disable, struct task_struct *p)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	rest(state);
	bpf_spin_unlock(&tree_lock);
}

#endif
