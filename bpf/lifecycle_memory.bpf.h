/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Memory: whom the OOM killer took and for whose allocation, and how long memory.high held threads back.
 */
#ifndef AGENTCGROUP_LIFECYCLE_MEMORY_BPF_H
#define AGENTCGROUP_LIFECYCLE_MEMORY_BPF_H

#include "abi.h"
#include "compat.bpf.h"
#include "lifecycle_accounts.bpf.h"

enum {
	/* include/linux/mm_types_task.h */
	MM_ANONPAGES = 1,
};

/* Whose limit it is that the victims of this thread's allocation die for. */
SEC("fentry/oom_kill_process")
int BPF_PROG(on_oom_kill, struct oom_control *control)
{
	struct mem_cgroup *limited = BPF_CORE_READ(control, memcg);
	struct home *home = home_of(bpf_get_current_task_btf());

	if (!home)
		return 0;
	/* No memcg: the host itself is out of memory, which is the root's affair. Its id is 1 in every kernel. */
	home->oom_limit_cgroup_id = limited ? BPF_CORE_READ(limited, css.cgroup, kn, id) : 1;
	return 0;
}

static __always_inline u64 anonymous_bytes_of(struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	s64 pages;

	if (!mm || !has_rss_counters(mm))
		return ~0ULL;
	pages = BPF_CORE_READ(mm, rss_stat[MM_ANONPAGES].count);
	/* Counts that CPUs have not handed in yet may make a small one negative. */
	return pages > 0 ? (u64)pages << 12 : 0;
}

SEC("tp_btf/mark_victim")
int on_victim(u64 *ctx)
{
	struct task_struct *trigger = bpf_get_current_task_btf();
	u64 account_id, id, limit_cgroup_id = 0, anonymous_bytes;
	struct task_struct *victim;
	struct oom_event *event;
	struct account *account;
	struct cgroup *cgroup;
	struct home *home;

	if (!mark_victim_carries_task())
		return 0;
	victim = (void *)ctx[0];
	cgroup = cgroup_of(victim);
	account_id = account_of(cgroup);
	if (!account_id)
		return 0;
	anonymous_bytes = anonymous_bytes_of(victim);
	home = bpf_task_storage_get(&homes, trigger, 0, 0);
	if (home)
		limit_cgroup_id = home->oom_limit_cgroup_id;
	FOR_EACH_ACCOUNT(cgroup, id, account) {
		if (__sync_fetch_and_add(&account->oom_victims, 1))
			continue;
		account->oom_limit_cgroup_id = limit_cgroup_id;
		account->oom_anonymous_bytes = anonymous_bytes;
		account->oom_victim_pid = BPF_CORE_READ(victim, tgid);
		account->oom_trigger_pid = trigger->tgid;
		bpf_core_read_str(account->oom_victim_comm, COMM_BYTES, &victim->comm);
		bpf_core_read_str(account->oom_trigger_comm, COMM_BYTES, &trigger->comm);
	}
	if (!is_reported(EVENT_OOM_VICTIM))
		return 0;
	event = reserve(EVENT_OOM_VICTIM, sizeof(*event));
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_OOM_VICTIM, BPF_CORE_READ(victim, tgid), account_id, cgroup);
	event->limit_cgroup_id = limit_cgroup_id;
	event->anonymous_bytes = anonymous_bytes;
	event->trigger_pid = trigger->tgid;
	event->reserved = 0;
	bpf_core_read_str(event->comm, COMM_BYTES, &victim->comm);
	bpf_core_read_str(event->trigger_comm, COMM_BYTES, &trigger->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/*
 * The kernel makes a thread that is over memory.high sleep, or reclaim, on its way back to user mode, in this function.
 * It may sleep, so what one thread began must be remembered per thread.
 */
static __always_inline int begin_throttle(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct home *home;

	/* Older kernels call the function on every way back that has work to do. */
	if (!task->memcg_nr_pages_over_high || !account_of(cgroup_of(task)))
		return 0;
	home = home_of(task);
	if (home)
		home->over_high_since_ns = bpf_ktime_get_boot_ns();
	return 0;
}

static __always_inline int end_throttle(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct home *home = bpf_task_storage_get(&homes, task, 0, 0);
	struct throttle_event *event;
	u64 account_id, duration_ns;
	struct cgroup *cgroup;

	if (!home || !home->over_high_since_ns)
		return 0;
	duration_ns = bpf_ktime_get_boot_ns() - home->over_high_since_ns;
	home->over_high_since_ns = 0;
	cgroup = cgroup_of(task);
	account_id = account_of(cgroup);
	if (!account_id)
		return 0;
	ADD(cgroup, throttled_ns, duration_ns, 0);
	ADD(cgroup, throttles, 1, 0);
	if (!is_reported(EVENT_THROTTLE))
		return 0;
	event = reserve(EVENT_THROTTLE, sizeof(*event));
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_THROTTLE, task->tgid, account_id, cgroup);
	event->duration_ns = duration_ns;
	bpf_core_read_str(event->comm, sizeof(event->comm), &task->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("fentry/__mem_cgroup_handle_over_high")
int BPF_PROG(on_throttle_begin)
{
	return begin_throttle();
}

SEC("fexit/__mem_cgroup_handle_over_high")
int BPF_PROG(on_throttle_end)
{
	return end_throttle();
}

/* Its name before the test for work to do was split off into the header; a kernel has one of the two. See compat.bpf.h. */
SEC("fentry/" OLDER_HANDLE_OVER_HIGH)
int BPF_PROG(on_older_throttle_begin)
{
	return begin_throttle();
}

SEC("fexit/" OLDER_HANDLE_OVER_HIGH)
int BPF_PROG(on_older_throttle_end)
{
	return end_throttle();
}

#endif
