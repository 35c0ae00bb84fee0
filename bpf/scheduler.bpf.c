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
 * CPU is idle takes the CPU of a task of a later class at once, as long as its groups have not had more than their
 * share by `prompt_allowance_ns`; what it uses is charged like all else. An agent runtime takes the CPU of a tool of
 * its own session even then: that moves time within the session only.
 *
 * Tasks that may not run everywhere wait in a queue of the CPU, and are compared with the tree's choice where their
 * ways from the root part; so they stay within their groups' shares too. Kernel threads of one CPU go ahead of all.
 *
 * cpu.max. A group that has spent its quota leaves the tree until the timer gives it the next; its tasks are taken off
 * at the next tick. The overrun is carried into the next period, so that the average holds.
 *
 * Holds. Who writes a task's entry in `scheduler_holds` keeps it off the CPU from its next tick in user mode (never while it may
 * hold a lock of the kernel) until then, or until the entry is cleared, or for `hold_max_ns`.
 *
 * What it does badly: one lock for the whole tree, so machines of more than some dozen CPUs will feel it; no regard for
 * caches and NUMA beyond the kernel's own choice of an idle CPU; time is taken at ticks (4 ms at 250 Hz), so a cap
 * below two ticks a period is kept on average only; the CPU time of interrupts is not charged.
 */
#include "kernel.h"
#include "holds.bpf.h"
#include "scheduler.h"

const volatile struct scheduler_knobs knobs = {
	.slice_ns = { 2000000, 3000000, 7000000, 2000000 },
	.prompt_allowance_ns = 20000000,
	.rescue_after_ns = 5000000000ULL,
	.hold_max_ns = 500000000,
	.hold_total_max_ns = 5000000000ULL,
	.cpus = 1,
};

#include "scheduler_tree.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	/* Queues: PINNED + cpu, GROUP_QUEUE + group. */
	PROMPT_QUEUE = 1,
	RESCUE_QUEUE = 2,
	HOLD_QUEUE = 3,
	PINNED_QUEUE = 1 << 16,
	GROUP_QUEUE = 1 << 17,

	CPUS = 1024,
	LOOK_AHEAD = 8,
	PICK_TRIES = 4,
	/* Of one visit to idle, so that a CPU cannot spin over work that it may not take. */
	IDLE_RETRIES_MAX = 8,
	SWEEP_TASKS = 64,
	WEIGHT_TASK_MAX = 2000,
	WEIGHT_TASK_MIN = 5,
};

#define SWEEP_NS (1000 * 1000 * 1000ULL)

struct cpu_state {
	u32 group;
	u32 latency;
	u32 idle_retries;
	u32 is_busy;
};

static struct cpu_state cpus[CPUS];
static u64 timer_at_ns;

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

static u32 latency_of(u32 group)
{
	enum latency_class *class;
	u64 id;
	int i;

	for (i = 0; i < 3 && group; i++) {
		id = at(group)->cgroup_id;
		class = bpf_map_lookup_elem(&latency_classes, &id);
		if (class)
			return *class < LATENCY_CLASSES ? *class : LATENCY_NORMAL;
		group = at(group)->parent;
	}
	return LATENCY_NORMAL;
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

/* Let the timer run not later than in `ns`. Never with the lock. */
static void need_timer(u64 ns)
{
	u32 first = 0;
	struct timer_value *value;
	u64 at_ns = scx_bpf_now() + ns;

	if (timer_at_ns && timer_at_ns <= at_ns)
		return;
	value = bpf_map_lookup_elem(&scheduler_timer, &first);
	if (!value)
		return;
	timer_at_ns = at_ns;
	bpf_timer_start(&value->timer, ns, 0);
}

static void kick_idle(const struct cpumask *allowed)
{
	s32 cpu = scx_bpf_pick_idle_cpu(allowed, 0);

	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE_);
}

/* Neither running nor waiting any more. With the lock. */
static __always_inline void rest(struct scheduler_task *state)
{
	if (state->runnable_in)
		unwake(state->runnable_in);
	state->runnable_in = NO_GROUP;
}

