/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The transparent door: which execs in a session the daemon is asked about, and the moment it gets for an answer.
 *
 * An account with a door has three kinds of processes in it. The agent runtime: whom the daemon has moved in, and whoever
 * was there before the books were opened. What descends from it. And what came in from outside (docker exec, nsenter
 * --join-cgroup), with its descendants. Each exec of the last two is told, and held where the door says so:
 *
 *     session
 *       agent
 *         claude        moved in by the daemon: its own execs are nobody's business
 *           bash        forked by it: told. The daemon makes it a call, or leaves it where it is
 *             make      in a call: lives in the call's account, does not pass here. In a bash that was left: told
 *         sh            by docker exec: told, and said to be from outside
 *
 * And there are visitors, whose cgroup lies in no account: who executes a program in the mount namespace of a container
 * that is a session (nsenter --all without --join-cgroup). They, too, come from outside.
 *
 * The daemon lets a process be that it could not place (`let_be`, by pidfd): neither it nor what it forks is told again.
 *
 * A hold begins before the first instruction of the new program: on the way back to user mode from execve(2), where the
 * kernel has task work (6.18), else at a tick in user mode. The daemon ends it with `let_through`.
 *
 * Handles badly: a thread other than the first that execs in place makes a leader that is taken for the runtime. A process
 * that forks without end and never execs is the runtime's.
 */
#ifndef AGENTCGROUP_LIFECYCLE_DOOR_BPF_H
#define AGENTCGROUP_LIFECYCLE_DOOR_BPF_H

#include "abi.h"
#include "holds_return.bpf.h"
#include "lifecycle_accounts.bpf.h"

/* account id -> door; written by the daemon. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct door);
} doors SEC(".maps");

/* Mount namespace, by its number, which is the inode's -> account id; written by the daemon for accounts with a door. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
} door_namespaces SEC(".maps");

/* Written by the daemon for the leader of a process: not 0. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} let_be SEC(".maps");

struct held_at_door {
	struct bpf_task_work work;
};

/* By pid; an entry that is evicted before its hold has begun leaves that to the tick. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct held_at_door);
} door_held SEC(".maps");

/* A process is born to `parent`, NULL: outside. */
static __always_inline void inherit_at_door(struct home *home, struct task_struct *parent)
{
	struct home *from;

	home->is_runtime = 0;
	if (!parent) {
		home->is_from_outside = 1;
		return;
	}
	from = bpf_task_storage_get(&homes, parent, 0, 0);
	home->is_from_outside = from && from->is_from_outside;
	home->is_let_be = (from && from->is_let_be) || bpf_task_storage_get(&let_be, parent, 0, 0);
}

/* The current process moves one in. */
static __always_inline void arrive_at_door(struct home *home)
{
	home->is_runtime = knobs.daemon_pid && bpf_get_current_pid_tgid() >> 32 == knobs.daemon_pid;
	home->is_from_outside = !home->is_runtime;
	home->is_let_be = 0;
}

/* Flags of an exec that the daemon is to be asked about; 0: it is not. */
static __always_inline u32 ask_at_door(u64 account_id, struct task_struct *task, struct home *home)
{
	struct door *door = bpf_map_lookup_elem(&doors, &account_id);

	if (!door || !home || home->is_runtime || home->is_let_be || bpf_task_storage_get(&let_be, task, 0, 0))
		return 0;
	if (home->is_from_outside)
		return door->sources & DOOR_OUTSIDE ? EXEC_AT_DOOR | EXEC_FROM_OUTSIDE : 0;
	return door->sources & DOOR_AGENT ? EXEC_AT_DOOR : 0;
}

/* The account that `task` visits, which lives in none; 0: none. */
static __always_inline u64 account_visited(struct task_struct *task)
{
	u64 namespace = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	u64 *account_id = bpf_map_lookup_elem(&door_namespaces, &namespace);

	return account_id ? *account_id : 0;
}

/* Flags as of ask_at_door. */
static __always_inline u32 ask_visitor(u64 account_id, struct task_struct *task)
{
	struct door *door = bpf_map_lookup_elem(&doors, &account_id);

	if (!door || !(door->sources & DOOR_OUTSIDE) || bpf_task_storage_get(&let_be, task, 0, 0))
		return 0;
	return EXEC_AT_DOOR | EXEC_FROM_OUTSIDE | EXEC_VISITOR;
}

static int on_way_back(struct bpf_map *map, void *key, void *value)
{
	struct scheduler_hold *hold = bpf_task_storage_get(&scheduler_holds, bpf_get_current_task_btf(), NULL, 0);

	if (hold && hold->until_ns > bpf_ktime_get_ns())
		be_held(hold);
	return 0;
}

/* EXEC_HELD when `task`, the current one, which is at its door, has a scheduler that was asked to hold it. */
static __always_inline u32 hold_at_door(u64 account_id, struct task_struct *task, u32 flags)
{
	struct door *door = bpf_map_lookup_elem(&doors, &account_id);
	struct held_at_door fresh = {}, *held;
	u32 pid = task->pid;

	if (!flags || !door || !door->hold_ns || !can_be_held(task))
		return 0;
	if (!hold_task(task, bpf_ktime_get_ns(), door->hold_ns))
		return 0;
	held = bpf_map_lookup_elem(&door_held, &pid);
	if (!held) {
		bpf_map_update_elem(&door_held, &pid, &fresh, BPF_ANY);
		held = bpf_map_lookup_elem(&door_held, &pid);
	}
	if (held)
		hold_on_way_back(task, &held->work, &door_held, on_way_back);
	return EXEC_HELD;
}

/* The hold of a process ends, if it has one; how it was goes into `passage`. */
SEC("syscall")
int let_through(struct passage *passage)
{
	struct scheduler_hold *hold;
	struct task_struct *task;

	passage->hold = HOLD_NEVER_BEGAN;
	passage->waited_ns = 0;
	if (!bpf_ksym_exists(bpf_task_from_pid) || !bpf_ksym_exists(bpf_task_release))
		return 0;
	task = bpf_task_from_pid(passage->pid);
	if (!task)
		return 0;
	hold = bpf_task_storage_get(&scheduler_holds, task, NULL, 0);
	if (hold) {
		/* The scheduler has taken this away when the hold began. */
		if (!hold->asked_at_ns && hold->waited_ns) {
			passage->hold = hold->begun_at_ns ? HOLD_LASTED : HOLD_RAN_OUT;
			passage->waited_ns = hold->waited_ns;
			hold->waited_ns = 0;
		}
		hold->asked_at_ns = 0;
		hold->until_ns = 0;
	}
	bpf_task_release(task);
	return 0;
}

#endif
