/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Kernel differences, all of them in this file: what differs, since which release, why it matters.
 */
#ifndef AGENTCGROUP_COMPAT_BPF_H
#define AGENTCGROUP_COMPAT_BPF_H

#include "sched_ext.bpf.h"

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

/* Since 6.2. Holds are ended by pid with them, of schedulers that no kernel before has. */
extern struct task_struct *bpf_task_from_pid(s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *p) __ksym __weak;

/* Since 6.10. */
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;

/*
 * Task work, a callback on the way back to user mode: since 6.18, with one more argument until 7.0. Without it holds begin
 * at a tick.
 */
typedef int task_work_callback(struct bpf_map *map, void *key, void *value);

extern int bpf_task_work_schedule_resume(struct task_struct *task, struct bpf_task_work *work, void *map,
					 task_work_callback *callback) __ksym __weak;
extern int bpf_task_work_schedule_resume_impl(struct task_struct *task, struct bpf_task_work *work, void *map,
					      task_work_callback *callback, void *unused) __ksym __weak;

/* callback(map, key, value) in `task`, on its way back; `work` lies in a value of `map`. */
static __always_inline void call_on_way_back(struct task_struct *task, struct bpf_task_work *work, void *map,
					     task_work_callback *callback)
{
	if (bpf_ksym_exists(bpf_task_work_schedule_resume))
		bpf_task_work_schedule_resume(task, work, map, callback);
	else if (bpf_ksym_exists(bpf_task_work_schedule_resume_impl))
		bpf_task_work_schedule_resume_impl(task, work, map, callback, NULL);
}

/* Since 6.19, where p->scx.slice may no longer be ours to write. */
extern bool scx_bpf_task_set_slice(struct task_struct *p, u64 slice) __ksym __weak;

static __always_inline void set_slice(struct task_struct *p, u64 slice)
{
	if (bpf_ksym_exists(scx_bpf_task_set_slice))
		scx_bpf_task_set_slice(p, slice);
	else
		((struct task_struct___scheduler *)p)->scx.slice = slice;
}

#endif
