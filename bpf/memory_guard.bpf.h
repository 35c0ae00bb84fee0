/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Guard between sessions: a call is slowed while it takes what a session of higher rank has been promised.
 *
 * Sessions share the memory.max of a cgroup above them. What a session was promised and has not taken yet is a claim on
 * what is still free there. A call that grows into the claims of sessions above its own, or while one of them waits for
 * memory, pays for each batch that it is charged with a hold:
 *
 *	hold = hold_max  *  how much of the room beside the claims is gone, or how long the wait is   (0 to 1)
 *	                 *  how fast the call grows                                                   (0 to 1)
 *	                 *  batches of 64 pages
 *
 * So a call that only turns over what it has pays nothing, and one that grows is braked to a crawl before the room beside
 * the claims (`margin_bytes`) is gone. Only sessions that were charged lately have claims. The holds of one call are
 * bounded in total; after that it is the daemon's to decide.
 *
 * A charge comes in the midst of a page fault or a system call, where locks may be held, so the hold begins on the way
 * back to user mode: by task work where the kernel has it, else at a tick in user mode. See holds.bpf.h.
 */
#ifndef AGENTCGROUP_MEMORY_GUARD_BPF_H
#define AGENTCGROUP_MEMORY_GUARD_BPF_H

#include "holds_return.bpf.h"
#include "memory_claims.bpf.h"

enum {
	BATCH_PAGES = 64,
	/* As many batches as a huge page is. */
	HOLDS_IN_A_ROW = 8,
	/* Of 1000; less is neither answered nor told. */
	LEAST_SEVERITY = 5,
};

#define TELL_EVERY_NS NS_PER_S

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct memory_guard_figures);
} memory_guard_figures SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} memory_breaches SEC(".maps");

/* Who was asked to be held and may still be, by thread; `owed_ns`: in further holds, the present is as long as may be. */
struct held_thread {
	struct bpf_task_work work;
	u64 until_ns;
	u64 owed_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, struct held_thread);
} memory_held SEC(".maps");

/* The latest shortage: where, and of what rank who was held for it. 0: nobody is held. */
static u64 short_counter;
static u32 short_rank;
static u64 released_at_ns;
static u64 looked_at_ns;

static __always_inline struct memory_guard_figures *guard_figures(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&memory_guard_figures, &zero);
}

/* On the way back, as long as the call has to pay: in holds one after the other, each as long as one may be. */
static int pay_on_way_back(struct bpf_map *map, void *key, void *value)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct scheduler_hold *hold = bpf_task_storage_get(&scheduler_holds, task, NULL, 0);
	struct memory_numbers *numbers = guard_numbers();
	struct held_thread *held = value;
	u64 now, length_ns;
	int turn;

	if (!hold || !numbers)
		return 0;
	for (turn = 0; turn < HOLDS_IN_A_ROW; turn++) {
		now = bpf_ktime_get_ns();
		if (hold->until_ns <= now) {
			length_ns = least(held->owed_ns, numbers->hold_max_ns);
			/* Paid, or nobody is short any more. */
			if (!length_ns || !turn || !short_counter)
				break;
			held->owed_ns -= length_ns;
			held->until_ns = now + length_ns;
			hold->until_ns = now + length_ns;
		}
		if (!be_held(hold))
			break;
	}
	held->owed_ns = 0;
	return 0;
}

static __always_inline void ask(struct memory_account *call, struct task_struct *task, u64 length_ns, u64 max_ns, u64 now)
{
	struct memory_guard_figures *figures = guard_figures();
	struct held_thread fresh = {}, *held;
	struct scheduler_hold *hold;
	u64 until, paid_until = call->paid_until_ns;
	u32 pid = task->pid;

	hold = bpf_task_storage_get(&scheduler_holds, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!hold || !figures) {
		if (figures)
			__sync_fetch_and_add(&figures->failed, 1);
		return;
	}
	/* It is the call that pays: threads that are charged at the same time wait for each other's holds. */
	if (paid_until < now || call->asked_at_ns < released_at_ns)
		paid_until = now;
	paid_until = least(paid_until + length_ns, now + HOLDS_IN_A_ROW * max_ns);
	call->paid_until_ns = paid_until;
	call->asked_at_ns = now;
	until = least(paid_until, now + max_ns);
	if (hold->until_ns <= now) {
		hold->asked_at_ns = now;
		/* What is on it yet was somebody else's. */
		hold->total_ns = 0;
		__sync_fetch_and_add(&figures->asked, 1);
	}
	__sync_fetch_and_add(&call->asked_ns, length_ns);
	hold->until_ns = until;
	held = bpf_map_lookup_elem(&memory_held, &pid);
	if (!held) {
		bpf_map_update_elem(&memory_held, &pid, &fresh, BPF_ANY);
		held = bpf_map_lookup_elem(&memory_held, &pid);
	}
	if (!held)
		return;
	held->until_ns = until;
	held->owed_ns = paid_until - until;
	hold_on_way_back(task, &held->work, &memory_held, pay_on_way_back);
}

