/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The scheduler's side of holds: taking tasks off, keeping them, letting them go. The contract is in holds.bpf.h.
 *
 * A task is held only if it was interrupted in user mode, so that it has no lock of the kernel. A tick that comes upon
 * kernel code starts a timer of this CPU that looks again every LOOK_NS, for a task that takes one page fault after the
 * other is in the kernel at most of its ticks.
 */
#ifndef AGENTCGROUP_SCHEDULER_PARK_BPF_H
#define AGENTCGROUP_SCHEDULER_PARK_BPF_H

#include "scheduler_latency.bpf.h"

#define LOOK_NS (100 * 1000ULL)
enum {
	/* Looks after one tick; the next tick begins anew. */
	LOOKS_MAX = 40,

	/* What found the task in user mode; scheduler_task.may_park. */
	PARK_TICK = 1,
	PARK_LOOK = 2,
};

static __always_inline struct scheduler_hold *hold_of(struct task_struct *p)
{
	return bpf_task_storage_get(&scheduler_holds, p, NULL, 0);
}

/* Whether somebody wants `p` held; the clock is the writer's, not scx_bpf_now, which drifts from it. */
static __always_inline bool is_hold_wanted(struct task_struct *p)
{
	struct scheduler_hold *hold = hold_of(p);

	return hold && hold->until_ns && hold->until_ns > bpf_ktime_get_ns() && !is_ending(p);
}

static __always_inline bool is_held(struct task_struct *p, const struct scheduler_task *state)
{
	struct scheduler_hold *hold = hold_of(p);

	/* Its writer found it on its way back, see `on_way_back`. */
	if (hold && hold->on_way_back)
		return is_hold_wanted(p);
	/* What a look saw may be over by the time its kick arrives. */
	if (!state->may_park || (state->may_park == PARK_LOOK && !entered_by_interrupt(p)))
		return false;
	return is_hold_wanted(p);
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
		if (hold->asked_at_ns)
			hold->waited_ns = hold->begun_at_ns - hold->asked_at_ns;
		hold->asked_at_ns = 0;
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
			if (hold && hold->until_ns > now && now - hold->begun_at_ns < knobs.hold_max_ns && !is_ending(p))
				continue;
			if (scx_bpf_dsq_move(&it, p, RESCUE_QUEUE, 0))
				count(HOLDS_RELEASED);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return HOLD_CHECK_NS;
}

/* Look at this CPU's task again in LOOK_NS. */
static void look_again(s32 cpu)
{
	u32 key = cpu;
	struct timer_value *value = bpf_map_lookup_elem(&scheduler_looks, &key);

	if (value)
		bpf_timer_start(&value->timer, LOOK_NS, TIMER_CPU_PIN);
}

/* In the soft interrupt of a timer that has interrupted the CPU's task. */
static int on_look(void *map, u32 *key, struct timer_value *value)
{
	struct task_struct *p = bpf_get_current_task_btf();
	struct scheduler_task *state = state_of(p);
	struct cpu_state *cpu = cpu_at(*key);

	if (!state || !is_hold_wanted(p)) {
		cpu->looks_left = 0;
		return 0;
	}
	if (entered_by_interrupt(p)) {
		cpu->looks_left = 0;
		state->may_park = PARK_LOOK;
		scx_bpf_kick_cpu(*key, SCX_KICK_PREEMPT_);
	} else if (cpu->looks_left) {
		cpu->looks_left--;
		look_again(*key);
	}
	return 0;
}

/* At a tick: take `p` off, now or soon, if it is to be held. */
static bool take_off(struct task_struct *p, struct scheduler_task *state)
{
	s32 number = scx_bpf_task_cpu(p);
	struct cpu_state *cpu = cpu_at(number);

	if (!is_hold_wanted(p))
		return false;
	if (interrupted_user_code()) {
		state->may_park = PARK_TICK;
		set_slice(p, 0);
		return true;
	}
	cpu->looks_left = LOOKS_MAX;
	look_again(number);
	return false;
}

#endif
