/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The scheduler of agents: CPU time by cpu.weight at every level of the cgroup tree, cpu.max, latency by class, holds.
 *
 * The idea. Every cgroup with the cpu controller is a group with a key: the CPU time it had, divided by its weight. A
 * CPU that wants work starts at the root and goes down to the child with the smallest key, level by level, until it
 * stands at a group whose own tasks wait; the first of those runs. What it uses is put on the books of the group and of
 * all above it. So a level shares what the level above gives it, whoever of the others is idle:
 *
 *	root                       keys after 600 ms, all busy
 *	|- system.slice  w 100     200 ms: 200 * 100/100 = 200
 *	`- agents.slice  w 200     400 ms: 400 * 100/200 = 200
 *	   |- a          w 100     100 ms: 100 * 100/100 = 100
 *	   |  |- agent   w 100      25 ms                   25
 *	   |  `- call    w 300      75 ms                   25
 *	   `- b          w 300     300 ms                  100      equal keys at every level: each had its share
 *
 *	If `call` sleeps, `agent` gets all 100 ms of `a`; b and system.slice are not touched by it.
 *
 * A group that slept comes back at the key of the one served last, so that it neither saved time up nor is punished.
 *
 * Latency is a position, not a share. A task of an interactive group, or of an agent runtime, that wakes up while no
 * CPU is idle takes the CPU of a task of a later class at once, as long as its groups, up to the one that both are in,
 * have not had more than their share by `prompt_allowance_ns`; what it uses is charged like all else. An agent runtime
 * takes the CPU of a tool of its own session even then: that moves time within the session only.
 *
 * Tasks that may not run everywhere wait in a queue of the CPU, and are compared with the tree's choice where their
 * ways from the root part; so they stay within their groups' shares too. Kernel threads of one CPU go ahead of all.
 *
 * cpu.max: see scheduler_charge.bpf.h. Holds: see scheduler_park.bpf.h, and holds.bpf.h for who wants some.
 *
 * What it does badly: one lock for the whole tree, so machines of more than some dozen CPUs will feel it; no regard for
 * caches and NUMA beyond the kernel's own choice of an idle CPU; time is taken at ticks (4 ms at 250 Hz), so a cap
 * below two ticks a period is kept on average only; the CPU time of interrupts is not charged.
 */
#include "kernel.h"
#include "scheduler.h"

const volatile struct scheduler_knobs knobs = {
	.slice_ns = { 2000000, 3000000, 7000000, 2000000 },
	.prompt_allowance_ns = 20000000,
	.rescue_after_ns = 5000000000ULL,
	.hold_max_ns = 500000000,
	.hold_total_max_ns = 5000000000ULL,
	.cpus = 1,
};

#include "scheduler_cgroups.bpf.h"
#include "scheduler_keep.bpf.h"
#include "scheduler_tasks.bpf.h"
#include "scheduler_timer.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("struct_ops/agentcg_select_cpu")
s32 BPF_PROG(agentcg_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct scheduler_task *state = state_of(p);
	bool is_idle = false;
	s32 cpu;

	if (!state || group_throttled(state->group))
		return prev_cpu;
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);
	if (is_idle) {
		count(PLACED_IDLE);
		scx_bpf_dsq_insert(p, DSQ_LOCAL, slice_of(latency_of(state->group)), 0);
	}
	return cpu;
}

/* The task's place among those of its group: what it slept through is forgotten, and what it overran, too. */
static void settle_task(struct scheduler_task *state, u64 slice)
{
	u64 clock = at(state->group)->task_clock;

	if ((s64)(state->vtime_ns - (clock - slice)) < 0)
		state->vtime_ns = clock - slice;
	if ((s64)(state->vtime_ns - (clock + AHEAD_MAX_NS)) > 0)
		state->vtime_ns = clock + AHEAD_MAX_NS;
}

/*
 * Whether `p`, which woke up, may go straight to its CPU, to run as soon as that is free: it may run on no other, nobody
 * else waits, and the task that runs there is of the same group, so that no group gets or loses anything by it.
 */
static __always_inline bool may_go_straight(struct task_struct *p, const struct scheduler_task *state, u64 now)
{
	s32 number = scx_bpf_task_cpu(p);
	struct cpu_state *cpu = cpu_at(number);

	return fields(p)->nr_cpus_allowed == 1 && cpu->is_busy && cpu->group == state->group && !tasks_queued &&
	       !is_waiting_in(PINNED_QUEUE + number, cpu->pinned_used_at_ns, now) &&
	       !is_waiting_in(PROMPT_QUEUE, prompt_used_at_ns, now) && !is_waiting_in(RESCUE_QUEUE, rescue_used_at_ns, now) &&
	       scx_bpf_dsq_nr_queued(DSQ_LOCAL_ON(number)) <= 0;
}

static void wait_in_group(struct task_struct *p, struct scheduler_task *state, u64 slice, u64 enq_flags)
{
	u32 number = state->group;
	struct group *group = at(number);

	bpf_spin_lock(&tree_lock);
	stir(state);
	if (state->queued_in != number) {
		leave_queue(state);
		if (!group->queued && group->heap) {
			if (group->own_key < group->clock - CLAIM_MAX_NS)
				group->own_key = group->clock - CLAIM_MAX_NS;
			if (group->own_key > group->clock + CLAIM_MAX_NS)
				group->own_key = group->clock + CLAIM_MAX_NS;
		}
		__sync_fetch_and_add(&group->queued, 1);
		__sync_fetch_and_add(&tasks_queued, 1);
		state->queued_in = number;
	}
	activate(number);
	bpf_spin_unlock(&tree_lock);
	scx_bpf_dsq_insert_vtime(p, GROUP_QUEUE + number, slice, state->vtime_ns, enq_flags);
	/* The kernel wakes up the CPU that a task woke up on. */
	if (!(enq_flags & ENQ_WAKEUP) || fields(p)->nr_cpus_allowed > 1)
		kick_idle(fields(p)->cpus_ptr);
}

SEC("struct_ops/agentcg_enqueue")
void BPF_PROG(agentcg_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct scheduler_task *state = state_of(p);
	u64 now = scx_bpf_now(), slice;
	u32 latency;

	if (!state) {
		count(TASKS_UNKNOWN);
		scx_bpf_dsq_insert(p, DSQ_LOCAL, slice_of(LATENCY_NORMAL), enq_flags);
		return;
	}
	if ((fields(p)->flags & PF_KTHREAD) && fields(p)->nr_cpus_allowed == 1) {
		count(PLACED_KERNEL_THREAD);
		scx_bpf_dsq_insert(p, DSQ_LOCAL, slice_of(LATENCY_NORMAL), enq_flags | ENQ_PREEMPT);
		return;
	}
	state->queued_at_ns = now;
	/* Who wakes up slept wherever it wanted, and may have a lock. */
	if (!(enq_flags & ENQ_WAKEUP) && is_held(p, state) && park(p, enq_flags)) {
		/* So that `running` ends the hold, whoever found the task. */
		state->may_park = 1;
		return;
	}
	/* As the kernel does for a scheduler that does not ask for them: only this CPU may run it. */
	if (is_migration_disabled(p)) {
		scx_bpf_dsq_insert(p, DSQ_LOCAL, slice_of(LATENCY_NORMAL), enq_flags);
		return;
	}
	latency = latency_of(state->group);
	slice = slice_of(latency);
	if (group_throttled(state->group) && is_ending(p)) {
		rescue_used_at_ns = now;
		scx_bpf_dsq_insert(p, RESCUE_QUEUE, slice, enq_flags);
		kick_idle(fields(p)->cpus_ptr);
		return;
	}
	settle_task(state, slice);
	if ((enq_flags & ENQ_WAKEUP) && may_go_straight(p, state, now) && !group_throttled(state->group)) {
		count(PLACED_STRAIGHT);
		scx_bpf_dsq_insert(p, DSQ_LOCAL, slice, enq_flags);
		return;
	}
	if ((enq_flags & ENQ_WAKEUP) && !group_throttled(state->group) && serve_promptly(p, state, latency, enq_flags))
		return;
	if (is_restricted(p))
		wait_on_cpu(p, state, slice, enq_flags);
	else
		wait_in_group(p, state, slice, enq_flags);
}

SEC("struct_ops/agentcg_dispatch")
void BPF_PROG(agentcg_dispatch, s32 cpu, struct task_struct *prev)
{
	u64 now = scx_bpf_now();
	struct cpu_state *here = cpu_at(cpu);
	u32 shifted[PICK_TRIES] = {}, rival = NO_GROUP, going_on = group_to_go_on(prev);
	bool found = false;
	int try;

	if (is_waiting_in(RESCUE_QUEUE, rescue_used_at_ns, now) && scx_bpf_dsq_move_to_local(RESCUE_QUEUE)) {
		count(PLACED_RESCUED);
		return;
	}
	if (is_waiting_in(PROMPT_QUEUE, prompt_used_at_ns, now) && scx_bpf_dsq_move_to_local(PROMPT_QUEUE))
		return;
	for (try = 0; try < PICK_TRIES; try++) {
		bpf_spin_lock(&tree_lock);
		refund(here);
		rival = next_group();
		/* Else it is not sure who is served. */
		if (rival && !going_on) {
			advance(rival);
			prepay(here, rival);
		}
		bpf_spin_unlock(&tree_lock);
		if (run_pinned(cpu, cpu, rival, going_on, now) || keep_running(here, prev, rival, going_on)) {
			found = true;
			break;
		}
		if (!rival) {
			count(PICK_EMPTY);
			break;
		}
		if (scx_bpf_dsq_move_to_local(GROUP_QUEUE + rival)) {
			if (going_on) {
				bpf_spin_lock(&tree_lock);
				advance(rival);
				prepay(here, rival);
				bpf_spin_unlock(&tree_lock);
			}
			count(PLACED_QUEUED);
			found = true;
			break;
		}
		/* Its tasks are on their way in, or out to another CPU: look past it once. */
		count(PICK_RACED);
		bpf_spin_lock(&tree_lock);
		refund(here);
		shift(rival, slice_of(LATENCY_BATCH));
		bpf_spin_unlock(&tree_lock);
		shifted[try] = rival;
	}
	for (try = 0; try < PICK_TRIES; try++) {
		if (!shifted[try])
			break;
		bpf_spin_lock(&tree_lock);
		shift(shifted[try], -(s64)slice_of(LATENCY_BATCH));
		bpf_spin_unlock(&tree_lock);
	}
	if (!found)
		steal_pinned(cpu, now);
}

SEC("struct_ops/agentcg_tick")
void BPF_PROG(agentcg_tick, struct task_struct *p)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	charge_task(p, state, false);
	if (!take_off(p, state) && group_throttled(state->group) && !is_ending(p))
		set_slice(p, 0);
}

SEC("struct_ops/agentcg_update_idle")
void BPF_PROG(agentcg_update_idle, s32 cpu, bool idle)
{
	struct cpu_state *state = cpu_at(cpu);

	state->is_busy = 0;
	/* A task that was queued between our last look and the idle mark found no idle CPU to wake. */
	if (!idle || !is_work_waiting(scx_bpf_now()) || state->idle_retries >= IDLE_RETRIES_MAX)
		return;
	state->idle_retries++;
	count(IDLE_RETRIES);
	kick(cpu, 0);
}

/* Defined so that the kernel does not end us over hotplug. */
SEC("struct_ops/agentcg_cpu_online")
void BPF_PROG(agentcg_cpu_online, s32 cpu)
{
	cpu_at(cpu)->is_leaving = 0;
}

SEC("struct_ops/agentcg_cpu_offline")
void BPF_PROG(agentcg_cpu_offline, s32 cpu)
{
	cpu_at(cpu)->is_busy = 0;
	cpu_at(cpu)->idle_retries = 0;
	leave_cpu(cpu);
	cpu_at(cpu)->is_leaving = 1;
}

SEC("struct_ops.s/agentcg_init")
s32 BPF_PROG(agentcg_init)
{
	struct timer_value *value;
	u32 first = 0, cpu;
	s32 error;

	error = scx_bpf_create_dsq(PROMPT_QUEUE, -1);
	if (!error)
		error = scx_bpf_create_dsq(RESCUE_QUEUE, -1);
	if (!error)
		error = scx_bpf_create_dsq(HOLD_QUEUE, -1);
	for (cpu = zero; !error && cpu < knobs.cpus && cpu < CPUS && can_loop; cpu++)
		error = scx_bpf_create_dsq(PINNED_QUEUE + cpu, -1);
	if (error)
		return error;
	value = bpf_map_lookup_elem(&scheduler_timer, &first);
	if (!value)
		return -3;
	bpf_timer_init(&value->timer, &scheduler_timer, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&value->timer, on_timer);
	timer_at_ns = scx_bpf_now() + SWEEP_NS;
	return bpf_timer_start(&value->timer, SWEEP_NS, 0);
}

SEC("struct_ops/agentcg_exit")
void BPF_PROG(agentcg_exit, struct scx_exit_info *info)
{
	u32 first = 0;
	struct scheduler_end *end = bpf_map_lookup_elem(&scheduler_ends, &first);

	if (!end)
		return;
	bpf_probe_read_kernel_str(end->reason, sizeof(end->reason), BPF_CORE_READ(info, reason));
	bpf_probe_read_kernel_str(end->message, sizeof(end->message), BPF_CORE_READ(info, msg));
	end->code = BPF_CORE_READ(info, exit_code);
	end->kind = BPF_CORE_READ(info, kind);
	bpf_ringbuf_output(&scheduler_bell, &end->kind, sizeof(end->kind), 0);
}

#define AGENTCG_OPS(variable, own_flags)                                                                               \
	SEC(".struct_ops.link")                                                                                        \
	struct sched_ext_ops variable = {                                                                              \
		.select_cpu = (void *)agentcg_select_cpu,                                                              \
		.enqueue = (void *)agentcg_enqueue,                                                                    \
		.dispatch = (void *)agentcg_dispatch,                                                                  \
		.tick = (void *)agentcg_tick,                                                                          \
		.running = (void *)agentcg_running,                                                                    \
		.stopping = (void *)agentcg_stopping,                                                                  \
		.disable = (void *)agentcg_disable,                                                                    \
		.update_idle = (void *)agentcg_update_idle,                                                            \
		.init_task = (void *)agentcg_init_task,                                                                \
		.exit_task = (void *)agentcg_exit_task,                                                                \
		.cgroup_init = (void *)agentcg_cgroup_init,                                                            \
		.cgroup_exit = (void *)agentcg_cgroup_exit,                                                            \
		.cgroup_move = (void *)agentcg_cgroup_move,                                                            \
		.cgroup_set_weight = (void *)agentcg_set_weight,                                                       \
		.cgroup_set_bandwidth = (void *)agentcg_set_bandwidth,                                                 \
		.cpu_online = (void *)agentcg_cpu_online,                                                              \
		.cpu_offline = (void *)agentcg_cpu_offline,                                                            \
		.init = (void *)agentcg_init,                                                                          \
		.exit = (void *)agentcg_exit,                                                                          \
		.flags = (own_flags),                                                                                  \
		.timeout_ms = 30000,                                                                                   \
		.name = "agentcgroup",                                                                                 \
	}

/* One of the two is attached: every task of the host, or those that ask for SCHED_EXT. */
#define AGENTCG_FLAGS (OPS_KEEP_BUILTIN_IDLE | OPS_ENQ_LAST | OPS_ENQ_MIGRATION_DISABLED)
AGENTCG_OPS(agentcg_full, AGENTCG_FLAGS);
AGENTCG_OPS(agentcg_partial, AGENTCG_FLAGS | OPS_SWITCH_PARTIAL);
