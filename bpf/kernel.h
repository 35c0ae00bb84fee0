/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The kernel's types that our programs read: only the fields that are used, in no order that matters.
 *
 * `preserve_access_index` makes every access a relocation that libbpf resolves against the running kernel's own type
 * information, so neither the order nor the size here has to be the kernel's. A field that some supported kernel does
 * not have is asked for with bpf_core_field_exists first; such differences live in compat.bpf.h.
 */
#ifndef AGENTCGROUP_KERNEL_H
#define AGENTCGROUP_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef bool
#define bool _Bool
#define true 1
#define false 0
#endif

#define NULL ((void *)0)

/* libbpf's headers have it since 1.2. */
#ifndef bpf_ksym_exists
#define bpf_ksym_exists(symbol) (!!(symbol))
#endif

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

/* From uapi/linux/bpf.h of 6.18, where kernels before it do not look for it. */
struct bpf_task_work {
	u64 opaque;
} __attribute__((aligned(8)));

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	u64 id;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup_root;

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

/* The kernel's numbers depend on how it was configured: bpf_core_enum_value. */
enum cgroup_subsys_id {
	memory_cgrp_id,
};

struct css_set {
	struct cgroup *dfl_cgrp;
	/* By enum cgroup_subsys_id; as many as the kernel has. */
	struct cgroup_subsys_state *subsys[16];
};

typedef struct {
	int counter;
} atomic_t;

/* The first of `numbers` is that of the initial namespace. */
struct upid {
	int nr;
};

struct pid {
	struct upid numbers[1];
};

struct signal_struct {
	atomic_t live;
	/* By enum pid_type: PID, TGID, PGID, SID. */
	struct pid *pids[4];
	int group_exit_code;
	unsigned int flags;
};

struct percpu_counter {
	s64 count;
};

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
	/* MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES; one counter per CPU since 6.2. */
	struct percpu_counter rss_stat[4];
};

struct ns_common {
	unsigned int inum;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct sched_class;

struct task_struct {
	int pid;
	int tgid;
	int exit_code;
	char comm[16];
	u64 start_boottime;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct css_set *cgroups;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	unsigned int memcg_nr_pages_over_high;
	const struct sched_class *sched_class;
};

struct linux_binprm {
	const char *filename;
};

typedef struct {
	s64 counter;
} atomic_long_t;

struct page_counter {
	atomic_long_t usage;
	unsigned long high;
	unsigned long max;
	struct page_counter *parent;
};

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
};

/* Complete, or libbpf takes the callbacks that are given one for something else. */
struct bpf_map {
	u32 id;
};

struct oom_control {
	struct mem_cgroup *memcg;
};

#pragma clang attribute pop

#endif
