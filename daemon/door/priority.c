// See priority.h.
#include "priority.h"

#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SCHED_DEADLINE
#define SCHED_DEADLINE 6
#endif

// include/uapi/linux/sched/types.h, struct sched_attr as of VER0, which newer C libraries have under that name.
struct scheduling {
	uint32_t size;
	uint32_t sched_policy;
	uint64_t sched_flags;
	int32_t sched_nice;
	uint32_t sched_priority;
	uint64_t sched_runtime; // nanoseconds, as the next two
	uint64_t sched_deadline;
	uint64_t sched_period;
};

void go_first(void)
{
	struct scheduling attributes = {
		.size = sizeof(attributes), .sched_policy = SCHED_DEADLINE,
		.sched_runtime = 5000000, .sched_deadline = 20000000, .sched_period = 20000000,
	};

	syscall(SYS_sched_setattr, 0, &attributes, 0);
}
