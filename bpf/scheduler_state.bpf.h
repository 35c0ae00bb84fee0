/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the scheduler keeps: its queues, its maps, one record for each CPU and each task; and the small functions on them.
 */
#ifndef AGENTCGROUP_SCHEDULER_STATE_BPF_H
#define AGENTCGROUP_SCHEDULER_STATE_BPF_H

#include "holds.bpf.h"
#include "scheduler_tree.bpf.h"

enum {
	/* Queues: PINNED + cpu, GROUP_QUEUE + group. */
	PROMPT_QUEUE = 1,
	RESCUE_QUEUE = 2,
	HOLD_QUEUE = 3,
	PINNED_QUEUE = 1 << 16,
	GROUP_QUEUE = 1 << 17,

	CPUS = 1024,
	LOOK_AHEAD = 32,
	PICK_TRIES = 2,
	/* Of one visit to idle, so that a CPU cannot spin over work that it may not take. */
	IDLE_RETRIES_MAX = 8,
	SWEEP_TASKS = 64,
	WEIGHT_TASK_MAX = 2000,
	WEIGHT_TASK_MIN = 5,
};

#define SWEEP_NS (1000 * 1000 * 1000ULL)

/* Queues that are empty most of the time are looked into only so long after something was put there, or was seen there. */
#define LOOKED_INTO_NS (4 * SWEEP_NS)

struct cpu_state {
	/* When its PINNED_QUEUE was last used. */
	u64 pinned_used_at_ns;
	/* What is left of what a group was charged ahead for a task that is to run here; see prepay. */
	s64 prepaid_ns;
	u32 prepaid_group;
	u32 group;
	u32 latency;
	u32 idle_retries;
	u32 is_busy;
	/* It is about to go offline; see kick. */
	u32 is_leaving;
};

static struct cpu_state cpus[CPUS];
static u64 timer_at_ns;
/* Tasks in the queues of groups; changed by atomic operations. */
static u32 tasks_queued;
static u64 prompt_used_at_ns;
static u64 rescue_used_at_ns;
/* Classes found before cpu.idle of some group changed are no longer right. */
static u32 idle_changes;

struct bpf_spin_lock tree_lock SEC(".data.tree_lock") __attribute__((aligned(8))) __hidden;

/* cgroup id -> group */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * GROUPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, u32);
} scheduler_groups SEC(".maps");

/* cgroup id -> enum latency_class; written by the daemon, before the first process where it can. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * GROUPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, enum latency_class);
} latency_classes SEC(".maps");

/* How often the daemon has changed `latency_classes`: written after that, so that what was found before is forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} latency_changes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct scheduler_task);
} scheduler_tasks SEC(".maps");

struct timer_value {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct timer_value);
} scheduler_timer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCHEDULER_COUNTERS);
	__type(key, u32);
	__type(value, u64);
} scheduler_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct scheduler_end);
} scheduler_ends SEC(".maps");

/* Rung once, at the end. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} scheduler_bell SEC(".maps");

static __noinline void count(enum scheduler_counter counter)
{
	u32 key = counter;
	u64 *value = bpf_map_lookup_elem(&scheduler_counters, &key);

	if (value)
		(*value)++;
}

static __always_inline struct task_struct___scheduler *fields(const struct task_struct *p)
{
	return (struct task_struct___scheduler *)p;
}

static __always_inline struct cpu_state *cpu_at(s32 cpu)
{
	asm volatile("" : "+r"(cpu));
	return &cpus[cpu & (CPUS - 1)];
}

static __always_inline struct scheduler_task *state_of(struct task_struct *p)
{
	return bpf_task_storage_get(&scheduler_tasks, p, NULL, 0);
}

/* Let the timer run not later than in `ns`. Never with the lock. */
static void need_timer(u64 ns)
{
	u32 first = 0;
	struct timer_value *value;
	u64 now = scx_bpf_now(), at_ns = now + ns;

	/* One that should have run a while ago is started anew. */
	if (timer_at_ns <= at_ns && timer_at_ns + SWEEP_NS > now)
		return;
	value = bpf_map_lookup_elem(&scheduler_timer, &first);
	if (!value)
		return;
	timer_at_ns = at_ns;
	bpf_timer_start(&value->timer, ns, 0);
}

/* Whether there is a CPU now that `p` may not run on: such tasks wait in the queue of a CPU. */
static __always_inline bool is_restricted(struct task_struct *p)
{
	const struct cpumask *online;
	bool restricted;

	if (fields(p)->nr_cpus_allowed >= (int)knobs.cpus)
		return false;
	online = scx_bpf_get_online_cpumask();
	restricted = !bpf_cpumask_subset(online, fields(p)->cpus_ptr);
	scx_bpf_put_cpumask(online);
	return restricted;
}

/* On its way to the end, which nothing must keep it from: neither a throttled group nor a hold. */
static __always_inline bool is_ending(struct task_struct *p)
{
	return fields(p)->flags & PF_EXITING || BPF_CORE_READ(p, signal, flags) & SIGNAL_GROUP_EXIT;
}

/* Whether something waits in a queue that was last used then. Looking it up costs more than to know that it cannot. */
static __always_inline bool is_waiting_in(u64 queue, u64 used_at_ns, u64 now)
{
	return (s64)(now - used_at_ns) < (s64)LOOKED_INTO_NS && scx_bpf_dsq_nr_queued(queue) > 0;
}

/* Whether a task waits that any CPU may find. */
static bool is_work_waiting(u64 now)
{
	return at(root_group)->heap || at(root_group)->queued || is_waiting_in(RESCUE_QUEUE, rescue_used_at_ns, now) ||
	       is_waiting_in(PROMPT_QUEUE, prompt_used_at_ns, now);
}

/*
 * Not from a CPU that goes offline: what it asks for last it never does, and the kernel then waits for that for ever when the
 * scheduler is taken off (seen on 7.3, in irq_work_sync). Whoever is not woken up for it is found by the timer.
 */
static __always_inline void kick(s32 cpu, u64 flags)
{
	if (!cpu_at(bpf_get_smp_processor_id())->is_leaving)
		scx_bpf_kick_cpu(cpu, flags);
}

static void kick_idle(const struct cpumask *allowed)
{
	s32 cpu = scx_bpf_pick_idle_cpu(allowed, 0);

	if (cpu >= 0)
		kick(cpu, SCX_KICK_IDLE_);
}

/* It runs or waits from now on. With the lock. */
static __always_inline void stir(struct scheduler_task *state)
{
	if (state->runnable_in)
		return;
	wake(state->group);
	state->runnable_in = state->group;
}

/* Neither running nor waiting any more. With the lock. */
static __always_inline void rest(struct scheduler_task *state)
{
	if (state->runnable_in)
		unwake(state->runnable_in);
	state->runnable_in = NO_GROUP;
}

/* No longer waiting in its group. */
static __always_inline void leave_queue(struct scheduler_task *state)
{
	if (!state->queued_in)
		return;
	__sync_fetch_and_sub(&at(state->queued_in)->queued, 1);
	__sync_fetch_and_sub(&tasks_queued, 1);
	state->queued_in = NO_GROUP;
}

#endif
