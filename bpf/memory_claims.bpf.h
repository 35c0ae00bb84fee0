/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Claims: what sessions have been promised of the memory that they share and have not taken yet, and how hard it presses.
 */
#ifndef AGENTCGROUP_MEMORY_CLAIMS_BPF_H
#define AGENTCGROUP_MEMORY_CLAIMS_BPF_H

#include "ancestry.bpf.h"
#include "memory_growth.bpf.h"

enum {
	MILLI = 1000,
	/* A power of two; ranks are smaller. */
	RANKS = 4,
};

#define LOOK_EVERY_NS (1000 * 1000ULL)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct memory_guard);
} memory_guards SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct memory_numbers);
} memory_numbers SEC(".maps");

struct shortage {
	u64 now;
	u64 active_ns;
	u64 wanted_bytes;
	u64 stall_ns;
	u64 for_id;
	u32 rank;
};

/* The claims above each rank as of the latest look: with many sessions one costs more than a batch does. */
static struct shortage claims_above[RANKS];

static __always_inline struct memory_numbers *guard_numbers(void)
{
	u32 zero = 0;
	struct memory_numbers *numbers = bpf_map_lookup_elem(&memory_numbers, &zero);

	return numbers && numbers->watch_bytes ? numbers : NULL;
}

/*
 * The guarded session that the task lives in, 0: none; and the innermost account below it, which is a call's, 0: it lives
 * in none.
 */
static __always_inline u64 session_of(struct task_struct *task, u64 *call_id)
{
	struct cgroup *cgroup = task->cgroups->dfl_cgrp;
	struct cgroup_subsys_state *css = (struct cgroup_subsys_state *)&cgroup->self;
	int depth;
	u64 id;

	*call_id = 0;
	for (depth = 0; depth < MAX_DEPTH && css; depth++, css = css->parent) {
		id = css->cgroup->kn->id;
		if (bpf_map_lookup_elem(&memory_guards, &id))
			return id;
		if (!*call_id && bpf_map_lookup_elem(&memory_accounts, &id))
			*call_id = id;
	}
	return 0;
}

/* What one session of higher rank has been promised and not taken, and how long it waits. */
static long add_claim(struct bpf_map *map, const u64 *id, struct memory_guard *guard, struct shortage *total)
{
	struct memory_account *account;
	struct page_counter *counter;
	u64 usage_bytes;

	if (guard->rank <= total->rank)
		return 0;
	account = bpf_map_lookup_elem(&memory_accounts, id);
	if (!account || !account->counter)
		return 0;
	if (account->stalled_until_ns > total->now && account->stall_last_ns > total->stall_ns) {
		total->stall_ns = account->stall_last_ns;
		total->for_id = *id;
	}
	if (total->now > account->at_ns && total->now - account->at_ns > total->active_ns)
		return 0;
	/* Now, not as of its last charge: it may have freed much since. Gone with its cgroup: nonsense, cut off below. */
	counter = (struct page_counter *)account->counter;
	usage_bytes = BPF_CORE_READ(counter, usage.counter) << PAGE_SHIFT;
	if (usage_bytes < guard->protection_bytes)
		total->wanted_bytes += guard->protection_bytes - usage_bytes;
	if (!total->for_id)
		total->for_id = *id;
	return 0;
}

/* The claims of sessions above `rank`, not older than LOOK_EVERY_NS. */
static __always_inline void add_claims(struct shortage *total, u32 rank, const struct memory_numbers *numbers, u64 now)
{
	struct shortage *latest = &claims_above[rank & (RANKS - 1)];

	if (now - latest->now < LOOK_EVERY_NS) {
		*total = *latest;
		total->now = now;
		return;
	}
	*total = (struct shortage){.now = now, .active_ns = numbers->active_ns, .rank = rank};
	bpf_for_each_map_elem(&memory_guards, add_claim, total, 0);
	*latest = *total;
}

/* Sessions or their promises are others now. */
static __always_inline void forget_claims(void)
{
	u32 rank;

	for (rank = 0; rank < RANKS; rank++)
		claims_above[rank].now = 0;
}

/* What is free of the limit that `shared`, the address of a counter, is held to. */
static __always_inline u64 free_bytes(u64 shared)
{
	struct page_counter *counter = (struct page_counter *)shared;
	u64 limit = BPF_CORE_READ(counter, max), used = BPF_CORE_READ(counter, usage.counter);

	if (limit >= NO_LIMIT_PAGES)
		return ~0ULL;
	return limit > used ? (limit - used) << PAGE_SHIFT : 0;
}

/* Where the memory is counted that sessions share; 0: nothing was charged there yet. */
static __always_inline u64 shared_counter(struct memory_numbers *numbers)
{
	struct memory_account *shared = bpf_map_lookup_elem(&memory_accounts, &numbers->shared_id);

	return shared ? shared->counter : 0;
}

static __always_inline u64 least(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* Of 1000: how hard `total` presses with so much free. */
static __always_inline u64 severity(const struct shortage *total, const struct memory_numbers *numbers, u64 free)
{
	u64 needed = total->wanted_bytes + numbers->margin_bytes, missing = 0, waits = 0;

	if (!total->for_id)
		return 0;
	/* The margin is the way to stop in: with half of it gone the hold is a full one. */
	if (free < needed)
		missing = least(MILLI, (needed - free) / (numbers->margin_bytes / 2 / MILLI + 1));
	if (total->stall_ns)
		waits = least(MILLI, total->stall_ns / (numbers->stall_full_ns / MILLI + 1));
	return missing > waits ? missing : waits;
}

#endif
