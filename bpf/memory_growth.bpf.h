/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How fast an account grows, and how long it has been over its soft limit.
 */
#ifndef AGENTCGROUP_MEMORY_GROWTH_BPF_H
#define AGENTCGROUP_MEMORY_GROWTH_BPF_H

#include "kernel.h"
#include "memory.h"

#define NS_PER_S 1000000000ULL

enum {
	PAGE_SHIFT = 12,
	KIB_SHIFT = 10,
};

/* In KiB between, so that a TiB in one stretch does not overflow. */
static __always_inline u64 bytes_per_s(u64 bytes, u64 span_ns)
{
	return ((bytes >> KIB_SHIFT) * NS_PER_S / span_ns) << KIB_SHIFT;
}

/*
 * One CPU closes a window, the others go on: of two that come at the same time one is right. A stretch without a charge
 * makes one long window of little growth, so the average forgets at the next charge, not by itself; readers do the same.
 */
static __always_inline void close_window(struct memory_account *account, u64 usage_bytes, u64 now)
{
	u64 begun = account->window_at_ns, before = account->window_usage_bytes, span, rate, present, weight;

	span = now - begun;
	if ((s64)span < (s64)knobs.window_ns || !span)
		return;
	if (__sync_val_compare_and_swap(&account->window_at_ns, begun, now) != begun)
		return;
	account->window_usage_bytes = usage_bytes;
	if (!begun)
		return;
	present = usage_bytes > before ? bytes_per_s(usage_bytes - before, span) : 0;
	rate = account->rate_bytes_per_s;
	/* Of 1024, so that neither a long stretch nor a fast one overflows. */
	weight = (span << 10) / (span + knobs.averaging_ns);
	if (present > rate)
		rate += (present - rate) * weight >> 10;
	else
		rate -= (rate - present) * weight >> 10;
	account->rate_bytes_per_s = rate;
	if (account->peak_rate_bytes_per_s < rate)
		account->peak_rate_bytes_per_s = rate;
}

static __always_inline void watch_soft_limit(struct memory_account *account, u64 usage_bytes, u64 high_pages, u64 now)
{
	u64 since = account->over_soft_since_ns, limit = account->soft_limit_bytes;

	if (high_pages < NO_LIMIT_PAGES)
		limit = high_pages << PAGE_SHIFT;
	if (limit && usage_bytes > limit) {
		if (!since && __sync_val_compare_and_swap(&account->over_soft_since_ns, 0, now) == 0)
			__sync_fetch_and_add(&account->breaches, 1);
	} else if (since && __sync_val_compare_and_swap(&account->over_soft_since_ns, since, 0) == since) {
		__sync_fetch_and_add(&account->over_soft_ns, now - since);
	}
}

#endif