/* No longer waiting in its group. With the lock. */
static __always_inline void leave_queue(struct scheduler_task *state)
{
	if (!state->queued_in)
		return;
	if (at(state->queued_in)->queued)
		at(state->queued_in)->queued--;
	state->queued_in = NO_GROUP;
}

/* Charge what `p` has run since last time. */
static void charge_task(struct task_struct *p, struct scheduler_task *state)
{
	u64 now = scx_bpf_now(), total = fields(p)->se.sum_exec_runtime, ran = total - state->charged_ns;
	u32 weight = fields(p)->scx.weight, before;
	bool throttled;

	if ((s64)ran <= 0)
		return;
	state->charged_ns = total;
	if (weight > WEIGHT_TASK_MAX)
		weight = WEIGHT_TASK_MAX;
	if (weight < WEIGHT_TASK_MIN)
		weight = WEIGHT_TASK_MIN;
	state->vtime_ns += ran * WEIGHT_DEFAULT / weight;
	bpf_spin_lock(&tree_lock);
	before = throttled_groups;
	charge(state->group, ran, now);
	throttled = throttled_groups != before;
	bpf_spin_unlock(&tree_lock);
	if (throttled) {
		count(THROTTLES);
		need_timer(HOLD_CHECK_NS);
	}
}

static __always_inline struct scheduler_hold *hold_of(struct task_struct *p)
{
	return bpf_task_storage_get(&scheduler_holds, p, NULL, 0);
}

/* Whether somebody wants `p` held; the clock is the writer's, not scx_bpf_now, which drifts from it. */
static __always_inline bool is_hold_wanted(struct task_struct *p)
{
	struct scheduler_hold *hold = hold_of(p);

	return hold && hold->until_ns && hold->until_ns > bpf_ktime_get_ns();
}

static __always_inline bool is_held(struct task_struct *p, const struct scheduler_task *state)
{
	return state->may_park && is_hold_wanted(p);
}

static bool group_throttled(u32 group)
{
	bool throttled;

	if (!throttled_groups)
		return false;
	bpf_spin_lock(&tree_lock);
	throttled = is_throttled(group);
	bpf_spin_unlock(&tree_lock);
	return throttled;
}

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

/* A CPU whose task `p` may displace, or -1. */
static s32 find_displaceable(struct task_struct *p, struct scheduler_task *state, u32 latency)
{
	u32 session = latency == LATENCY_AGENT ? at(state->group)->parent : NO_GROUP;
	const struct cpumask *allowed = fields(p)->cpus_ptr;
	s32 first = scx_bpf_task_cpu(p), found = -1;
	u32 found_rank = rank(latency);
	bool within, entitled;
	u32 i;

	bpf_spin_lock(&tree_lock);
	entitled = is_entitled(state->group, NO_GROUP, knobs.prompt_allowance_ns);
	bpf_spin_unlock(&tree_lock);
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
		if (!entitled) {
			if (!session)
				return -1;
			bpf_spin_lock(&tree_lock);
			within = is_within(other->group, session);
			bpf_spin_unlock(&tree_lock);
			if (!within)
				continue;
		}
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
	if (rank(latency) != LATENCY_INTERACTIVE || fields(p)->nr_cpus_allowed < (int)knobs.cpus)
		return false;
	bpf_spin_lock(&tree_lock);
	entitled = is_entitled(state->group, NO_GROUP, knobs.prompt_allowance_ns);
	bpf_spin_unlock(&tree_lock);
	if (!entitled)
		return false;
	count(PLACED_PROMPT);
	scx_bpf_dsq_insert(p, PROMPT_QUEUE, slice_of(latency), enq_flags);
	kick_idle(fields(p)->cpus_ptr);
	return true;
}

/* Put `p` away until its hold ends. False: it has been held for as long as a task may be. */
static bool park(struct task_struct *p, u64 enq_flags)
{
	struct scheduler_hold *hold = hold_of(p);

	if (!hold)
		return false;
	if (hold->total_ns >= knobs.hold_total_max_ns) {
		hold->until_ns = 0;
		count(HOLDS_REFUSED_TOTAL);
		return false;
	}
	/* Else it was queued anew while it was held: moved to another cgroup, say. */
	if (!hold->begun_at_ns) {
		hold->begun_at_ns = bpf_ktime_get_ns();
		hold->holds++;
		count(HOLDS);
	}
	scx_bpf_dsq_insert(p, HOLD_QUEUE, slice_of(LATENCY_NORMAL), enq_flags);
	need_timer(HOLD_CHECK_NS);
	return true;
}

