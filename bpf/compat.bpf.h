/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Kernel differences, all of them in this file: what differs, since which release, why it matters.
 */
#ifndef AGENTCGROUP_COMPAT_BPF_H
#define AGENTCGROUP_COMPAT_BPF_H

#include "kernel.h"

/*
 * sched_process_exit tells since 6.16 ("exit: move and extend sched_process_exit() tracepoint") whether the thread is
 * the last of its process. Before, two threads that end at the same time may both see signal->live at zero.
 */
typedef void (*btf_trace_sched_process_exit___group_dead)(void *, struct task_struct *, bool);

#define exit_tells_group_dead() bpf_core_type_matches(btf_trace_sched_process_exit___group_dead)

/*
 * mark_victim carries the task since 6.10 ("mm,oom: ... mark_victim tracepoint"); before, only its pid, from which no
 * cgroup can be read.
 */
typedef void (*btf_trace_mark_victim___task)(void *, struct task_struct *, u32);

#define mark_victim_carries_task() bpf_core_type_matches(btf_trace_mark_victim___task)

/*
 * The function that holds back what is over memory.high is called __mem_cgroup_handle_over_high where the test of
 * memcg_nr_pages_over_high is inline (6.18, 7.3), and mem_cgroup_handle_over_high before (6.12).
 */
#define OLDER_HANDLE_OVER_HIGH "mem_cgroup_handle_over_high"

/*
 * mm->rss_stat is an array of per-CPU counters since 6.2 ("mm: convert mm's rss stats into percpu_counter"); before, a
 * struct of atomics, which we do not read.
 */
static __always_inline bool has_rss_counters(struct mm_struct *mm)
{
	return bpf_core_field_exists(mm->rss_stat[0].count);
}

#endif