/* Put on the books what holds of this thread have ended since its last charge. */
static __always_inline void settle(struct memory_account *call, struct task_struct *task)
{
	struct memory_guard_figures *figures = guard_figures();
	struct scheduler_hold *hold;
	u64 bucket, held_ns;

	hold = bpf_task_storage_get(&scheduler_holds, task, NULL, 0);
	if (!hold || !hold->total_ns || hold->begun_at_ns)
		return;
	held_ns = hold->total_ns;
	/* Total and bound of a call are kept here; the scheduler's own bound is for who forgets to. */
	hold->total_ns = 0;
	/* Held for another reason, at a door, say: what is asked for here has a wait until the next charge. */
	if (!hold->waited_ns)
		return;
	__sync_fetch_and_add(&call->held_ns, held_ns);
	__sync_fetch_and_add(&call->holds, 1);
	if (!figures)
		return;
	__sync_fetch_and_add(&figures->holds, 1);
	__sync_fetch_and_add(&figures->held_ns, held_ns);
	bucket = hold->waited_ns / WAIT_STEP_NS;
	hold->waited_ns = 0;
	if (bucket > WAIT_BUCKETS - 1)
		bucket = WAIT_BUCKETS - 1;
	barrier_var(bucket);
	__sync_fetch_and_add(&figures->waits[bucket & (WAIT_BUCKETS - 1)], 1);
}

static __always_inline void tell(struct memory_account *call, u64 call_id, u64 session_id, const struct shortage *total,
				 u64 missing_bytes, u64 hold_ns)
{
	u64 told = call->told_at_ns;
	struct memory_breach *breach;
	struct memory_losses *losses;
	u32 zero = 0;

	if (total->now - told < TELL_EVERY_NS ||
	    __sync_val_compare_and_swap(&call->told_at_ns, told, total->now) != told)
		return;
	breach = bpf_ringbuf_reserve(&memory_breaches, sizeof(*breach), 0);
	if (!breach) {
		losses = bpf_map_lookup_elem(&memory_losses, &zero);
		if (losses)
			__sync_fetch_and_add(&losses->breaches, 1);
		return;
	}
	breach->at_ns = total->now;
	breach->call_id = call_id;
	breach->session_id = session_id;
	breach->for_session_id = total->for_id;
	breach->rate_bytes_per_s = call->rate_bytes_per_s;
	breach->missing_bytes = missing_bytes;
	breach->stall_ns = total->stall_ns;
	breach->hold_ns = hold_ns;
	bpf_ringbuf_submit(breach, 0);
}

/*
 * The current task's call is charged `pages`: hold it, if it grows into what others were promised. A global function, which
 * the verifier looks at by itself.
 */
