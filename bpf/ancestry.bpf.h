/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * From a task up its cgroups; of the cgroup2 hierarchy, whatever else is mounted. All of it by loads that the verifier
 * knows the types of: a call of bpf_probe_read_kernel for each costs more than all else that is done on the way.
 */
#ifndef AGENTCGROUP_ANCESTRY_BPF_H
#define AGENTCGROUP_ANCESTRY_BPF_H

#include "kernel.h"

enum {
	/* cgroup.max.depth is unlimited; a tree that is deeper than this is not looked at to its end. */
	MAX_DEPTH = 32,
};

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
	return task->cgroups->dfl_cgrp;
}

static __always_inline u64 id_of(struct cgroup *cgroup)
{
	return cgroup->kn->id;
}

static __always_inline struct cgroup *parent_of(struct cgroup *cgroup)
{
	struct cgroup_subsys_state *parent = cgroup->self.parent;

	return parent ? parent->cgroup : NULL;
}

/* The body runs for `from` and for every cgroup above it, as `cursor`, innermost first; `depth` counts the steps. */
#define FOR_EACH_ANCESTOR(from)                                                                                        \
	struct cgroup *cursor = from;                                                                                  \
	int depth = 0;                                                                                                 \
	_Pragma("clang loop unroll(disable)") for (; depth < MAX_DEPTH && cursor; depth++, cursor = parent_of(cursor))

#endif
