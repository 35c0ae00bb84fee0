/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The tree of cgroups as the scheduler sees it, and who is next in it. Everything here is called with `tree_lock` held,
 * so it calls no kernel function.
 *
 * A group is in its parent's heap while it or something below it waits for a CPU and it is not out of cpu.max. `key` is
 * the CPU time it had, divided by its weight; the smallest key is next. The heaps are skew heaps: a dozen lines, no
 * memory of their own, logarithmic on average.
 */
#ifndef AGENTCGROUP_SCHEDULER_TREE_BPF_H
#define AGENTCGROUP_SCHEDULER_TREE_BPF_H

#include "compat.bpf.h"

enum {
	/* A power of two. Group 0 is none; more cgroups than this share their parent's group. */
	GROUPS = 8192,
	NO_GROUP = 0,
	/* Below the root; the kernel's own limit of nesting is higher, deeper cgroups share their ancestor's group. */
	DEPTH_MAX = 24,
	WEIGHT_DEFAULT = 100,
};

enum {
	GROUP_IN_HEAP = 1,
	GROUP_THROTTLED = 2,
	GROUP_DEAD = 4,
	/* cpu.idle: weight 1, whatever cpu.weight says, and behind everybody in latency. */
	GROUP_IDLE = 8,
};

/*
 * How far a key may be from that of the group served last, in CPU time of its own: longer memories are forgotten. A
 * group that wakes up has less to claim than one that waits, and one that had too much owes longer: a CPU that stands
 * still, as those of virtual machines do, is charged to whoever was on it. All CPUs may run one group at once, which
 * puts it ahead by a slice for each.
 */
#define CLAIM_MAX_NS (10 * 1000 * 1000LL)
#define BEHIND_MAX_NS (200 * 1000 * 1000LL)
#define AHEAD_MAX_NS (500 * 1000 * 1000LL + knobs.cpus * 8 * 1000 * 1000LL)

struct group {
	u64 cgroup_id;
	s64 key;
	/* Charged while in the heap, where a key may not change. */
	s64 debt;
	/* The largest key that a child was served at. */
	s64 clock;
	/* The own tasks of a group that has children, as a child. */
	s64 own_key;
	/* The smallest vtime_ns of own tasks that run. */
	u64 task_clock;
	u64 quota_ns;
	u64 period_ns;
	u64 burst_ns;
	s64 budget_ns;
	u64 period_end_ns;
	u32 weight;
	u32 parent;
	u32 left;
	u32 right;
	u32 heap;
	/* Own tasks that wait in the group's queue; changed by atomic operations, with the lock and without. */
	u32 queued;
	/* Own tasks that run or wait, and child groups that have such tasks in or below them. */
	u32 runnable;
	/* Tasks and child groups that name this group. */
	u32 references;
	u32 flags;
	u32 level;
	u32 next_free;
	/* enum latency_class, as it was found at `class_version`; see latency_of. */
	u32 latency;
	u32 class_version;
};

static struct group groups[GROUPS];
/* Where loops begin: a number that the verifier does not know, or it would walk every round by itself. */
static volatile u32 zero;
static u32 root_group;
static u32 groups_high;
static u32 first_free;
static u32 throttled_groups;

/* The mask is what tells the verifier; a group number is never out of range. */
static __always_inline struct group *at(u32 number)
{
	asm volatile("" : "+r"(number));
	return &groups[number & (GROUPS - 1)];
}

static __always_inline s64 weighted(const struct group *group, s64 ns)
{
	u32 weight = group->weight && !(group->flags & GROUP_IDLE) ? group->weight : 1;

	/* BPF has no signed division below -mcpu=v4. */
	return ns < 0 ? -(s64)((u64)-ns * WEIGHT_DEFAULT / weight) : (s64)((u64)ns * WEIGHT_DEFAULT / weight);
}

static u32 heap_merge(u32 a, u32 b)
{
	u32 top = NO_GROUP, last = NO_GROUP, swap;

	while (a && b && can_loop) {
		if (at(b)->key < at(a)->key) {
			swap = a;
			a = b;
			b = swap;
		}
		if (last)
			at(last)->left = a;
		else
			top = a;
		last = a;
		swap = at(a)->right;
		at(a)->right = at(a)->left;
		a = swap;
	}
	if (!a)
		a = b;
	if (last)
		at(last)->left = a;
	else
		top = a;
	return top;
}

static void heap_pop(u32 parent)
{
	struct group *holder = at(parent), *first = at(holder->heap);

	holder->heap = heap_merge(first->left, first->right);
	first->left = NO_GROUP;
	first->right = NO_GROUP;
	first->flags &= ~GROUP_IN_HEAP;
}

/* Put what was charged in the heap into the key, which the group must be out of for, or alone in it. */
static __always_inline void settle_key(struct group *group)
{
	s64 clock = at(group->parent)->clock;
	s64 most = clock + weighted(group, AHEAD_MAX_NS), least = clock - weighted(group, BEHIND_MAX_NS);

	group->key += group->debt;
	group->debt = 0;
	if (group->key > most)
		group->key = most;
	if (group->key < least)
		group->key = least;
}

static void heap_push(u32 number)
{
	struct group *group = at(number), *holder = at(group->parent);

	settle_key(group);
	group->left = NO_GROUP;
	group->right = NO_GROUP;
	group->flags |= GROUP_IN_HEAP;
	holder->heap = heap_merge(holder->heap, number);
}