/* `p` runs again after a hold. */
static void end_hold(struct task_struct *p)
{
	struct scheduler_hold *hold = hold_of(p);

	if (!hold)
		return;
	if (hold->begun_at_ns)
		hold->total_ns += bpf_ktime_get_ns() - hold->begun_at_ns;
	hold->begun_at_ns = 0;
	hold->until_ns = 0;
}

/* The task's place among those of its group: what it slept through is forgotten, and what it overran, too. */
static void settle_task(struct scheduler_task *state, u64 slice)
{
	u64 clock = at(state->group)->task_clock;

	if ((s64)(state->vtime_ns - (clock - slice)) < 0)
		state->vtime_ns = clock - slice;
	if ((s64)(state->vtime_ns - (clock + DRIFT_MAX_NS)) > 0)
		state->vtime_ns = clock + DRIFT_MAX_NS;
}

static void wait_in_group(struct task_struct *p, struct scheduler_task *state, u64 slice, u64 enq_flags)
{
	u32 number = state->group;
	struct group *group = at(number);

	bpf_spin_lock(&tree_lock);
	if (state->queued_in != number) {
		leave_queue(state);
		if (!group->queued && group->heap) {
			if (group->own_key < group->clock - CLAIM_MAX_NS)
				group->own_key = group->clock - CLAIM_MAX_NS;
			if (group->own_key > group->clock + CLAIM_MAX_NS)
				group->own_key = group->clock + CLAIM_MAX_NS;
		}
		group->queued++;
		state->queued_in = number;
	}
	activate(number);
	bpf_spin_unlock(&tree_lock);
	scx_bpf_dsq_insert_vtime(p, GROUP_QUEUE + number, slice, state->vtime_ns, enq_flags);
	kick_idle(fields(p)->cpus_ptr);
}

static void wait_on_cpu(struct task_struct *p, struct scheduler_task *state, u64 slice, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);

	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	bpf_spin_unlock(&tree_lock);
	scx_bpf_dsq_insert(p, PINNED_QUEUE + cpu, slice, enq_flags);
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
	if (is_held(p, state) && park(p, enq_flags))
		return;
	latency = latency_of(state->group);
	slice = slice_of(latency);
	settle_task(state, slice);
	if ((enq_flags & ENQ_WAKEUP) && !group_throttled(state->group) && serve_promptly(p, state, latency, enq_flags))
		return;
	if (fields(p)->nr_cpus_allowed < (int)knobs.cpus)
		wait_on_cpu(p, state, slice, enq_flags);
	else
		wait_in_group(p, state, slice, enq_flags);
}

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

/*
 * The first pinned task of this CPU that goes before the tree's choice `rival` and before the group of the task that
 * just ran, or that waited too long.
 */
