/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Accounts of cgroups, and what could not be told: what every lifecycle program needs.
 */
#ifndef AGENTCGROUP_LIFECYCLE_ACCOUNTS_BPF_H
#define AGENTCGROUP_LIFECYCLE_ACCOUNTS_BPF_H

#include "abi.h"
#include "ancestry.bpf.h"
#include "kernel.h"

const volatile struct lifecycle_knobs knobs = {
	.reported_kinds = (1 << EVENT_KINDS) - 1,
	.reports_children = 1,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct losses);
} losses SEC(".maps");

/* What is remembered of a task. Account, and what is_... says, are kept for the leader of a process. */
struct home {
	u64 account_id;
	u64 over_high_since_ns;
	u64 oom_limit_cgroup_id;
	u32 is_child;
	u32 is_known;
	/* Of the door, see lifecycle_door.bpf.h: nobody to ask about; came from outside; let be, and all that it forks. */
	u32 is_runtime;
	u32 is_from_outside;
	u32 is_let_be;
	u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct home);
} homes SEC(".maps");

/* ---- losses, always counted ------------------------------------------------------------------------------------- */

static __always_inline struct losses *loss_counts(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&losses, &zero);
}

#define COUNT_LOSS(field)                                                                                              \
	do {                                                                                                           \
		struct losses *counts = loss_counts();                                                                 \
		if (counts)                                                                                            \
			__sync_fetch_and_add(&counts->field, 1);                                                       \
	} while (0)

static __always_inline void *reserve(u32 kind, u64 size)
{
	void *record = bpf_ringbuf_reserve(&events, size, 0);

	if (!record)
		COUNT_LOSS(records[kind]);
	return record;
}

static __always_inline bool is_reported(u32 kind)
{
	return knobs.reported_kinds & (1 << kind);
}

/* ---- accounts ---------------------------------------------------------------------------------------------------- */

/* The body runs for each account that `from` lies in, innermost first. */
#define FOR_EACH_ACCOUNT(from, id, account)                                                                            \
	FOR_EACH_ANCESTOR(from)                                                                                        \
		if (id = id_of(cursor), account = bpf_map_lookup_elem(&accounts, &id), account)

/* Only at the end of a walk that went to the root. */
#define COUNT_DEPTH_LOSS()                                                                                             \
	do {                                                                                                           \
		if (depth == MAX_DEPTH && cursor)                                                                      \
			COUNT_LOSS(depth);                                                                             \
	} while (0)

/* The innermost account; 0: `from` is nobody's. */
static __noinline u64 account_of(struct cgroup *from)
{
	struct account *account;
	u64 id;

	FOR_EACH_ACCOUNT(from, id, account)
		return id;
	COUNT_DEPTH_LOSS();
	return 0;
}

/*
 * Adds to one counter, a word of struct account, of every account up to, and without, `until` (0: all). The innermost
 * account; 0: `from` is nobody's.
 */
static __always_inline u64 add_to_accounts(struct cgroup *from, u64 until, u32 counter, u64 amount)
{
	struct account *account;
	u64 id, innermost = 0;

	FOR_EACH_ACCOUNT(from, id, account) {
		if (!innermost)
			innermost = id;
		if (id == until)
			return innermost;
		__sync_fetch_and_add((u64 *)account + counter, amount);
	}
	COUNT_DEPTH_LOSS();
	return innermost;
}

#define ADD(from, counter, amount, until)                                                                              \
	add_to_accounts(from, until, __builtin_offsetof(struct account, counter) / sizeof(u64), amount)

static __always_inline void fill_header(struct event_header *header, u32 kind, u32 pid, u64 account_id,
					struct cgroup *cgroup)
{
	header->kind = kind;
	header->pid = pid;
	header->at_ns = bpf_ktime_get_boot_ns();
	header->account_id = account_id;
	header->cgroup_id = id_of(cgroup);
}

static __always_inline struct home *home_of(struct task_struct *task)
{
	struct home *home = bpf_task_storage_get(&homes, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!home)
		COUNT_LOSS(homes);
	return home;
}

#endif
