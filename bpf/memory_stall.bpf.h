/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How long sessions wait for memory that they share with others: their tasks reclaim it themselves, for the limit of a
 * cgroup above the session or for the whole host. Reclaim for a limit of their own is their own affair.
 */
#ifndef AGENTCGROUP_MEMORY_STALL_BPF_H
#define AGENTCGROUP_MEMORY_STALL_BPF_H

#include "memory_claims.bpf.h"

struct waiting {
	u64 since_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct waiting);
} memory_waiting SEC(".maps");

/* The guarded session that the current task lives in. */
static __always_inline struct memory_account *session_of_current(void)
{
	u64 call_id, id = session_of(bpf_get_current_task_btf(), &call_id);

	return id ? bpf_map_lookup_elem(&memory_accounts, &id) : NULL;
}

/* `limited_id`: the cgroup that has no more room; 0: the host. A limit of the session's own is its own affair. */
static __always_inline int begin_wait(u64 limited_id)
{
	struct memory_numbers *numbers = guard_numbers();
	struct memory_account *session;
	struct waiting *waiting;

	if (!numbers || (limited_id && limited_id != numbers->shared_id))
		return 0;
	session = session_of_current();
	if (!session)
		return 0;
	waiting = bpf_task_storage_get(&memory_waiting, bpf_get_current_task_btf(), NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!waiting)
		return 0;
	waiting->since_ns = bpf_ktime_get_ns();
	__sync_fetch_and_add(&session->stalls, 1);
	return 0;
}

static __always_inline int end_wait(void)
{
	struct waiting *waiting = bpf_task_storage_get(&memory_waiting, bpf_get_current_task_btf(), NULL, 0);
	struct memory_numbers *numbers = guard_numbers();
	struct memory_account *session;
	u64 now, length_ns;

	if (!waiting || !waiting->since_ns)
		return 0;
	now = bpf_ktime_get_ns();
	length_ns = now - waiting->since_ns;
	waiting->since_ns = 0;
	session = session_of_current();
	if (!session || !numbers)
		return 0;
	__sync_fetch_and_add(&session->stalled_ns, length_ns);
	session->stall_last_ns = length_ns;
	session->stalled_until_ns = now + numbers->stall_linger_ns;
	return 0;
}

SEC("fentry/try_to_free_mem_cgroup_pages")
int BPF_PROG(on_limit_reclaim, struct mem_cgroup *memcg)
{
	return begin_wait(memcg->css.cgroup->kn->id);
}

SEC("fexit/try_to_free_mem_cgroup_pages")
int BPF_PROG(on_limit_reclaimed)
{
	return end_wait();
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(on_host_reclaim)
{
	return begin_wait(0);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(on_host_reclaimed)
{
	return end_wait();
}
#endif
