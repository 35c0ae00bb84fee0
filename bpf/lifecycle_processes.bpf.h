/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The life of a process: born, become another program, moved, ended.
 */
#ifndef AGENTCGROUP_LIFECYCLE_PROCESSES_BPF_H
#define AGENTCGROUP_LIFECYCLE_PROCESSES_BPF_H

#include "abi.h"
#include "compat.bpf.h"
#include "lifecycle_accounts.bpf.h"
#include "lifecycle_door.bpf.h"

enum {
	/* Exits that are told apart where the kernel does not do it; see compat.bpf.h. */
	RECENT_EXITS = 1024,
	/* include/linux/pid_types.h */
	PIDTYPE_PGID = 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct exec_event);
} exec_scratch SEC(".maps");

/* Process by pid and start; only used where the kernel does not say which thread is the last. */
struct ended {
	u64 started_at_ns;
	u64 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RECENT_EXITS);
	__type(key, struct ended);
	__type(value, u32);
} recent_exits SEC(".maps");

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct cgroup *cgroup = cgroup_of(child);
	struct fork_event *event;
	bool is_born_inside;
	struct home *home;
	u64 account_id;

	if (child->pid != child->tgid)
		return 0;
	is_born_inside = cgroup_of(parent) == cgroup;
	if (is_born_inside)
		account_id = ADD(cgroup, forks, 1, 0);
	else
		account_id = ADD(cgroup, arrivals, 1, account_of(cgroup_of(parent)));
	if (!account_id)
		return 0;
	home = home_of(child);
	if (home) {
		home->account_id = account_id;
		home->is_child = is_born_inside;
		home->is_known = 1;
		inherit_at_door(home, is_born_inside ? parent->group_leader : NULL);
	}
	if (!is_reported(EVENT_FORK))
		return 0;
	event = reserve(EVENT_FORK, sizeof(*event));
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_FORK, child->tgid, account_id, cgroup);
	event->parent_pid = parent->tgid;
	event->is_born_inside = is_born_inside;
	bpf_core_read_str(event->comm, sizeof(event->comm), &child->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline u32 process_group_of(struct task_struct *task)
{
	return task->signal->pids[PIDTYPE_PGID]->numbers[0].nr;
}

static __always_inline void read_arguments(struct exec_event *event, struct task_struct *task)
{
	u64 start = task->mm->arg_start, end = task->mm->arg_end;
	u64 total = end > start ? end - start : 0;
	u32 length = total < ARGUMENTS_BYTES ? total : ARGUMENTS_BYTES;

	event->arguments_total = total;
	event->arguments_length = length;
	if (!length)
		return;
	if (bpf_probe_read_user(event->arguments, length, (void *)start)) {
		event->arguments_length = 0;
		COUNT_LOSS(arguments);
	}
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	struct cgroup *cgroup = cgroup_of(task);
	u64 account_id = ADD(cgroup, execs, 1, 0);
	struct task_struct *parent;
	struct exec_event *event;
	struct home *home;
	u32 zero = 0, flags;
	u64 size;

	if (account_id) {
		/* Here before its account was opened; or a new leader, made by an exec in another thread, whom nobody has told. */
		home = home_of(task);
		if (home && !home->is_known) {
			home->account_id = account_id;
			home->is_known = 1;
			home->is_runtime = 1;
		}
		flags = ask_at_door(account_id, task, home);
		if (!flags && !is_reported(EVENT_EXEC))
			return 0;
	} else {
		account_id = account_visited(task);
		flags = account_id ? ask_visitor(account_id, task) : 0;
		if (!flags)
			return 0;
	}
	/* Tracing programs do not nest on one CPU, so the scratch is ours until the return. */
	event = bpf_map_lookup_elem(&exec_scratch, &zero);
	if (!event)
		return 0;
	parent = task->real_parent;
	fill_header(&event->header, EVENT_EXEC, task->tgid, account_id, cgroup);
	event->parent_pid = parent->tgid;
	event->process_group = process_group_of(task);
	event->parent_process_group = process_group_of(parent);
	bpf_core_read_str(event->comm, sizeof(event->comm), &task->comm);
	event->filename[0] = 0;
	bpf_probe_read_kernel_str(event->filename, sizeof(event->filename), program->filename);
	read_arguments(event, task);
	/* Before the daemon may hear of it and let it go. */
	flags |= hold_at_door(account_id, task, flags);
	event->flags = flags;
	size = __builtin_offsetof(struct exec_event, arguments) + event->arguments_length;
	if (size > sizeof(*event))
		return 0;
	if (bpf_ringbuf_output(&events, event, size, 0)) {
		COUNT_LOSS(records[EVENT_EXEC]);
		if (flags & EXEC_HELD)
			release_task(task);
	}
	return 0;
}

/* Whether the process ends with this thread. */
static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *task, u64 started_at_ns)
{
	struct ended key = {.started_at_ns = started_at_ns, .pid = task->tgid};
	u32 one = 1;

	if (exit_tells_group_dead())
		return ctx[1] & 0xff;
	if (task->signal->live.counter != 0)
		return false;
	return bpf_map_update_elem(&recent_exits, &key, &one, BPF_NOEXIST) == 0;
}

