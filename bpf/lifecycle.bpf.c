// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Who lives in which call: fork, exec, exit, placement, OOM victims and memory.high throttling, by cgroup.
 *
 * The daemon keeps books on cgroups, its accounts: its root, each session, each call. Everything that happens to a
 * process is added to each account that its cgroup lies in, so an outer call's books include the nested ones:
 *
 *     agentcgroup.slice          account: forks 7
 *       session                  account: forks 7
 *         agent                  (the runtime forks three tools: 3)
 *         calls
 *           c1                   account: forks 4
 *             self               (make forks one compiler: 1)
 *             c2                 account: forks 3
 *
 * A process whose cgroup lies in no account is nobody of ours: the program returns after a walk up its cgroups, and
 * that is the filter. It needs no prefix of ids, so the cgroup of an adopted container works like any other.
 *
 * What must not be lost is in the accounts (a map, read once at the end of a call); what must be known at once goes
 * through the ring buffer, which may overflow: then the loss is counted by kind.
 *
 * Handles badly: two accounts that are siblings and exchange processes count each of them once as an arrival in both
 * and in what encloses them. Calls never do that.
 */
#include "abi.h"
#include "kernel.h"
#include "lifecycle_accounts.bpf.h"
#include "lifecycle_door.bpf.h"
#include "lifecycle_memory.bpf.h"
#include "lifecycle_processes.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Read by nobody: they put kinds and records into the type information, where the daemon's tests compare them. */
const enum event_kind event_kinds = EVENT_KINDS;
const union {
	struct fork_event fork;
	struct exec_event exec;
	struct exit_event exit;
	struct attach_event attach;
	struct oom_event oom;
	struct throttle_event throttle;
	enum exec_flag exec_flag;
	enum door_source door_source;
	enum passage_hold passage_hold;
	struct passage passage;
} *const event_records = NULL;
