// What the thread tells Python.
#ifndef AGENTCGROUP_DOOR_TELLING_H
#define AGENTCGROUP_DOOR_TELLING_H

#include "door.h"

#include <stdbool.h>

struct telling {
	int events; // one end of a SOCK_SEQPACKET pair, the caller's of door_open
	int stop;   // an eventfd, readable when the door is being closed
};

// False when the door is being closed: then the descriptors of the event are still ours. A full socket is waited for:
// Python is behind, and launchers may wait in the backlog as they would at Python's own door. `packet` may be NULL when
// the event's length is 0.
bool tell(const struct telling *to, const struct door_event *event, const char *packet);

// An event that carries no descriptor and no packet.
void tell_plain(const struct telling *to, enum door_event_kind kind, uint64_t listener, uint64_t offer, int error);

// Waits a moment, less when the door is being closed: for when memory or descriptors are short, for everybody.
void pause_for_others(const struct telling *to);

#endif
