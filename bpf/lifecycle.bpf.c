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
#include "kernel.h"

#include "abi.h"
#include "compat.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	/* cgroup.max.depth is unlimited; a tree that is deeper than this is counted as a loss. */
	MAX_DEPTH = 32,
	/* include/linux/sched/signal.h */
	SIGNAL_GROUP_EXIT = 4,
	MM_ANONPAGES = 1,
	/* Exits that are told apart where the kernel does not do it; see compat.bpf.h. */
	RECENT_EXITS = 1024,
};

const volatile struct lifecycle_knobs knobs = {
	.reported_kinds = (1 << EVENT_KINDS) - 1,
	.reports_children = 1,
};

/* Read by nobody: they put kinds and records into the type information, where the daemon's tests compare them. */
const enum event_kind event_kinds = EVENT_KINDS;
const union {
	struct fork_event fork;
	struct exec_event exec;
	struct exit_event exit;
	struct attach_event attach;
	struct oom_event oom;
	struct throttle_event throttle;
} *const event_records = NULL;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct losses);
} losses SEC(".maps");

/* What is remembered of a task. Account and is_child are kept for the leader of a process. */
struct home {
	u64 account_id;
	u64 over_high_since_ns;
	u64 oom_limit_cgroup_id;
	u32 is_child;
	u32 is_known;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct home);
} homes SEC(".maps");

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

/* ---- losses, always counted ------------------------------------------------------------------------------------- */

static __always_inline struct losses *loss_counts(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&losses, &zero);
}

#define COUNT_LOSS(field)                                                                                              \
	do {                                                                                                           \
		struct losses *counts = loss_counts();                                                                 \
		if (counts)                                                                                            \
			__sync_fetch_and_add(&counts->field, 1);                                                       \
	} while (0)

static __always_inline void *reserve(u32 kind, u64 size)
{
	void *record = bpf_ringbuf_reserve(&events, size, 0);

	if (!record)
		COUNT_LOSS(records[kind]);
	return record;
}

static __always_inline bool is_reported(u32 kind)
{
	return knobs.reported_kinds & (1 << kind);
}

/* ---- cgroups and accounts ---------------------------------------------------------------------------------------- */

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

static __always_inline u64 id_of(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, kn, id);
}

static __always_inline struct cgroup *parent_of(struct cgroup *cgroup)
{
	struct cgroup_subsys_state *parent = BPF_CORE_READ(cgroup, self.parent);

	return parent ? BPF_CORE_READ(parent, cgroup) : NULL;
}

/* The body runs for each account that `from` lies in, innermost first. */
#define FOR_EACH_ACCOUNT(from, id, account)                                                                            \
	struct cgroup *cursor = from;                                                                                  \
	int depth = 0;                                                                                                 \
	_Pragma("clang loop unroll(disable)") for (; depth < MAX_DEPTH && cursor; depth++, cursor = parent_of(cursor)) \
		if (id = id_of(cursor), account = bpf_map_lookup_elem(&accounts, &id), account)

/*
 * Global functions: the verifier looks at each once, not at every call, which is why they take a cgroup as a number.
 */

/* The innermost account; 0: `from` is nobody's. */
__noinline u64 account_of_cgroup(u64 from)
{
	struct account *account;
	u64 id;

	FOR_EACH_ACCOUNT((struct cgroup *)from, id, account)
		return id;
	if (depth == MAX_DEPTH && cursor)
		COUNT_LOSS(depth);
	return 0;
}

enum {
	/* Counters are the 64-bit words that struct account begins with; a power of two. */
	COUNTERS = __builtin_offsetof(struct account, oom_limit_cgroup_id) / sizeof(u64),
};

_Static_assert((COUNTERS & (COUNTERS - 1)) == 0, "the bound of a counter is a mask");

/* Adds to one counter of every account up to, and without, `until` (0: all). */
__noinline int add_to_accounts(u64 from, u64 until, u32 counter, u64 amount)
{
	struct account *account;
	u64 id;

	FOR_EACH_ACCOUNT((struct cgroup *)from, id, account) {
		if (id == until)
			break;
		/* A mask that the compiler cannot see through, so that the verifier sees it. */
		counter &= COUNTERS - 1;
		barrier_var(counter);
		__sync_fetch_and_add((u64 *)account + counter, amount);
	}
	return 0;
}

static __always_inline u64 account_of(struct cgroup *from)
{
	return account_of_cgroup((u64)from);
}

