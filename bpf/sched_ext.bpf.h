/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The part of the kernel's sched_ext interface that we use (kernel/sched/ext*, Documentation/scheduler/sched-ext.rst).
 *
 * The types are flavours (name___scheduler): libbpf strips the suffix and relocates every access, so that kernel.h can
 * hold other fields of the same types. Our sched_ext_ops lacks members that we do not set, and libbpf leaves those zero, as
 * it leaves out those that the kernel lacks.
 */
#ifndef AGENTCGROUP_SCHED_EXT_BPF_H
#define AGENTCGROUP_SCHED_EXT_BPF_H

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sched_entity___scheduler {
	u64 sum_exec_runtime;
};

struct sched_ext_entity___scheduler {
	u32 flags;
	u32 weight;
	u64 slice;
};

struct cpumask;

struct cgroup___scheduler {
	struct cgroup_subsys_state *subsys[1];
};

struct task_group {
	struct cgroup_subsys_state css;
	int idle;
};

struct task_struct___scheduler {
	int pid;
	unsigned int flags;
	unsigned short migration_disabled;
	int nr_cpus_allowed;
	const struct cpumask *cpus_ptr;
	struct sched_entity___scheduler se;
	struct sched_ext_entity___scheduler scx;
};

struct scx_init_task_args {
	bool fork;
	struct cgroup *cgroup;
};

struct scx_cgroup_init_args {
	u32 weight;
	/* Since 6.17; a cgroup has no cap before. */
	u64 bw_period_us;
	u64 bw_quota_us;
	u64 bw_burst_us;
};

enum scx_exit_kind {
	SCX_EXIT_NONE_,
};

struct scx_exit_info {
	enum scx_exit_kind kind;
	s64 exit_code;
	const char *reason;
	char *msg;
};

/* Complete, or libbpf takes `__irq_regs` for something else; the fields are those of the flavours. */
struct pt_regs {
	unsigned long any;
};

struct pt_regs___x86 {
	unsigned long cs;
};

struct pt_regs___arm64 {
	u64 pstate;
};

#pragma clang attribute pop

/* What is not of the host has other numbers here. */
enum cgroup_subsys_id___scheduler {
	cpu_cgrp_id___scheduler,
};

/* Complete, for the same reason. */
struct cpumask {
	unsigned long bits[1];
};

struct scx_exit_task_args;

struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	void (*dispatch)(s32 cpu, struct task_struct *prev);
	void (*tick)(struct task_struct *p);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	void (*update_idle)(s32 cpu, bool idle);
	void (*disable)(struct task_struct *p);
	s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*exit_task)(struct task_struct *p, struct scx_exit_task_args *args);
	s32 (*cgroup_init)(struct cgroup *cgrp, struct scx_cgroup_init_args *args);
	void (*cgroup_exit)(struct cgroup *cgrp);
	void (*cgroup_move)(struct task_struct *p, struct cgroup *from, struct cgroup *to);
	void (*cgroup_set_weight)(struct cgroup *cgrp, u32 weight);
	/* Since 6.17. */
	void (*cgroup_set_bandwidth)(struct cgroup *cgrp, u64 period_us, u64 quota_us, u64 burst_us);
	void (*cpu_online)(s32 cpu);
	void (*cpu_offline)(s32 cpu);
	s32 (*init)(void);
	void (*exit)(struct scx_exit_info *info);
	u64 flags;
	u32 timeout_ms;
	char name[128];
};

/* include/linux/sched/ext.h; the values are part of the interface. */
enum {
	SCX_DSQ_LOCAL_ = 2,
	SCX_TASK_QUEUED_ = 1,
	SCX_KICK_IDLE_ = 1,
	SCX_KICK_PREEMPT_ = 2,
	PF_KTHREAD = 0x00200000,
	PF_EXITING = 0x00000004,
	/* include/linux/sched/signal.h */
	SIGNAL_GROUP_EXIT = 4,
};
#define DSQ_LOCAL ((1ULL << 63) | SCX_DSQ_LOCAL_)
#define DSQ_LOCAL_ON(cpu) ((1ULL << 63) | (1ULL << 62) | (u64)(cpu))
#define ENQ_WAKEUP 1ULL
#define ENQ_PREEMPT (1ULL << 32)
#define OPS_KEEP_BUILTIN_IDLE 1ULL
#define OPS_ENQ_LAST 2ULL
#define OPS_SWITCH_PARTIAL 8ULL
/* Since 6.14. */
#define OPS_ENQ_MIGRATION_DISABLED 16ULL

struct bpf_iter_scx_dsq {
	u64 opaque[6];
} __attribute__((aligned(8)));