__noinline int guard_charge(u64 pages)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct memory_numbers *numbers = guard_numbers();
	struct shortage total = {};
	u64 call_id, session_id, shared, free, hard, rate, needed, length, revision;
	struct memory_account *call, *session;
	struct memory_guard *guard;

	if (!numbers)
		return 0;
	/* Before what it is of: a promise that changes meanwhile is looked up again. */
	revision = *(volatile u64 *)&numbers->revision;
	session_id = session_of(task, &call_id);
	/* What agent runtimes take is seen and never slowed. */
	if (!session_id || !call_id)
		return 0;
	call = bpf_map_lookup_elem(&memory_accounts, &call_id);
	session = bpf_map_lookup_elem(&memory_accounts, &session_id);
	guard = bpf_map_lookup_elem(&memory_guards, &session_id);
	shared = shared_counter(numbers);
	if (!call || !session || !guard || !shared)
		return 0;
	if (call->asked_ns)
		settle(call, task);
	/* All that is promised fits together, so what a session was promised itself it takes from nobody. */
	if (session->usage_bytes <= guard->protection_bytes) {
		session->promised_bytes = guard->protection_bytes;
		session->promised_revision = revision;
		return 0;
	}
	free = free_bytes(shared);
	add_claims(&total, guard->rank, numbers, bpf_ktime_get_ns());
	hard = severity(&total, numbers, free);
	rate = least(call->rate_bytes_per_s, numbers->full_rate_bytes_per_s);
	hard = hard * (rate / (numbers->full_rate_bytes_per_s / MILLI + 1)) / MILLI;
	if (hard < LEAST_SEVERITY)
		return 0;
	length = numbers->hold_max_ns / MILLI * hard;
	length = length * least(HOLDS_IN_A_ROW, (pages + BATCH_PAGES - 1) / BATCH_PAGES);
	needed = total.wanted_bytes + numbers->margin_bytes;
	short_counter = shared;
	short_rank = guard->rank;
	if (!length) {
		/* Nobody is to be held. */
	} else if (call->held_ns >= numbers->hold_total_ns) {
		__sync_fetch_and_add(&call->holds_refused, 1);
		length = 0;
	} else if (!can_be_held(task)) {
		length = 0;
	} else {
		ask(call, task, length, numbers->hold_max_ns, total.now);
	}
	tell(call, call_id, session_id, &total, needed > free ? needed - free : 0, length);
	return 0;
}

/* Cheap, for every charge: whether `account` is a session's that stays within its promise, which `guard_charge` has seen. */
static __always_inline bool is_within_promise(const struct memory_account *account, u64 usage_bytes,
					      const struct memory_numbers *numbers)
{
	return usage_bytes <= account->promised_bytes && account->promised_revision == numbers->revision;
}

/* For the others. While somebody is held it may be that a hold has to be put on the books. */
static __always_inline bool may_be_short(struct memory_numbers *numbers)
{
	u64 shared = shared_counter(numbers);

	return shared && (short_counter || free_bytes(shared) < numbers->watch_bytes);
}

static long release_thread(struct bpf_map *map, const u32 *pid, struct held_thread *held, u64 *now)
{
	struct memory_guard_figures *figures = guard_figures();
	struct scheduler_hold *hold;
	struct task_struct *task;

	if (held->until_ns <= *now)
		return 0;
	held->until_ns = 0;
	held->owed_ns = 0;
	task = bpf_task_from_pid(*pid);
	if (!task)
		return 0;
	hold = bpf_task_storage_get(&scheduler_holds, task, NULL, 0);
	if (hold && hold->until_ns > *now) {
		hold->until_ns = 0;
		if (figures)
			__sync_fetch_and_add(&figures->released, 1);
	}
	bpf_task_release(task);
	return 0;
}

/* Nobody is short any more: let everybody go. */
static __noinline int release_all(void)
{
	u64 now = bpf_ktime_get_ns();

	short_counter = 0;
	released_at_ns = now;
	forget_claims();
	bpf_for_each_map_elem(&memory_held, release_thread, &now, 0);
	return 0;
}

/* Memory is given back: if it was the one that is short, see whether it still is. */
static __always_inline void guard_uncharge(struct page_counter *counter)
{
	struct shortage total = {};
	struct memory_numbers *numbers;
	u64 now;
	int depth;

	now = bpf_ktime_get_ns();
	if (now - looked_at_ns < LOOK_EVERY_NS)
		return;
	for (depth = 0; depth < MAX_DEPTH && counter && (u64)counter != short_counter; depth++)
		counter = counter->parent;
	numbers = guard_numbers();
	if (depth == MAX_DEPTH || !counter || !numbers)
		return;
	looked_at_ns = now;
	add_claims(&total, short_rank, numbers, now);
	if (!severity(&total, numbers, free_bytes(short_counter)))
		release_all();
}

#endif