#define ADD(from, counter, amount, until)                                                                              \
	add_to_accounts((u64)(from), until, __builtin_offsetof(struct account, counter) / sizeof(u64), amount)

static __always_inline void fill_header(struct event_header *header, u32 kind, u32 pid, u64 account_id,
					struct cgroup *cgroup)
{
	header->kind = kind;
	header->pid = pid;
	header->at_ns = bpf_ktime_get_boot_ns();
	header->account_id = account_id;
	header->cgroup_id = id_of(cgroup);
}

static __always_inline struct home *home_of(struct task_struct *task)
{
	struct home *home = bpf_task_storage_get(&homes, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!home)
		COUNT_LOSS(homes);
	return home;
}

/* ---- the life of a process --------------------------------------------------------------------------------------- */

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
	account_id = account_of(cgroup);
	if (!account_id)
		return 0;
	is_born_inside = cgroup_of(parent) == cgroup;
	if (is_born_inside)
		ADD(cgroup, forks, 1, 0);
	else
		ADD(cgroup, arrivals, 1, account_of(cgroup_of(parent)));
	home = home_of(child);
	if (home) {
		home->account_id = account_id;
		home->is_child = is_born_inside;
		home->is_known = 1;
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

static __always_inline void read_arguments(struct exec_event *event, struct task_struct *task)
{
	u64 start = BPF_CORE_READ(task, mm, arg_start);
	u64 end = BPF_CORE_READ(task, mm, arg_end);
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
	u64 account_id = account_of(cgroup);
	struct exec_event *event;
	struct home *home;
	u32 zero = 0;
	u64 size;

	if (!account_id)
		return 0;
	ADD(cgroup, execs, 1, 0);
	/* An exec by another thread than the leader makes a new leader, which nobody has told where it belongs. */
	home = home_of(task);
	if (home && !home->is_known) {
		home->account_id = account_id;
		home->is_known = 1;
	}
	if (!is_reported(EVENT_EXEC))
		return 0;
	/* Tracing programs do not nest on one CPU, so the scratch is ours until the return. */
	event = bpf_map_lookup_elem(&exec_scratch, &zero);
	if (!event)
		return 0;
	fill_header(&event->header, EVENT_EXEC, task->tgid, account_id, cgroup);
	bpf_core_read_str(event->comm, sizeof(event->comm), &task->comm);
	read_arguments(event, task);
	size = __builtin_offsetof(struct exec_event, arguments) + event->arguments_length;
	if (size > sizeof(*event))
		return 0;
	if (bpf_ringbuf_output(&events, event, size, 0))
		COUNT_LOSS(records[EVENT_EXEC]);
	return 0;
}

/* Whether the process ends with this thread. */
static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *task, u64 started_at_ns)
{
	struct ended key = {.started_at_ns = started_at_ns, .pid = task->tgid};
	u32 one = 1;

	if (exit_tells_group_dead())
		return ctx[1] & 0xff;
	if (BPF_CORE_READ(task, signal, live.counter) != 0)
		return false;
	return bpf_map_update_elem(&recent_exits, &key, &one, BPF_NOEXIST) == 0;
}

/* What wait(2) will say: of exit_group and of fatal signals, else what the leader returned. */
static __always_inline u32 wait_status_of(struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(task, signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

static __always_inline void keep_longest(struct cgroup *cgroup, u64 lifetime_ns)
{
	struct account *account;
	u64 id;

	FOR_EACH_ACCOUNT(cgroup, id, account) {
		/* Two that end at the same instant may overwrite each other; the longer differs by that instant. */
		if (account->longest_child_ns < lifetime_ns)
			account->longest_child_ns = lifetime_ns;
	}
}

SEC("tp_btf/sched_process_exit")
int on_exit(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u64 started_at_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	struct cgroup *cgroup = cgroup_of(task);
	struct exit_event *event;
	bool is_child = false;
	struct home *home;
	u64 account_id, lifetime_ns;

	account_id = account_of(cgroup);
	if (!account_id || !is_last_thread(ctx, task, started_at_ns))
		return 0;
	lifetime_ns = bpf_ktime_get_boot_ns() - started_at_ns;
	ADD(cgroup, exits, 1, 0);
	home = bpf_task_storage_get(&homes, task->group_leader, 0, 0);
	if (home && home->is_child) {
		is_child = true;
		keep_longest(cgroup, lifetime_ns);
	}
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

/* ---- memory ------------------------------------------------------------------------------------------------------ */

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
