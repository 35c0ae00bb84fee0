// What the thread tells Python, and when Python looks: whoever waits for it has it look at once, while the news of a caller
// who has been answered can wait until the tool has started, from which it would take the CPU.
#ifndef AGENTCGROUP_DOOR_TELLING_H
#define AGENTCGROUP_DOOR_TELLING_H

#include "door.h"

#include <pthread.h>
#include <stdbool.h>

struct telling {
	int events; // one end of a SOCK_SEQPACKET pair, the caller's of door_open
	int stop;   // an eventfd, readable when the door is being closed
	int bell;   // a timerfd, readable when Python is to look
	pthread_mutex_t lock;
	int64_t rings_at_ns; // under the lock; 0: never
};

// What door.h says of door_bell. 0, or -1 and errno.
int telling_open(struct telling *to, int events);
void telling_close(struct telling *to);
void telling_heard(struct telling *to);

// CLOCK_MONOTONIC.
int64_t monotonic_ns(void);

enum urgency {
	AT_ONCE,
	TOOL_FIRST, // in a few milliseconds
};

// False when the door is being closed: then the descriptors of the event are still ours. A full socket is waited for:
// Python is behind, and launchers may wait in the backlog as they would at Python's own door. `packet` may be NULL when
// the event's length is 0.
bool tell(struct telling *to, const struct door_event *event, const char *packet, enum urgency urgency);

// An event that carries no descriptor and no packet.
void tell_plain(struct telling *to, enum door_event_kind kind, uint64_t listener, uint64_t offer, int error);

// Waits a moment, less when the door is being closed: for when memory or descriptors are short, for everybody.
void pause_for_others(const struct telling *to);

#endif
