/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What scheduler.bpf.c shares with the daemon and with other BPF objects: knobs, map values, counters. Fixed widths and
 * no padding; scheduler.py holds the same as ctypes. Times in ns of CLOCK_MONOTONIC.
 */
#ifndef AGENTCGROUP_SCHEDULER_H
#define AGENTCGROUP_SCHEDULER_H

#include <linux/types.h>

/* How soon a wake-up is served; never how much CPU time a cgroup gets. In map `latency_classes`, by cgroup id. */
enum latency_class {
	LATENCY_INTERACTIVE,
	LATENCY_NORMAL,
	LATENCY_BATCH,
	/* An agent runtime: interactive, and ahead of the tools of its own session whatever the session has used. */
	LATENCY_AGENT,
	LATENCY_CLASSES,
};

enum scheduler_counter {
	/* How a task came to its CPU. */
	PLACED_IDLE,
	PLACED_QUEUED,
	PLACED_PINNED,
	PLACED_KERNEL_THREAD,
	PLACED_PREEMPTING,
	PLACED_PROMPT,
	PLACED_RESCUED,
	PLACED_KEPT,
	PLACED_STRAIGHT,

	/* Why a CPU found nothing where it looked. */
	PICK_EMPTY,
	PICK_RACED,
	IDLE_RETRIES,

	/* cpu.max. */
	THROTTLES,
	UNTHROTTLES,

	/* Holds. */
	HOLDS,
	HOLDS_RELEASED,
	HOLDS_REFUSED_TOTAL,

	/* Cgroups. */
	GROUPS_MADE,
	GROUPS_FREED,
	GROUPS_MISSING,
	TASKS_UNKNOWN,

	SCHEDULER_COUNTERS,
};

/* Constants of scheduler.bpf.c, set before it is loaded. */
struct scheduler_knobs {
	/* How long a task runs before the next is considered, by enum latency_class. */
	__u64 slice_ns[LATENCY_CLASSES];
	/* What a group may have had above its fair share and still be served promptly. */
	__u64 prompt_allowance_ns;
	/* A task that waited so long runs next whatever its group has used; far below the kernel's watchdog. */
	__u64 rescue_after_ns;
	/* Longest hold, and all holds of one task together. */
	__u64 hold_max_ns;
	__u64 hold_total_max_ns;
	/* CPU numbers that can exist: one more than the largest possible one. */
	__u32 cpus;
	__u32 reserved;
};

/* In task storage `scheduler_holds`; the contract is in holds.bpf.h. Times of CLOCK_MONOTONIC. */
struct scheduler_hold {
	/* The writer's: held until then; 0: not, or no longer. */
	__u64 until_ns;
	/* The scheduler's: begin of the present hold, 0: not held now. */
	__u64 begun_at_ns;
	/* The scheduler's, which only adds to it: all holds that have ended together. */
	__u64 total_ns;
	/* The scheduler's: how many holds began. */
	__u32 holds;
	/* The writer's: not 0 while the task is on its way back to user mode and has no lock; it may be taken off there. */
	__u32 on_way_back;
	/* The writer's: when it asked. The scheduler's: how long it then took until the latest hold began. */
	__u64 asked_at_ns;
	__u64 waited_ns;
};

/* What the scheduler knows of one task, in task storage `scheduler_tasks`. */
struct scheduler_task {
	/* Position among the tasks of its cgroup: time had, at nice 0. */
	__u64 vtime_ns;
	/* p->se.sum_exec_runtime up to which its groups were charged. */
	__u64 charged_ns;
	__u64 queued_at_ns;
	__u32 group;
	/* The group in whose `queued` the task counts; 0: none. */
	__u32 queued_in;
	/* The group in whose `runnable` the task counts; 0: none. */
	__u32 runnable_in;
	/* It was found without a lock of the kernel and is to be held; see scheduler_park.bpf.h. */
	__u32 may_park;
};

/* The end of the scheduler as the kernel tells it; `kind` 0: it runs. */
struct scheduler_end {
	__u32 kind;
	__u32 reserved;
	__s64 code;
	char reason[128];
	char message[384];
};

#endif
