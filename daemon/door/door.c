// See door.h. One thread, one epoll descriptor. What arrives here comes from the sandboxed side: nothing of it is
// believed.
#include "door.h"

#include "offers.h"
#include "peer.h"
#include "priority.h"
#include "telling.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	BATCH = 16,        // events, and connections of one listener, before the others' turn
	MOST_WAITING = 64, // connections without a packet; more of them wait with Python
	PATIENCE_MS = 50,  // for a packet, then Python waits for it
	NS_PER_MS = 1000000,
};

struct received {
	int connection;
	int flags;
	int fds[DOOR_MOST_FDS];
	int fd_count;
	size_t length;
	char packet[DOOR_MOST_BYTES + 1]; // one more, so that a packet that is too long shows
};

struct waiting {
	int fd; // -1: a free slot
	uint64_t listener;
	int64_t until_ns;
};

struct door {
	int epoll;
	struct telling telling;
	pthread_t thread;
	struct listeners listeners;
	// the thread's own
	struct waiting waiting[MOST_WAITING];
	size_t waiting_count;
	struct received received;
};

// What an epoll event is about: the lowest bits say what, the others which, a listener by its id, a connection that waits
// by its slot. An event that was overtaken by a change does no harm: every descriptor is non-blocking.
enum subject { STOP, LISTENER, WAITING };

static uint64_t subject(enum subject what, uint64_t which)
{
	return which << 2 | what;
}

static uint64_t unix_time_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

// ---- telling Python ----

static void close_all(const struct received *received)
{
	for (int i = 0; i < received->fd_count; i++)
		close(received->fds[i]);
	close(received->connection);
}

static void hand_on(struct door *door, uint64_t listener)
{
	const struct received *received = &door->received;
	struct door_event event = {
		.kind = DOOR_KNOCKED, .listener = listener, .connection = received->connection, .pidfd = -1,
		.flags = received->flags, .fd_count = received->fd_count, .length = (uint32_t)received->length,
	};

	memcpy(event.fds, received->fds, sizeof(event.fds));
	if (!tell(&door->telling, &event, received->packet, AT_ONCE))
		close_all(received);
}

static void hand_on_silent(struct door *door, uint64_t listener, int connection)
{
	struct door_event event = {.kind = DOOR_SILENT, .listener = listener, .connection = connection, .pidfd = -1};

	if (!tell(&door->telling, &event, NULL, AT_ONCE))
		close(connection);
}

// ---- an offer taken ----

// Serves the caller from what was prepared. False, and nothing done, when it is Python's to serve.
static bool serve_prepared(struct door *door, uint64_t listener)
{
	const struct received *received = &door->received;
	struct door_event event = {.kind = DOOR_BEGAN, .listener = listener, .connection = -1};
	uint64_t begin_ns = unix_time_ns();
	struct offer offer;
	int pidfd, error;
	pid_t pid;

	if (received->fd_count || received->flags & (MSG_TRUNC | MSG_CTRUNC))
		return false;
	pid = peer_of(received->connection, &pidfd);
	if (!pid)
		return false;
	if (!offer_take(&door->listeners, listener, received->packet, received->length, pid, pidfd, monotonic_ns(), &offer)) {
		close(pidfd);
		return false;
	}
	error = offer_keep(&offer, pid);
	if (error) {
		tell_plain(&door->telling, DOOR_BROKEN, listener, offer.id, error);
		offer_free(&offer);
		close(pidfd);
		return false;
	}
	event.at_ns = unix_time_ns();
	if (send(received->connection, offer.reply, offer.reply_length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		event.error = errno;
	close(received->connection);
	event.offer = offer.id;
	event.pid = pid;
	event.pidfd = pidfd;
	event.elapsed_ns = event.at_ns - begin_ns;
	event.length = (uint32_t)received->length;
	if (!tell(&door->telling, &event, received->packet, offer.in_a_row ? AT_ONCE : TOOL_FIRST))
		close(pidfd);
	offer_free(&offer);
	return true;
}

// ---- connections ----

// 1: a packet, or the end, was received and dealt with; 0: nothing is there yet.
static int serve(struct door *door, uint64_t listener, int connection)
{
	struct received *received = &door->received;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * DOOR_MOST_FDS)];
	} control;
	struct iovec part = {.iov_base = received->packet, .iov_len = sizeof(received->packet)};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	ssize_t n;

	do
		n = recvmsg(connection, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0) {
		close(connection);
		tell_plain(&door->telling, DOOR_UNHEARD, listener, 0, errno);
		return 1;
	}
	received->connection = connection;
	received->flags = message.msg_flags;
	received->length = (size_t)n;
	received->fd_count = 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
		if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
			size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			memcpy(received->fds, CMSG_DATA(header), count * sizeof(int));
			received->fd_count = (int)count;
		}
	if (n == 0 && received->fd_count == 0) {
		close(connection);
		return 1;
	}
	if (n == 0 || !serve_prepared(door, listener))
		hand_on(door, listener);
	return 1;
}

static void await_packet(struct door *door, uint64_t listener, int connection)
{
	struct epoll_event readable = {.events = EPOLLIN | EPOLLRDHUP};

	for (size_t i = 0; i < MOST_WAITING; i++) {
		if (door->waiting[i].fd >= 0)
			continue;
		readable.data.u64 = subject(WAITING, i);
		if (epoll_ctl(door->epoll, EPOLL_CTL_ADD, connection, &readable) < 0)
			break;
		door->waiting[i] = (struct waiting){connection, listener, monotonic_ns() + PATIENCE_MS * NS_PER_MS};
		door->waiting_count++;
		return;
	}
	hand_on_silent(door, listener, connection);
}