static bool run_pinned(s32 cpu, u32 rival, u32 going_on, u64 now)
{
	struct task_struct *p;
	struct bpf_iter_scx_dsq it;
	u32 looked = zero;
	bool moved = false, throttled, before;

	if (scx_bpf_dsq_nr_queued(PINNED_QUEUE + cpu) <= 0)
		return false;
	if (bpf_iter_scx_dsq_new(&it, PINNED_QUEUE + cpu, 0))
		goto out;
	while (looked < LOOK_AHEAD && (p = bpf_iter_scx_dsq_next(&it))) {
		struct scheduler_task *state = state_of(p);
		bool overdue;

		looked++;
		if (!state)
			continue;
		overdue = now - state->queued_at_ns > knobs.rescue_after_ns;
		bpf_spin_lock(&tree_lock);
		throttled = is_throttled(state->group);
		before = (!rival || is_before(state->group, rival)) &&
			 (!going_on || is_before(state->group, going_on));
		bpf_spin_unlock(&tree_lock);
		if (overdue || (before && !throttled)) {
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

/* Whether the task that just ran goes on: nobody waits that goes before it. */
static bool keep_running(struct task_struct *prev, u32 rival, u32 going_on)
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
	bpf_spin_unlock(&tree_lock);
	count(PLACED_KEPT);
	set_slice(prev, slice_of(latency_of(going_on)));
	return true;
}

static bool steal_pinned(s32 cpu)
{
	u32 i;

	for (i = zero + 1; i < knobs.cpus && i < CPUS && can_loop; i++) {
		u32 other = cpu + i;

		if (other >= knobs.cpus)
			other -= knobs.cpus;
		if (scx_bpf_dsq_nr_queued(PINNED_QUEUE + other) > 0 && scx_bpf_dsq_move_to_local(PINNED_QUEUE + other))
			return true;
	}
	return false;
}

SEC("struct_ops/agentcg_dispatch")
void BPF_PROG(agentcg_dispatch, s32 cpu, struct task_struct *prev)
{
	u64 now = scx_bpf_now();
	u32 shifted[PICK_TRIES] = {}, rival = NO_GROUP, going_on = group_to_go_on(prev);
	bool found = false;
	int try;

	if (scx_bpf_dsq_nr_queued(RESCUE_QUEUE) > 0 && scx_bpf_dsq_move_to_local(RESCUE_QUEUE)) {
		count(PLACED_RESCUED);
		return;
	}
	if (scx_bpf_dsq_nr_queued(PROMPT_QUEUE) > 0 && scx_bpf_dsq_move_to_local(PROMPT_QUEUE))
		return;
	for (try = 0; try < PICK_TRIES; try++) {
		bpf_spin_lock(&tree_lock);
		rival = next_group();
		bpf_spin_unlock(&tree_lock);
		if (run_pinned(cpu, rival, going_on, now) || keep_running(prev, rival, going_on)) {
			found = true;
			break;
		}
		if (!rival) {
			count(PICK_EMPTY);
			break;
		}
		if (scx_bpf_dsq_move_to_local(GROUP_QUEUE + rival)) {
			bpf_spin_lock(&tree_lock);
			advance(rival);
			bpf_spin_unlock(&tree_lock);
			count(PLACED_QUEUED);
			found = true;
			break;
		}
		/* Its tasks are on their way in, or out to another CPU: look past it once. */
		count(PICK_RACED);
		bpf_spin_lock(&tree_lock);
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
		steal_pinned(cpu);
}

SEC("struct_ops/agentcg_tick")
void BPF_PROG(agentcg_tick, struct task_struct *p)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	charge_task(p, state);
	if (is_hold_wanted(p) && interrupted_user_code()) {
		state->may_park = 1;
		set_slice(p, 0);
		return;
	}
	if (group_throttled(state->group))
		set_slice(p, 0);
}

SEC("struct_ops/agentcg_running")
void BPF_PROG(agentcg_running, struct task_struct *p)
{
	struct scheduler_task *state = state_of(p);
	struct cpu_state *cpu = cpu_at(scx_bpf_task_cpu(p));
	struct group *group;

	cpu->idle_retries = 0;
	if (!state)
		return;
	if (state->may_park) {
		state->may_park = 0;
		end_hold(p);
	}
	state->charged_ns = fields(p)->se.sum_exec_runtime;
	group = at(state->group);
	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	if ((s64)(state->vtime_ns - group->task_clock) > 0)
		group->task_clock = state->vtime_ns;
	bpf_spin_unlock(&tree_lock);
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
	charge_task(p, state);
	if (!runnable)
		state->may_park = 0;
}

SEC("struct_ops/agentcg_runnable")
void BPF_PROG(agentcg_runnable, struct task_struct *p, u64 enq_flags)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	bpf_spin_lock(&tree_lock);
	if (!state->runnable_in) {
		wake(state->group);
		state->runnable_in = state->group;
	}
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_quiescent")
void BPF_PROG(agentcg_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct scheduler_task *state = state_of(p);

	if (!state)
		return;
	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	rest(state);
	bpf_spin_unlock(&tree_lock);
}

SEC("struct_ops/agentcg_update_idle")
void BPF_PROG(agentcg_update_idle, s32 cpu, bool idle)
{
	struct cpu_state *state = cpu_at(cpu);

	state->is_busy = 0;
	/* A task that was queued between our last look and the idle mark found no idle CPU to wake. */
	if (!idle || !at(root_group)->heap || state->idle_retries >= IDLE_RETRIES_MAX)
		return;
	state->idle_retries++;
	count(IDLE_RETRIES);
	scx_bpf_kick_cpu(cpu, 0);
}

static u32 group_of(struct cgroup *cgrp)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id);
	u32 *group = bpf_map_lookup_elem(&scheduler_groups, &id);

	return group ? *group : root_group;
}

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

