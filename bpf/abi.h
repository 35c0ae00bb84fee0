/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What BPF programs and the daemon tell each other: records, map values, knobs. Fixed widths and no padding, so that
 * both sides agree on every byte; abi.py holds the same as ctypes, and a test compares the two field by field.
 *
 * Times in ns of CLOCK_BOOTTIME. Pids are those of the initial pid namespace. An "account" is a cgroup that the daemon
 * keeps books on (its root, a session, a call); a record names the innermost account of the process it is about.
 */
#ifndef AGENTCGROUP_ABI_H
#define AGENTCGROUP_ABI_H

#include <linux/types.h>

enum {
	COMM_BYTES = 16,
	/* What is kept of an argument list, NUL between arguments; longer ones are cut. A power of two. */
	ARGUMENTS_BYTES = 1024,
	/* Of the path as given to execve(2), which may be relative; longer ones are cut. */
	FILENAME_BYTES = 128,
};

enum event_kind {
	EVENT_FORK,
	EVENT_EXEC,
	EVENT_EXIT,
	EVENT_ATTACH,
	EVENT_OOM_VICTIM,
	EVENT_THROTTLE,
	EVENT_KINDS,
};

struct event_header {
	__u32 kind;
	__u32 pid;
	__u64 at_ns;
	__u64 account_id;
	__u64 cgroup_id;
};

struct fork_event {
	struct event_header header;
	__u32 parent_pid;
	/* 0: the child was born into a cgroup that is not its parent's (CLONE_INTO_CGROUP). */
	__u32 is_born_inside;
	char comm[COMM_BYTES];
};

/* Of an exec_event. */
enum exec_flag {
	/* A process that the door of its account asks about. */
	EXEC_AT_DOOR = 1,
	/* It, or whoever forked it, came into its account from outside; else it descends from who was there before. */
	EXEC_FROM_OUTSIDE = 2,
	/* The scheduler was asked to hold it. */
	EXEC_HELD = 4,
	/* Its cgroup lies outside of the account: it has entered the namespaces only. */
	EXEC_VISITOR = 8,
};

struct exec_event {
	struct event_header header;
	__u32 parent_pid;
	/* enum exec_flag */
	__u32 flags;
	__u32 process_group;
	__u32 parent_process_group;
	/* Of `arguments`, as kept; `arguments_total` is the length of the whole list. */
	__u32 arguments_length;
	__u32 arguments_total;
	char comm[COMM_BYTES];
	char filename[FILENAME_BYTES];
	/* The record ends after arguments_length bytes of this. */
	char arguments[ARGUMENTS_BYTES];
};

struct exit_event {
	struct event_header header;
	/* As wait(2) gives it. */
	__u32 wait_status;
	/* 1: forked inside its account; 0: placed there from outside. */
	__u32 is_child;
	__u64 lifetime_ns;
	char comm[COMM_BYTES];
};

struct attach_event {
	struct event_header header;
	/* The innermost account that the process was in before; 0: none. */
	__u64 previous_account_id;
	char comm[COMM_BYTES];
};

struct oom_event {
	struct event_header header;
	/* The cgroup whose memory.max could not be kept, of the host the root; 0: not known. */
	__u64 limit_cgroup_id;
	/* Anonymous memory of the victim; all ones: not known. */
	__u64 anonymous_bytes;
	/* The process whose allocation could not be met. */
	__u32 trigger_pid;
	__u32 reserved;
	char comm[COMM_BYTES];
	char trigger_comm[COMM_BYTES];
};

struct throttle_event {
	struct event_header header;
	__u64 duration_ns;
	char comm[COMM_BYTES];
};

/*
 * Books on one account, everything below it included. Made by the daemon, empty, before the first process; read and
 * deleted by it at the end.
 */
struct account {
	/* Processes, not threads. */
	__u64 forks;
	/* Processes that came from outside: placed, or born there of a parent outside. */
	__u64 arrivals;
	__u64 execs;
	__u64 exits;
	__u64 throttles;
	__u64 throttled_ns;
	/* The longest life of an ended process that was forked inside. */
	__u64 longest_child_ns;
	__u64 oom_victims;
	/* Of the first victim. */
	__u64 oom_limit_cgroup_id;
	__u64 oom_anonymous_bytes;
	__u32 oom_victim_pid;
	__u32 oom_trigger_pid;
	char oom_victim_comm[COMM_BYTES];
	char oom_trigger_comm[COMM_BYTES];
};

/* Whose execs a door asks about. */
enum door_source {
	/* Descendants of the agent runtime. */
	DOOR_AGENT = 1,
	/* What enters from outside, and what descends from it. */
	DOOR_OUTSIDE = 2,
};

/*
 * The door of an account: execs in it are told to the daemon, which may make each a tool call. In map `doors`, by the
 * account's id. What lives in an account within, a call, does not pass here.
 */
struct door {
	/* How long the process is held for the daemon to decide; 0: not. */
	__u64 hold_ns;
	/* enum door_source */
	__u32 sources;
	__u32 reserved;
};

/* How the hold of a process at its door was when it was let through. */
enum passage_hold {
	HOLD_NEVER_BEGAN,
	/* It had begun and was over: the process ran on before the daemon was ready. */
	HOLD_RAN_OUT,
	HOLD_LASTED,
};

/* In: who is let through. Out: how it was held. */
struct passage {
	__u32 pid;
	/* enum passage_hold */
	__u32 hold;
	/* From the exec until the hold began. */
	__u64 waited_ns;
};

/* What did not reach the daemon, per cause. */
struct losses {
	/* By enum event_kind: no room in the ring. */
	__u64 records[EVENT_KINDS];
	/* No memory to remember where a process belongs. */
	__u64 homes;
	/* An argument list that could not be read. */
	__u64 arguments;
	/* A cgroup deeper than is walked. */
	__u64 depth;
};

/* Constants of lifecycle.bpf.c, set before it is loaded. */
struct lifecycle_knobs {
	/* Bit n: records of enum event_kind n are sent. Accounts are kept, and execs at a door told, whatever this says. */
	__u32 reported_kinds;
	/* 0: of ends, only those of processes that came from outside are sent. */
	__u32 reports_children;
	/* Whom this process, in the initial pid namespace, moves into an account is the account's agent runtime. 0: nobody. */
	__u32 daemon_pid;
	__u32 reserved;
};

#endif
