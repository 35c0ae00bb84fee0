// The fast half of the launcher's door: a thread that serves the calls which Python has prepared, and hands on the rest.
//
// Python rules, makes the cgroup, writes its limits and words the reply; what is left to do while a launcher waits is
// done here, without an interpreter: is this the request that was prepared for, does its sender live in the agent leaf,
// write its pid, answer. Whatever is not exactly that goes to Python as it came, connection, packet and descriptors.
#ifndef AGENTCGROUP_DOOR_H
#define AGENTCGROUP_DOOR_H

#include <stddef.h>
#include <stdint.h>

enum {
	DOOR_MOST_BYTES = 16 * 1024, // of one packet, as in proto/launch.py
	DOOR_MOST_FDS = 4,           // that may come along with it
	DOOR_MOST_OFFERS = 8,        // of one listener at a time
};

enum door_event_kind {
	DOOR_KNOCKED = 1, // a connection for Python: `connection`, `flags`, `fds`, the packet
	DOOR_SILENT,      // a connection that has said nothing so far: `connection`
	DOOR_BEGAN,       // `offer` was taken: `pid` is in the cgroup; `error` when its answer could not be sent; the packet
	DOOR_BROKEN,      // `offer` was taken and could not be kept: `error`; its connection comes next, as DOOR_KNOCKED
	DOOR_UNHEARD,     // a connection was reset before it said anything
	DOOR_SHORT,       // no connection can be let in for the moment: `error`
};

// What Python reads from its end of the socket pair, followed by `length` bytes of packet. Descriptors are its own from
// then on; -1 is none.
struct door_event {
	uint64_t listener;
	uint64_t offer;
	uint64_t at_ns;      // Unix time at which the process was in its cgroup
	uint64_t elapsed_ns; // from the packet received until then
	int32_t kind;
	int32_t flags; // of recvmsg(2)
	int32_t connection;
	int32_t pidfd;
	int32_t pid;
	int32_t error; // errno
	int32_t fd_count;
	int32_t fds[DOOR_MOST_FDS];
	uint32_t length;
};

struct door;

#define DOOR_API __attribute__((visibility("default")))

// Starts the thread, which tells of events on `events`, one end of a SOCK_SEQPACKET pair that stays the caller's.
// NULL and errno when it cannot.
DOOR_API struct door *door_open(int events);

// A descriptor that is readable when there are events to read: at once, or, where they are only news of callers who have
// been answered (DOOR_BEGAN), a few milliseconds later, so that Python does not take the CPU from a tool that starts.
DOOR_API int door_bell(const struct door *door);

// The bell is silent until something new is told. To be called before the events are read.
DOOR_API void door_heard(struct door *door);

// Stops the thread and closes all that it holds. Nothing else may run on `door` meanwhile.
DOOR_API void door_close(struct door *door);

// Serves the listening, non-blocking socket `fd`, which is the door's from then on. `id` is the caller's choice, and
// good once. The agent leaf is told by cgroup id and by path, as /proc/PID/cgroup has it. 0, or an errno.
DOOR_API int door_listen(struct door *door, uint64_t id, int fd, uint64_t agent_cgroup_id, const char *agent_path);

// Closes that socket and takes its offers back. Connections that are being served are still told of.
DOOR_API void door_unlisten(struct door *door, uint64_t id);

// Whoever in the agent leaf sends exactly `request`, followed by nothing but arguments, goes into the cgroup whose
// cgroup.procs `procs` is, gets `oom_score_adj` and is answered `reply`. Good for one. `procs` is the door's from then
// on, unless this fails. 0, or an errno.
DOOR_API int door_offer(struct door *door, uint64_t listener, uint64_t id, const void *request, size_t request_length, int procs,
               int oom_score_adj, const void *reply, size_t reply_length);

// 1: nobody has taken the offer, and nobody will. 0: somebody has; DOOR_BEGAN or DOOR_BROKEN is there or comes.
DOOR_API int door_withdraw(struct door *door, uint64_t listener, uint64_t id);

#endif