/* A task below `number` begins to want a CPU. A group that none wanted one for forgets what it missed. */
static void wake(u32 number)
{
	while (number && can_loop) {
		struct group *group = at(number);
		s64 low;

		if (group->runnable++)
			return;
		if (!(group->flags & GROUP_IN_HEAP)) {
			low = at(group->parent)->clock - weighted(group, CLAIM_MAX_NS);
			group->key += group->debt;
			group->debt = 0;
			if (group->key < low)
				group->key = low;
		}
		number = number == root_group ? NO_GROUP : group->parent;
	}
}

static void unwake(u32 number)
{
	while (number && can_loop) {
		struct group *group = at(number);

		if (group->runnable && --group->runnable)
			return;
		number = number == root_group ? NO_GROUP : group->parent;
	}
}

/* `number` was chosen: this is how far its level, and those above it, have come. */
static void advance(u32 number)
{
	while (number && number != root_group && can_loop) {
		struct group *group = at(number), *parent = at(group->parent);

		if (group->key + group->debt > parent->clock)
			parent->clock = group->key + group->debt;
		number = group->parent;
	}
}

/* Something below `number` waits: it and its ancestors compete from now on. */
static void activate(u32 number)
{
	while (number && number != root_group && can_loop) {
		struct group *group = at(number);

		if (group->flags & (GROUP_IN_HEAP | GROUP_THROTTLED))
			return;
		heap_push(number);
		number = group->parent;
	}
}

static __always_inline void charge_key(struct group *group, s64 ns)
{
	if (group->flags & GROUP_IN_HEAP)
		group->debt += weighted(group, ns);
	else
		group->key += weighted(group, ns);
}

/* Push `number` and all above it back by `ns`, or forward again: for looking past it once. */
static void shift(u32 number, s64 ns)
{
	while (number && number != root_group && can_loop) {
		struct group *group = at(number);

		charge_key(group, ns);
		number = group->parent;
	}
}

/*
 * The group whose own tasks are next, or none. Groups that have nothing to run any more, or ran out of cpu.max, leave
 * their heap here, when they come to its top.
 */
static u32 next_group(void)
{
	u32 number = root_group;

	while (number && can_loop) {
		struct group *group = at(number), *child;
		u32 first = group->heap;

		if (!first) {
			if (group->queued)
				return number;
			if (number == root_group)
				return NO_GROUP;
			/* We came here because it is at the top of its parent's heap. */
			heap_pop(group->parent);
			number = group->parent;
			continue;
		}
		child = at(first);
		if (child->flags & GROUP_THROTTLED) {
			heap_pop(number);
			continue;
		}
		if (child->debt) {
			if (!child->left && !child->right) {
				settle_key(child);
			} else {
				heap_pop(number);
				heap_push(first);
				continue;
			}
		}
		if (group->queued) {
			if (group->own_key < child->key - CLAIM_MAX_NS)
				group->own_key = child->key - CLAIM_MAX_NS;
			if (group->own_key > child->key + AHEAD_MAX_NS)
				group->own_key = child->key + AHEAD_MAX_NS;
			if (group->own_key <= child->key)
				return number;
		}
		number = first;
	}
	return NO_GROUP;
}

/* Whether `a` goes before `b`: compared where their ways from the root part. */
static bool is_before(u32 a, u32 b)
{
	u32 above_a = NO_GROUP, above_b = NO_GROUP;
	s64 key_a, key_b;

	while (a != b && a && b && can_loop) {
		if (at(a)->level >= at(b)->level) {
			above_a = a;
			a = at(a)->parent;
		}
		/* `a` has moved up: the one that is now deeper follows. */
		if (a != b && at(b)->level > at(a)->level) {
			above_b = b;
			b = at(b)->parent;
		}
	}
	key_a = above_a ? at(above_a)->key + at(above_a)->debt : at(a)->own_key;
	key_b = above_b ? at(above_b)->key + at(above_b)->debt : at(b)->own_key;
	return key_a <= key_b;
}

/* The lowest group that both are in, or are. */
static u32 common_ancestor(u32 a, u32 b)
{
	while (a != b && a && b && can_loop) {
		if (at(a)->level >= at(b)->level)
			a = at(a)->parent;
		else
			b = at(b)->parent;
	}
	return a == b ? a : root_group;
}

/*
 * Whether neither `number` nor a group between it and `top` has had more than its share by more than `allowance_ns`.
 * What `top` and those above it had is not asked: whoever is in `top` shares that.
 */
static bool is_entitled(u32 number, u32 top, s64 allowance_ns)
{
	while (number && number != root_group && number != top && can_loop) {
		struct group *group = at(number);

		if (group->key + group->debt > at(group->parent)->clock + weighted(group, allowance_ns))
			return false;
		number = group->parent;
	}
	return true;
}

static u32 take_free_group(void)
{
	u32 number = first_free;

	if (number) {
		first_free = at(number)->next_free;
	} else {
		if (groups_high >= GROUPS - 1)
			return NO_GROUP;
		number = ++groups_high;
	}
	return number;
}

/* One reference less; a dead group without any is free once it is out of its parent's heap, which the sweep sees to. */
static __always_inline void unreference(u32 number)
{
	if (number && at(number)->references)
		at(number)->references--;
}

#endif
