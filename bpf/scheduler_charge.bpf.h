/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * CPU time used: put on the books of a group and of all above it, and taken from their cpu.max.
 *
 * A group that has spent its quota is throttled: out of its parent's heap until the timer gives it the next one. What it
 * overran until the tick that ended it is carried into the next period, so that the average holds.
 */
#ifndef AGENTCGROUP_SCHEDULER_CHARGE_BPF_H
#define AGENTCGROUP_SCHEDULER_CHARGE_BPF_H

#include "scheduler_state.bpf.h"

enum {
	NS_PER_US = 1000,
};

/* A group that overran cpu.max is throttled for it at most this long. */
#define THROTTLE_MAX_NS (2 * 1000 * 1000 * 1000LL)

static bool is_throttled(u32 number)
{
	while (number && number != root_group && can_loop) {
		if (at(number)->flags & GROUP_THROTTLED)
			return true;
		number = at(number)->parent;
	}
	return false;
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

static void refill(struct group *group, u64 now)
{
	u64 periods;
	s64 most = group->quota_ns + group->burst_ns;

	if (now < group->period_end_ns)
		return;
	periods = (now - group->period_end_ns) / (group->period_ns ? group->period_ns : 1) + 1;
	group->period_end_ns += periods * group->period_ns;
	if (periods > 1000)
		periods = 1000;
	group->budget_ns += (s64)(periods * group->quota_ns);
	if (group->budget_ns > most)
		group->budget_ns = most;
}

/* Take `ns` of CPU time from cpu.max; with nothing left the group is out from now on. */
static void spend(struct group *group, u64 ns, u64 now)
{
	s64 least;

	if (!group->quota_ns)
		return;
	refill(group, now);
	group->budget_ns -= ns;
	least = -(s64)(THROTTLE_MAX_NS / (group->period_ns ? group->period_ns : 1) * group->quota_ns);
	if (group->budget_ns < least)
		group->budget_ns = least;
	if (group->budget_ns > 0 || group->flags & GROUP_THROTTLED)
		return;
	group->flags |= GROUP_THROTTLED;
	throttled_groups++;
}

/*
 * A group whose task is about to run is charged a slice ahead. Else all CPUs that look meanwhile find it as far behind as
 * before, and one of few tasks has all of them running at once, and then none, whatever weights they have. With the lock.
 */
static void prepay(struct cpu_state *cpu, u32 number)
{
	if (knobs.cpus < 2)
		return;
	cpu->prepaid_group = number;
	cpu->prepaid_ns = knobs.slice_ns[LATENCY_NORMAL];
	shift(number, cpu->prepaid_ns);
}

/* What was charged ahead and not used. With the lock. */
static void refund(struct cpu_state *cpu)
{
	if (!cpu->prepaid_group)
		return;
	shift(cpu->prepaid_group, -cpu->prepaid_ns);
	cpu->prepaid_group = NO_GROUP;
	cpu->prepaid_ns = 0;
}

/* What of `ran` the group of `number` was charged for ahead, or all that is left of that when the task `rests`. */
static __always_inline s64 take_prepaid(struct cpu_state *cpu, u32 number, s64 ran, bool rests)
{
	s64 taken;

	if (cpu->prepaid_group != number)
		return 0;
	taken = rests || cpu->prepaid_ns < ran ? cpu->prepaid_ns : ran;
	cpu->prepaid_ns -= taken;
	return taken;
}

/* Put `ns` of CPU time, of which `prepaid_ns` are there already, on the books of `number` and all above it. */
static void charge(u32 number, u64 ns, s64 prepaid_ns, u64 now)
{
	struct group *own = at(number);

	own->own_key += ns / (own->queued + 1);
	while (number && number != root_group && can_loop) {
		struct group *group = at(number), *parent = at(group->parent);

		charge_key(group, (s64)ns - prepaid_ns);
		/* Nobody else wanted it, so nobody has to be made good for it later. */
		if (parent->runnable <= 1 && group->key + group->debt > parent->clock)
			parent->clock = group->key + group->debt;
		spend(group, ns, now);
		number = group->parent;
	}
}

/* Charge what `p` has run since last time; `rests`: it goes to sleep with that. */
static void charge_task(struct task_struct *p, struct scheduler_task *state, bool rests)
{
	struct group *group = at(state->group);
	u64 now = scx_bpf_now(), total = fields(p)->se.sum_exec_runtime, ran = total - state->charged_ns;
	u32 weight = fields(p)->scx.weight, before;
	struct cpu_state *cpu = cpu_at(scx_bpf_task_cpu(p));
	bool throttled;

	if ((s64)ran < 0)
		ran = 0;
	if (!ran && !rests)
		return;
	state->charged_ns = total;
	if (weight > WEIGHT_TASK_MAX)
		weight = WEIGHT_TASK_MAX;
	if (weight < WEIGHT_TASK_MIN)
		weight = WEIGHT_TASK_MIN;
	bpf_spin_lock(&tree_lock);
	if ((s64)(state->vtime_ns - group->task_clock) > 0)
		group->task_clock = state->vtime_ns;
	before = throttled_groups;
	charge(state->group, ran, take_prepaid(cpu, state->group, ran, rests), now);
	if (rests)
		rest(state);
	throttled = throttled_groups != before;
	bpf_spin_unlock(&tree_lock);
	state->vtime_ns += ran * WEIGHT_DEFAULT / weight;
	if (throttled) {
		count(THROTTLES);
		need_timer(HOLD_CHECK_NS);
	}
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

#endif
