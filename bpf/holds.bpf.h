/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Holds: tasks that the scheduler keeps off the CPU for a moment. Included by scheduler.bpf.c, which honours them, and by
 * every object that wants a task held; bpf/shared_maps.py makes all of them use one map.
 *
 * The contract, for whoever writes `until_ns`, be it a program (`hold_task`) or the daemon (by pidfd):
 *
 * - The task is taken off at its next tick, in user mode, never in the kernel, where it may hold a lock. A tick that
 *   comes upon kernel code is followed by looks every 100 us, until one finds the task in user mode (on x86; elsewhere
 *   the next tick does). A task that does nothing but take page faults is hard to meet there: of holds of 40 ms in the
 *   guest one in fifteen never began. One that sleeps is not touched until it has woken up and met a tick.
 * - A writer that runs in the task on its way back to user mode, where it holds no lock of the kernel and no RCU grace
 *   period waits for it (task work, kernel 6.18), sets `on_way_back` and kicks the CPU; the task is then taken off at once,
 *   inside that callback, which sets it back to 0 when it goes on. holds_return.bpf.h does so.
 * - It stays off until `until_ns`, but not longer than scheduler_knobs.hold_max_ns (500 ms) at a time, and runs at least
 *   one tick in between. A later `until_ns`, written while it is held, makes this hold longer within the same bound.
 * - All holds of a task together last at most scheduler_knobs.hold_total_max_ns (5 s): after that it is not held until
 *   the writer sets `total_ns` back to 0.
 * - `until_ns` 0, or in the past, lets it go; within HOLD_CHECK_NS (2 ms) when it is held already. When a hold ends the
 *   scheduler sets it to 0 by itself. A held task may be moved to another cgroup and stays held; one that is being killed
 *   is let go.
 * - Without our scheduler nobody is held and `until_ns` is left as it is. Ask the keeper's status.
 *
 * An entry is freed with its task. Only fields said to be the writer's may be written.
 */
#ifndef AGENTCGROUP_HOLDS_BPF_H
#define AGENTCGROUP_HOLDS_BPF_H

#include "kernel.h"
#include "scheduler.h"

#define HOLD_CHECK_NS (2 * 1000 * 1000ULL)

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct scheduler_hold);
} scheduler_holds SEC(".maps");

/*
 * Keep `p`, a trusted pointer such as bpf_get_current_task_btf(), off its CPU until `now` + `length_ns` of CLOCK_MONOTONIC
 * (bpf_ktime_get_ns). NULL: no memory for the entry. Not for programs that may run while a task's storage is locked.
 */
static __always_inline struct scheduler_hold *hold_task(struct task_struct *p, u64 now, u64 length_ns)
{
	struct scheduler_hold *hold = bpf_task_storage_get(&scheduler_holds, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!hold)
		return NULL;
	hold->asked_at_ns = now;
	hold->until_ns = now + length_ns;
	return hold;
}

/* Let `p` go; it need not be held. */
static __always_inline void release_task(struct task_struct *p)
{
	struct scheduler_hold *hold = bpf_task_storage_get(&scheduler_holds, p, NULL, 0);

	if (hold)
		hold->until_ns = 0;
}

#endif
