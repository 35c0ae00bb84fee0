// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * How memory grows, seen where the kernel charges it.
 *
 * A task's memory is charged to its cgroup in batches of 64 pages (a huge page is a batch of its own), and every batch
 * goes through page_counter_try_charge once, whatever the depth of the cgroup: often enough to see a call grow within a
 * quarter of a megabyte, and seldom enough to cost nothing beside clearing those pages. There each account that the task's
 * cgroup lies in is brought up to date:
 *
 *     agentcgroup.slice
 *       session       account: 700 MiB, +120 MiB/s
 *         calls
 *           c1        account: 300 MiB, +120 MiB/s, over its soft limit since 0.3 s
 *           c2        account: 400 MiB, +0
 *
 * The daemon reads all of it with one system call. What is uncharged is seen at the next charge.
 *
 * Sees not: memory that is charged to another cgroup than the current task's (a remote charge, a network packet).
 */
#include "kernel.h"

#include "ancestry.bpf.h"
#include "memory.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* PAGE_COUNTER_MAX: LONG_MAX / PAGE_SIZE on 64 bits. */
#define NO_LIMIT_PAGES ((~0ULL >> 1) >> 12)

/* Read by nobody: it puts the record into the type information, where the daemon's tests compare it. */
const struct memory_breach *const breach_record = NULL;

const volatile struct memory_knobs knobs = {
	.window_ns = 10 * 1000 * 1000,
	.averaging_ns = 100 * 1000 * 1000,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct memory_account);
} memory_accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct memory_losses);
} memory_losses SEC(".maps");

#include "memory_growth.bpf.h"
#include "memory_guard.bpf.h"
#include "memory_stall.bpf.h"

/* The current task's own memory cgroup of cgroup v2; NULL: memory is on v1 here. */
static __always_inline struct cgroup_subsys_state *memory_of(struct task_struct *task)
{
	struct css_set *set = task->cgroups;
	struct cgroup_subsys_state *css = set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id)];

	return css && css->cgroup->root == set->dfl_cgrp->root ? css : NULL;
}

SEC("fentry/page_counter_try_charge")
int BPF_PROG(on_charge, struct page_counter *counter, unsigned long pages)
{
	struct cgroup_subsys_state *css = memory_of(bpf_get_current_task_btf());
	struct memory_account *account;
	struct memory_losses *losses;
	struct memory_numbers *numbers = guard_numbers();
	bool is_within = false, was_held = false;
	u64 id, usage_bytes, now = 0;
	u32 zero = 0;
	int depth;

	/* Not swap, kernel memory apart, or huge pages; not somebody else's. */
	if ((u64)counter != (u64)css + bpf_core_field_offset(struct mem_cgroup, memory))
		return 0;
	for (depth = 0; depth < MAX_DEPTH && css && counter; depth++, css = css->parent, counter = counter->parent) {
		id = css->cgroup->kn->id;
		account = bpf_map_lookup_elem(&memory_accounts, &id);
		if (!account)
			continue;
		if (!now)
			now = bpf_ktime_get_ns();
		usage_bytes = (counter->usage.counter + pages) << PAGE_SHIFT;
		account->at_ns = now;
		account->usage_bytes = usage_bytes;
		account->counter = (u64)counter;
		__sync_fetch_and_add(&account->batches, 1);
		close_window(account, usage_bytes, now);
		watch_soft_limit(account, usage_bytes, counter->high, now);
		was_held |= account->asked_ns != 0;
		is_within |= numbers && is_within_promise(account, usage_bytes, numbers);
	}
	if (depth == MAX_DEPTH && css) {
		losses = bpf_map_lookup_elem(&memory_losses, &zero);
		if (losses)
			__sync_fetch_and_add(&losses->depth, 1);
	}
	/* Who was held has holds to be put on the books; nobody else is of interest within what it was promised. */
	if (now && numbers && (was_held || !is_within) && may_be_short(numbers))
		guard_charge(pages);
	return 0;
}

SEC("fentry/page_counter_uncharge")
int BPF_PROG(on_uncharge, struct page_counter *counter, unsigned long pages)
{
	if (short_counter)
		guard_uncharge(counter);
	return 0;
}

SEC("syscall")
int let_go(void *context)
{
	return release_all();
}