/* What wait(2) will say: of exit_group and of fatal signals, else what the leader returned. */
static __always_inline u32 wait_status_of(struct task_struct *task)
{
	if (task->signal->flags & SIGNAL_GROUP_EXIT)
		return task->signal->group_exit_code;
	return task->group_leader->exit_code;
}

/* An end on the books of every account; of a process that was forked inside, its life, too. */
static __always_inline void add_exit(struct cgroup *cgroup, bool is_child, u64 lifetime_ns)
{
	struct account *account;
	u64 id;

	FOR_EACH_ACCOUNT(cgroup, id, account) {
		__sync_fetch_and_add(&account->exits, 1);
		/* Two that end at the same instant may overwrite each other; the longer differs by that instant. */
		if (is_child && account->longest_child_ns < lifetime_ns)
			account->longest_child_ns = lifetime_ns;
	}
}

SEC("tp_btf/sched_process_exit")
int on_exit(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u64 started_at_ns = task->group_leader->start_boottime;
	struct cgroup *cgroup = cgroup_of(task);
	u64 account_id, lifetime_ns;
	struct exit_event *event;
	struct home *home;
	bool is_child;

	account_id = account_of(cgroup);
	if (!account_id || !is_last_thread(ctx, task, started_at_ns))
		return 0;
	lifetime_ns = bpf_ktime_get_boot_ns() - started_at_ns;
	home = bpf_task_storage_get(&homes, task->group_leader, 0, 0);
	is_child = home && home->is_child;
	add_exit(cgroup, is_child, lifetime_ns);
	if (!is_reported(EVENT_EXIT) || (is_child && !knobs.reports_children))
		return 0;
	event = reserve(EVENT_EXIT, sizeof(*event));
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_EXIT, task->tgid, account_id, cgroup);
	event->wait_status = wait_status_of(task);
	event->is_child = is_child;
	event->lifetime_ns = lifetime_ns;
	bpf_core_read_str(event->comm, sizeof(event->comm), &task->group_leader->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_attach, struct cgroup *destination, const char *path, struct task_struct *task)
{
	/* Not `destination`: that may be of a v1 hierarchy, whose ids mean other cgroups. */
	struct cgroup *cgroup = cgroup_of(task);
	struct attach_event *event;
	u64 account_id, previous;
	struct home *home;

	if (task->pid != task->tgid)
		return 0;
	account_id = account_of(cgroup);
	if (!account_id)
		return 0;
	home = home_of(task);
	if (!home)
		return 0;
	previous = home->account_id;
	/* A move within one account: a call that makes room for nested ones. */
	if (previous == account_id)
		return 0;
	home->account_id = account_id;
	home->is_child = 0;
	home->is_known = 1;
	arrive_at_door(home);
	ADD(cgroup, arrivals, 1, previous);
	if (!is_reported(EVENT_ATTACH))
		return 0;
	event = reserve(EVENT_ATTACH, sizeof(*event));
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_ATTACH, task->tgid, account_id, cgroup);
	event->previous_account_id = previous;
	bpf_core_read_str(event->comm, sizeof(event->comm), &task->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}
#endif