SEC("struct_ops/agentcg_cgroup_move")
void BPF_PROG(agentcg_cgroup_move, struct task_struct *p, struct cgroup *from, struct cgroup *to)
{
	struct scheduler_task *state = state_of(p);
	u32 number = group_of(to);

	if (!state)
		return;
	bpf_spin_lock(&tree_lock);
	leave_queue(state);
	rest(state);
	unreference(state->group);
	state->group = number;
	at(number)->references++;
	state->vtime_ns = at(number)->task_clock;
	bpf_spin_unlock(&tree_lock);
}

static void set_cap(struct group *group, u64 period_us, u64 quota_us, u64 burst_us, u64 now)
{
	/* "max" is all ones, in whatever unit. */
	if (!period_us || !quota_us || quota_us >> 44) {
		group->quota_ns = 0;
		return;
	}
	group->period_ns = period_us * NS_PER_US;
	group->quota_ns = quota_us * NS_PER_US;
	group->burst_ns = burst_us * NS_PER_US;
	group->budget_ns = group->quota_ns;
	group->period_end_ns = now + group->period_ns;
}

SEC("struct_ops.s/agentcg_cgroup_init")
s32 BPF_PROG(agentcg_cgroup_init, struct cgroup *cgrp, struct scx_cgroup_init_args *args)
{
	u64 id = BPF_CORE_READ(cgrp, kn, id), period = 0, quota = 0, burst = 0, now = scx_bpf_now(), clock;
	struct cgroup *above = BPF_CORE_READ(cgrp, self.parent, cgroup);
	u32 parent = above ? group_of(above) : NO_GROUP, number, weight = args->weight;
	struct group *group;
	bool is_made;
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

/* Defined so that the kernel does not end us over hotplug: a queue of a CPU that is gone is emptied by the others. */
SEC("struct_ops/agentcg_cpu_online")
void BPF_PROG(agentcg_cpu_online, s32 cpu)
{
}

SEC("struct_ops/agentcg_cpu_offline")
void BPF_PROG(agentcg_cpu_offline, s32 cpu)
{
	cpu_at(cpu)->is_busy = 0;
	cpu_at(cpu)->idle_retries = 0;
}

/* Give every throttled group whose next period has come its quota, and let it compete again. When to look next. */
static u64 end_throttles(u64 now)
{
	u64 next = SWEEP_NS, wait;
	u32 number, left = throttled_groups;
	bool ended;

	for (number = zero + 1; left && number <= groups_high && number < GROUPS && can_loop; number++) {
		struct group *group = at(number);

		if (!(group->flags & GROUP_THROTTLED))
			continue;
		left--;
		ended = false;
		bpf_spin_lock(&tree_lock);
		if (group->flags & GROUP_THROTTLED) {
			if (group->quota_ns)
				refill(group, now);
			if (!group->quota_ns || group->budget_ns > 0) {
				group->flags &= ~GROUP_THROTTLED;
				throttled_groups--;
				ended = true;
				if (group->queued || group->heap)
					activate(number);
			}
		}
		wait = group->period_end_ns - now;
		bpf_spin_unlock(&tree_lock);
		if (ended)
			count(UNTHROTTLES);
		else if (wait < next)
			next = wait;
	}
	return next;
}

static __always_inline bool is_being_killed(struct task_struct *p)
{
	return BPF_CORE_READ(p, signal, flags) & SIGNAL_GROUP_EXIT;
}

/* Let every task go whose hold ended or was lifted. When to look next. */
static u64 end_holds(void)
{
	u64 now = bpf_ktime_get_ns();
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 looked = zero;

	if (scx_bpf_dsq_nr_queued(HOLD_QUEUE) <= 0)
		return SWEEP_NS;
	if (!bpf_iter_scx_dsq_new(&it, HOLD_QUEUE, 0)) {
		while (looked < GROUPS && can_loop && (p = bpf_iter_scx_dsq_next(&it))) {
			struct scheduler_hold *hold = hold_of(p);

			looked++;
			if (hold && hold->until_ns > now && now - hold->begun_at_ns < knobs.hold_max_ns && !is_being_killed(p))
				continue;
			if (scx_bpf_dsq_move(&it, p, RESCUE_QUEUE, 0))
				count(HOLDS_RELEASED);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return HOLD_CHECK_NS;
}

/* Tasks of one queue that have waited too long go where every CPU looks first. */
static void rescue_from(u32 queue, u64 now)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 looked = zero;

	if (!bpf_iter_scx_dsq_new(&it, queue, 0)) {
		while (looked < SWEEP_TASKS && can_loop && (p = bpf_iter_scx_dsq_next(&it))) {
			struct scheduler_task *state = state_of(p);

			looked++;
			if (state && now > state->queued_at_ns && now - state->queued_at_ns > knobs.rescue_after_ns)
				scx_bpf_dsq_move(&it, p, RESCUE_QUEUE, 0);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
}

/* Once a second: free the groups of cgroups that are gone, rescue who waited too long. */
static void sweep(u64 now)
{
	u32 number;
	bool freed;

	for (number = zero + 1; number <= groups_high && number < GROUPS && can_loop; number++) {
		struct group *group = at(number);

		if (group->flags & GROUP_DEAD && !group->references) {
			freed = false;
			bpf_spin_lock(&tree_lock);
			if (group->flags == GROUP_DEAD && !group->references && !group->heap) {
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
		if (group->queued && scx_bpf_dsq_nr_queued(GROUP_QUEUE + number) > 0)
			rescue_from(GROUP_QUEUE + number, now);
	}
}

static u64 swept_at_ns;

static int on_timer(void *map, u32 *key, struct timer_value *value)
{
	u64 now = scx_bpf_now(), next, wait;
	u32 cpu;

	next = end_throttles(now);
	wait = end_holds();
	if (wait < next)
		next = wait;
	if (now - swept_at_ns >= SWEEP_NS) {
		swept_at_ns = now;
		sweep(now);
	}
	if (at(root_group)->heap || scx_bpf_dsq_nr_queued(RESCUE_QUEUE) > 0) {
		for (cpu = zero; cpu < knobs.cpus && cpu < CPUS && can_loop; cpu++)
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE_);
	}
	if (next < 100000)
		next = 100000;
	timer_at_ns = now + next;
	bpf_timer_start(&value->timer, next, 0);
	return 0;
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
}

#define AGENTCG_OPS(variable, own_flags)                                                                               \
	SEC(".struct_ops.link")                                                                                        \
	struct sched_ext_ops variable = {                                                                              \
		.select_cpu = (void *)agentcg_select_cpu,                                                              \
		.enqueue = (void *)agentcg_enqueue,                                                                    \
		.dispatch = (void *)agentcg_dispatch,                                                                  \
		.tick = (void *)agentcg_tick,                                                                          \
		.runnable = (void *)agentcg_runnable,                                                                  \
		.running = (void *)agentcg_running,                                                                    \
		.stopping = (void *)agentcg_stopping,                                                                  \
		.quiescent = (void *)agentcg_quiescent,                                                                \
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
AGENTCG_OPS(agentcg_full, OPS_KEEP_BUILTIN_IDLE | OPS_ENQ_LAST);
AGENTCG_OPS(agentcg_partial, OPS_KEEP_BUILTIN_IDLE | OPS_ENQ_LAST | OPS_SWITCH_PARTIAL);