extern s32 scx_bpf_create_dsq(u64 dsq_id, s32 node) __ksym __weak;
extern void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags) __ksym __weak;
extern void scx_bpf_dsq_insert_vtime(struct task_struct *p, u64 dsq_id, u64 slice, u64 vtime, u64 enq_flags) __ksym __weak;
extern s32 scx_bpf_dsq_nr_queued(u64 dsq_id) __ksym __weak;
extern bool scx_bpf_dsq_move_to_local(u64 dsq_id) __ksym __weak;
extern bool scx_bpf_dsq_move(struct bpf_iter_scx_dsq *it, struct task_struct *p, u64 dsq_id, u64 enq_flags) __ksym __weak;
extern int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, u64 dsq_id, u64 flags) __ksym __weak;
extern struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it) __ksym __weak;
extern void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it) __ksym __weak;
extern s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags, bool *is_idle) __ksym __weak;
extern s32 scx_bpf_pick_idle_cpu(const struct cpumask *allowed, u64 flags) __ksym __weak;
extern void scx_bpf_kick_cpu(s32 cpu, u64 flags) __ksym __weak;
extern s32 scx_bpf_task_cpu(const struct task_struct *p) __ksym __weak;
extern u64 scx_bpf_now(void) __ksym __weak;
extern struct cgroup *bpf_cgroup_from_id(u64 id) __ksym __weak;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym __weak;
extern const struct cpumask *scx_bpf_get_online_cpumask(void) __ksym __weak;
extern void scx_bpf_put_cpumask(const struct cpumask *cpumask) __ksym __weak;
extern bool bpf_cpumask_subset(const struct cpumask *src1, const struct cpumask *src2) __ksym __weak;
extern bool bpf_cpumask_test_cpu(u32 cpu, const struct cpumask *cpumask) __ksym __weak;
/* The registers that the running interrupt came upon (lib/irq_regs.c). */
extern struct pt_regs *__irq_regs __ksym __weak;

/* cpu.idle of a cgroup. Its callback, ops.cgroup_set_idle, is there since 6.19 only, and says nothing of the beginning. */
static __always_inline bool is_idle_cgroup(struct cgroup *cgrp)
{
	u32 cpu = bpf_core_enum_value(enum cgroup_subsys_id___scheduler, cpu_cgrp_id___scheduler);
	void *states = &((struct cgroup___scheduler *)cgrp)->subsys[0];
	/* A state is the first member of what it is the state of. */
	struct task_group *group = NULL;

	if (!bpf_core_field_exists(((struct task_group *)0)->idle))
		return false;
	bpf_probe_read_kernel(&group, sizeof(group), states + cpu * sizeof(group));
	return group && BPF_CORE_READ(group, idle);
}

/* Not because of the program that asks, which counts once on the task that it interrupts. */
static __always_inline bool is_migration_disabled(struct task_struct *p)
{
	unsigned short times = ((struct task_struct___scheduler *)p)->migration_disabled;

	return times == 1 ? p != bpf_get_current_task_btf() : times;
}

/* Whether the interrupt that we are in came upon user code; false where that cannot be told. */
static __always_inline bool interrupted_user_code(void)
{
	struct pt_regs **slot, *regs;

	if (!bpf_ksym_exists(&__irq_regs))
		return false;
	slot = bpf_this_cpu_ptr(&__irq_regs);
	regs = *slot;
	if (!regs)
		return false;
	if (bpf_core_field_exists(((struct pt_regs___x86 *)0)->cs))
		return (BPF_CORE_READ((struct pt_regs___x86 *)regs, cs) & 3) == 3;
	if (bpf_core_field_exists(((struct pt_regs___arm64 *)0)->pstate))
		return (BPF_CORE_READ((struct pt_regs___arm64 *)regs, pstate) & 0xf) == 0;
	return false;
}

/*
 * True until the kernel has had enough of a loop (the may_goto instruction, kernel 6.9): a loop that the verifier need
 * not count. Written as bytes for assemblers older than it.
 */
#define can_loop                                                                                                       \
	({                                                                                                             \
		__label__ l_enough, l_on;                                                                              \
		bool on = true;                                                                                        \
		asm volatile goto("1:.byte 0xe5;\n"                                                                    \
				  ".byte 0;\n"                                                                         \
				  ".long ((%l[l_enough] - 1b - 8) / 8) & 0xffff;\n"                                    \
				  ".short 0\n" ::: : l_enough);                                                        \
		goto l_on;                                                                                             \
	l_enough:                                                                                                      \
		on = false;                                                                                            \
	l_on:;                                                                                                         \
		on;                                                                                                    \
	})

#endif
