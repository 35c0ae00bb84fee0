// Who is at the other end of a connection, said by the kernel.
#ifndef AGENTCGROUP_DOOR_PEER_H
#define AGENTCGROUP_DOOR_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { MOST_LEAF_PATH = 4096 };

// Where the callers of a listener live who may take its offers.
struct leaf {
	uint64_t cgroup_id;
	char path[MOST_LEAF_PATH]; // as /proc/PID/cgroup has it
};

// The pid of the process that connected, and in `*pidfd` a new descriptor of it; 0 when the kernel does not tell.
pid_t peer_of(int connection, int *pidfd);

// Whether the process of `pidfd`, which is `pid`, is alive and in `leaf`.
bool lives_in(const struct leaf *leaf, pid_t pid, int pidfd);

#endif