static int stop_waiting(struct door *door, size_t slot)
{
	int connection = door->waiting[slot].fd;

	epoll_ctl(door->epoll, EPOLL_CTL_DEL, connection, NULL);
	door->waiting[slot].fd = -1;
	door->waiting_count--;
	return connection;
}

static void on_waiting(struct door *door, size_t slot)
{
	uint64_t listener = door->waiting[slot].listener;
	int connection;

	if (door->waiting[slot].fd < 0)
		return;
	connection = stop_waiting(door, slot);
	if (!serve(door, listener, connection))
		await_packet(door, listener, connection);
}

static void lose_patience(struct door *door)
{
	int64_t now = monotonic_ns();

	for (size_t i = 0; door->waiting_count && i < MOST_WAITING; i++)
		if (door->waiting[i].fd >= 0 && now >= door->waiting[i].until_ns) {
			uint64_t listener = door->waiting[i].listener;

			hand_on_silent(door, listener, stop_waiting(door, i));
		}
}

static void on_connections(struct door *door, uint64_t listener)
{
	for (int i = 0; i < BATCH; i++) {
		int connection = listeners_accept(&door->listeners, listener);

		if (connection >= 0) {
			if (!serve(door, listener, connection))
				await_packet(door, listener, connection);
		} else if (errno == EAGAIN) {
			return;
		} else if (errno != ECONNABORTED && errno != EINTR) {
			// Descriptors or memory are short.
			tell_plain(&door->telling, DOOR_SHORT, listener, 0, errno);
			pause_for_others(&door->telling);
			return;
		}
	}
}

static void *serve_all(void *context)
{
	struct door *door = context;
	struct epoll_event ready[BATCH];

	go_first();
	for (;;) {
		int count = epoll_wait(door->epoll, ready, BATCH, door->waiting_count ? PATIENCE_MS : -1);

		for (int i = 0; i < count; i++) {
			uint64_t which = ready[i].data.u64 >> 2;

			switch (ready[i].data.u64 & 3) {
			case STOP:
				return NULL;
			case LISTENER:
				on_connections(door, which);
				break;
			case WAITING:
				on_waiting(door, which);
				break;
			}
		}
		if (door->waiting_count)
			lose_patience(door);
	}
}

// ---- for Python ----

static struct door *fail(struct door *door)
{
	int error = errno;

	if (door->epoll >= 0)
		close(door->epoll);
	telling_close(&door->telling);
	listeners_close(&door->listeners);
	free(door);
	errno = error;
	return NULL;
}

struct door *door_open(int events)
{
	struct epoll_event stopped = {.events = EPOLLIN, .data.u64 = subject(STOP, 0)};
	struct door *door = calloc(1, sizeof(*door));
	sigset_t all, before;

	if (!door)
		return NULL;
	door->epoll = epoll_create1(EPOLL_CLOEXEC);
	for (size_t i = 0; i < MOST_WAITING; i++)
		door->waiting[i].fd = -1;
	listeners_open(&door->listeners);
	if (telling_open(&door->telling, events) < 0 || door->epoll < 0 ||
	    epoll_ctl(door->epoll, EPOLL_CTL_ADD, door->telling.stop, &stopped) < 0)
		return fail(door);
	// Signals are the main thread's.
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	errno = pthread_create(&door->thread, NULL, serve_all, door);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (errno)
		return fail(door);
	pthread_setname_np(door->thread, "door");
	return door;
}

void door_close(struct door *door)
{
	uint64_t one = 1;

	if (write(door->telling.stop, &one, sizeof(one)) != sizeof(one)) {
		// An eventfd takes a 1 unless it is full of them.
	}
	pthread_join(door->thread, NULL);
	for (size_t i = 0; i < MOST_WAITING; i++)
		if (door->waiting[i].fd >= 0)
			close(door->waiting[i].fd);
	listeners_close(&door->listeners);
	close(door->epoll);
	telling_close(&door->telling);
	free(door);
}

int door_bell(const struct door *door)
{
	return door->telling.bell;
}

void door_heard(struct door *door)
{
	telling_heard(&door->telling);
}

int door_listen(struct door *door, uint64_t id, int fd, uint64_t agent_cgroup_id, const char *agent_path)
{
	struct epoll_event readable = {.events = EPOLLIN, .data.u64 = subject(LISTENER, id)};
	int error = listeners_add(&door->listeners, id, fd, agent_cgroup_id, agent_path);

	if (!error && epoll_ctl(door->epoll, EPOLL_CTL_ADD, fd, &readable) < 0) {
		error = errno;
		listeners_remove(&door->listeners, id);
	}
	return error;
}

void door_unlisten(struct door *door, uint64_t id)
{
	int fd = listeners_remove(&door->listeners, id);

	// Closing takes it out of the epoll descriptor.
	if (fd >= 0)
		close(fd);
}

int door_offer(struct door *door, uint64_t listener, uint64_t id, const void *request, size_t request_length, int procs,
               int oom_score_adj, const void *reply, size_t reply_length)
{
	struct offer offer = {
		.id = id, .request_length = request_length, .reply_length = reply_length, .procs = procs,
		.oom_score_adj = oom_score_adj,
	};
	int error;

	if (request_length == 0 || request_length > DOOR_MOST_BYTES || reply_length == 0 || reply_length > DOOR_MOST_BYTES)
		return EINVAL;
	offer.request = malloc(request_length + reply_length);
	if (!offer.request)
		return ENOMEM;
	offer.reply = offer.request + request_length;
	memcpy(offer.request, request, request_length);
	memcpy(offer.reply, reply, reply_length);
	error = offer_add(&door->listeners, listener, &offer);
	if (error)
		free(offer.request);
	return error;
}

int door_withdraw(struct door *door, uint64_t listener, uint64_t id)
{
	return offer_withdraw(&door->listeners, listener, id);
}
