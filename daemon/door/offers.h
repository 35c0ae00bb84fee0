// The sockets that are listened to, and what Python has prepared for whoever knocks there.
//
// Shared by the thread and Python. The mutex is held for no longer than a look, and never across anything that waits.
#ifndef AGENTCGROUP_DOOR_OFFERS_H
#define AGENTCGROUP_DOOR_OFFERS_H

#include "door.h"
#include "peer.h"

#include <pthread.h>
#include <stdbool.h>

struct offer {
	uint64_t id;
	char *request, *reply; // one allocation, which `request` begins
	size_t request_length, reply_length;
	int procs; // cgroup.procs, for writing
	int oom_score_adj;
	// Set by offer_take: the session has just taken another one, so Python has to hurry to prepare for the next.
	bool in_a_row;
};

struct listeners {
	pthread_mutex_t lock;
	struct listener *slots; // guarded, as the next one
	size_t slot_count;
};

void listeners_open(struct listeners *all);

// Closes every socket that is still listened to, and its offers. Nobody else may use `all` any more.
void listeners_close(struct listeners *all);

// 0, or EINVAL, EEXIST, ENOMEM: then `fd` stays the caller's.
int listeners_add(struct listeners *all, uint64_t id, int fd, uint64_t agent_cgroup_id, const char *agent_path);

// Takes the listener away and its offers back. Its socket, which is the caller's to close; -1: there is none.
int listeners_remove(struct listeners *all, uint64_t id);

// A connection that waits at the listener, or -1 and errno: EAGAIN, too, when there is no such listener any more.
int listeners_accept(struct listeners *all, uint64_t id);

// 0, or ENOENT, ENOSPC. From then on what `offer` holds is not the caller's.
int offer_add(struct listeners *all, uint64_t listener, const struct offer *offer);

// Whether the offer was still there; it is freed.
bool offer_withdraw(struct listeners *all, uint64_t listener, uint64_t id);

// Takes out the oldest offer that `packet` fits and whose listener's leaf the process lives in. `now_ns`: CLOCK_MONOTONIC.
bool offer_take(struct listeners *all, uint64_t listener, const char *packet, size_t length, pid_t pid, int pidfd,
                int64_t now_ns, struct offer *taken);

// Moves the process into the cgroup that was offered. 0, or why it could not be moved.
int offer_keep(const struct offer *offer, pid_t pid);

void offer_free(struct offer *offer);

#endif
