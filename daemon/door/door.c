// See door.h. One thread, one epoll descriptor. The mutex guards listeners and their offers, and is never held across
// anything that waits. What arrives here comes from the sandboxed side: nothing of it is believed.
#include "door.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 // kernel 6.5
#endif

enum {
	BATCH = 16,           // events, and connections of one listener, before the others' turn
	MOST_WAITING = 64,    // connections without a packet; more of them wait with Python
	PATIENCE_MS = 50,     // for a packet, then Python waits for it
	PAUSE_MS = 100,       // when there is no descriptor for another connection
	MOST_AGENT_PATH = 4096,
};

// include/uapi/linux/pidfd.h, struct pidfd_info as of VER0 (kernel 6.13).
struct pidfd_info {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t ids[11];
	int32_t exit_code;
};
#define PIDFD_GET_INFO _IOWR(0xFF, 11, struct pidfd_info)
#define PIDFD_INFO_CGROUPID (UINT64_C(1) << 2)

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
#ifndef SCHED_DEADLINE
#define SCHED_DEADLINE 6
#endif

struct offer {
	uint64_t id;
	char *request, *reply; // one allocation, which `request` begins
	size_t request_length, reply_length;
	int procs;
	int oom_score_adj;
};

struct listener {
	uint64_t id; // 0: a free slot
	int fd;
	uint64_t agent_cgroup_id;
	char *agent_path;
	size_t offer_count;
	struct offer offers[DOOR_MOST_OFFERS]; // the oldest first
};

// Where the callers of a listener live who may take its offers.
struct leaf {
	uint64_t cgroup_id;
	char path[MOST_AGENT_PATH];
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
	int64_t until_ms;
};

struct door {
	int events, epoll, stop;
	pthread_t thread;
	pthread_mutex_t lock;
	struct listener *listeners; // guarded, as all below it up to the next comment
	size_t listener_slots;
	// the thread's own
	struct waiting waiting[MOST_WAITING];
	size_t waiting_count;
	struct received received;
	struct leaf leaf;
};

// What an epoll event is about: the upper half says which table, the lower one the slot. An event that was overtaken by
// a change of its slot does no harm: every descriptor is non-blocking.
enum subject { STOP, LISTENER, WAITING };

static uint64_t subject(enum subject table, size_t slot)
{
	return (uint64_t)table << 32 | slot;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint64_t unix_time_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

// ---- telling Python ----

// False when the door is being closed: then the descriptors of the event are still ours. A full socket is waited for:
// Python is behind, and launchers may wait in the backlog as they would at Python's own door.
static bool tell(struct door *door, const struct door_event *event, const char *packet)
{
	struct iovec parts[] = {
		{.iov_base = (void *)event, .iov_len = sizeof(*event)},
		{.iov_base = (void *)packet, .iov_len = event->length},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = event->length ? 2 : 1};

	for (;;) {
		struct pollfd ready[] = {{.fd = door->events, .events = POLLOUT}, {.fd = door->stop, .events = POLLIN}};

		if (sendmsg(door->events, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return true;
		if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
			return false;
		poll(ready, 2, errno == ENOBUFS ? PAUSE_MS : -1);
		if (ready[1].revents)
			return false;
	}
}

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
	if (!tell(door, &event, received->packet))
		close_all(received);
}

static void hand_on_silent(struct door *door, uint64_t listener, int connection)
{
	struct door_event event = {.kind = DOOR_SILENT, .listener = listener, .connection = connection, .pidfd = -1};

	if (!tell(door, &event, NULL))
		close(connection);
}

static void tell_plain(struct door *door, enum door_event_kind kind, uint64_t listener, uint64_t offer, int error)
{
	struct door_event event = {
		.kind = (int32_t)kind, .listener = listener, .offer = offer, .error = error, .connection = -1, .pidfd = -1,
	};

	tell(door, &event, NULL);
}

// ---- who is it ----

// Whether the process of `pidfd` has not ended: then its pid is still its own.
static bool is_alive(int pidfd)
{
	struct pollfd ended = {.fd = pidfd, .events = POLLIN};

	return poll(&ended, 1, 0) == 0;
}

// Whether /proc/PID/cgroup names `path` in cgroup v2. Before kernel 6.13, which tells by pidfd.
static bool lives_at(pid_t pid, int pidfd, const char *path)
{
	char name[32], text[MOST_AGENT_PATH + 512];
	size_t length = strlen(path), used = 0;
	ssize_t n;
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/cgroup", pid);
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	while (used < sizeof(text) - 1 && (n = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)n;
	close(fd);
	text[used] = '\0';
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, "0::", 3) == 0)
			return strncmp(line + 3, path, length) == 0 && line[3 + length] == '\n' && is_alive(pidfd);
	}
	return false;
}

static bool lives_in(const struct leaf *leaf, pid_t pid, int pidfd)
{
	struct pidfd_info info = {.mask = PIDFD_INFO_CGROUPID};

	if (ioctl(pidfd, PIDFD_GET_INFO, &info) == 0 && info.mask & PIDFD_INFO_CGROUPID)
		return info.cgroupid == leaf->cgroup_id && is_alive(pidfd);
	return lives_at(pid, pidfd, leaf->path);
}

// ---- an offer taken ----

// Whether `packet` is `request` and then nothing but arguments, every record ended.
static bool matches(const struct offer *offer, const char *packet, size_t length)
{
	size_t at = offer->request_length;

	if (length < at || memcmp(packet, offer->request, at) != 0 || packet[length - 1] != '\0')
		return false;
	while (at < length) {
		if (length - at < sizeof("arg=") || memcmp(packet + at, "arg=", 4) != 0)
			return false;
		at += strlen(packet + at) + 1;
	}
	return true;
}

static void free_offer(struct offer *offer)
{
	close(offer->procs);
	free(offer->request);
}

static struct listener *find_listener(struct door *door, uint64_t id)
{
	for (size_t i = 0; i < door->listener_slots; i++)
		if (door->listeners[i].id == id && id)
			return &door->listeners[i];
	return NULL;
}

static void remove_offer(struct listener *listener, struct offer *offer)
{
	struct offer *end = listener->offers + listener->offer_count--;

	memmove(offer, offer + 1, (size_t)(end - offer - 1) * sizeof(*offer));
}

// The oldest offer that `received` fits, under the lock; NULL when there is none.
static struct offer *find_offer(struct listener *listener, const struct received *received)
{
	for (size_t i = 0; listener && i < listener->offer_count; i++)
		if (matches(&listener->offers[i], received->packet, received->length))
			return &listener->offers[i];
	return NULL;
}

// Takes the offer that `received` and its sender fit. Where the sender lives is asked without the lock, because the
// kernel may take its time for it; an offer that is withdrawn meanwhile is none.
static bool take(struct door *door, uint64_t id, pid_t pid, int pidfd, struct offer *taken)
{
	struct listener *listener;
	struct offer *offer;

	pthread_mutex_lock(&door->lock);
	listener = find_listener(door, id);
	offer = find_offer(listener, &door->received);
	if (offer) {
		door->leaf.cgroup_id = listener->agent_cgroup_id;
		strcpy(door->leaf.path, listener->agent_path);
	}
	pthread_mutex_unlock(&door->lock);
	if (!offer || !lives_in(&door->leaf, pid, pidfd))
		return false;
	pthread_mutex_lock(&door->lock);
	listener = find_listener(door, id);
	offer = find_offer(listener, &door->received);
	if (offer) {
		*taken = *offer;
		remove_offer(listener, offer);
	}
	pthread_mutex_unlock(&door->lock);
	return offer != NULL;
}

// Best effort, like in Python: a process that has just ended needs none.
static void prefer_as_victim(pid_t pid, int oom_score_adj)
{
	char name[40], value[16];
	int fd, length;

	snprintf(name, sizeof(name), "/proc/%d/oom_score_adj", pid);
	length = snprintf(value, sizeof(value), "%d", oom_score_adj);
	fd = open(name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, value, (size_t)length) < 0) {
		// Nothing depends on it.
	}
	close(fd);
}

// 0, or why the process could not be moved.
static int place(const struct offer *offer, pid_t pid)
{
	char value[16];
	int length = snprintf(value, sizeof(value), "%d", pid);

	return write(offer->procs, value, (size_t)length) == length ? 0 : errno;
}

// Serves the caller from what was prepared. False, and nothing done, when it is Python's to serve.
static bool serve_prepared(struct door *door, uint64_t listener)
{
	const struct received *received = &door->received;
	struct door_event event = {.kind = DOOR_BEGAN, .listener = listener, .connection = -1};
	uint64_t begin_ns = unix_time_ns();
	struct ucred peer;
	struct offer offer;
	int pidfd, error;

	if (received->fd_count || received->flags & (MSG_TRUNC | MSG_CTRUNC))
		return false;
	if (getsockopt(received->connection, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){sizeof(peer)}) < 0 || peer.pid <= 1)
		return false;
	if (getsockopt(received->connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &(socklen_t){sizeof(pidfd)}) < 0)
		return false;
	if (!take(door, listener, peer.pid, pidfd, &offer)) {
		close(pidfd);
		return false;
	}
	error = place(&offer, peer.pid);
	if (error) {
		tell_plain(door, DOOR_BROKEN, listener, offer.id, error);
		free_offer(&offer);
		close(pidfd);
		return false;
	}
	prefer_as_victim(peer.pid, offer.oom_score_adj);
	event.at_ns = unix_time_ns();
	if (send(received->connection, offer.reply, offer.reply_length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		event.error = errno;
	close(received->connection);
	event.offer = offer.id;
	event.pid = peer.pid;
	event.pidfd = pidfd;
	event.elapsed_ns = event.at_ns - begin_ns;
	event.length = (uint32_t)received->length;
	if (!tell(door, &event, received->packet))
		close(pidfd);
	free_offer(&offer);
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
		tell_plain(door, DOOR_UNHEARD, listener, 0, errno);
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
		door->waiting[i] = (struct waiting){connection, listener, now_ms() + PATIENCE_MS};
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
	int64_t now = now_ms();

	for (size_t i = 0; door->waiting_count && i < MOST_WAITING; i++)
		if (door->waiting[i].fd >= 0 && now >= door->waiting[i].until_ms) {
			uint64_t listener = door->waiting[i].listener;

			hand_on_silent(door, listener, stop_waiting(door, i));
		}
}

static void on_connections(struct door *door, size_t slot)
{
	for (int i = 0; i < BATCH; i++) {
		uint64_t listener = 0;
		int connection = -1, error = EAGAIN;

		// Under the lock, so that the descriptor is still that of a listener.
		pthread_mutex_lock(&door->lock);
		if (slot < door->listener_slots && door->listeners[slot].id) {
			listener = door->listeners[slot].id;
			connection = accept4(door->listeners[slot].fd, NULL, NULL, SOCK_CLOEXEC);
			error = errno;
		}
		pthread_mutex_unlock(&door->lock);
		if (connection >= 0) {
			if (!serve(door, listener, connection))
				await_packet(door, listener, connection);
		} else if (error == EAGAIN) {
			return;
		} else if (error != ECONNABORTED && error != EINTR) {
			struct pollfd stop = {.fd = door->stop, .events = POLLIN};

			// Descriptors or memory are short for everybody; a pause lets other work give some back.
			tell_plain(door, DOOR_SHORT, listener, 0, error);
			poll(&stop, 1, PAUSE_MS);
			return;
		}
	}
}

// A launcher waits for two wake-ups, this thread's and its own. On a busy host the first one takes longer than all the
// work, so the thread goes before others when it has something to do, and the kernel sees to it that this is no more than
// a quarter of one CPU, whatever callers do (sched(7), SCHED_DEADLINE). Where that is not to be had it is a thread like
// any other.
static void go_first(void)
{
	struct scheduling attributes = {
		.size = sizeof(attributes), .sched_policy = SCHED_DEADLINE,
		.sched_runtime = 5000000, .sched_deadline = 20000000, .sched_period = 20000000,
	};

	syscall(SYS_sched_setattr, 0, &attributes, 0);
}

static void *serve_all(void *context)
{
	struct door *door = context;
	struct epoll_event ready[BATCH];

	go_first();
	for (;;) {
		int count = epoll_wait(door->epoll, ready, BATCH, door->waiting_count ? PATIENCE_MS : -1);

		for (int i = 0; i < count; i++) {
			size_t slot = (uint32_t)ready[i].data.u64;

			switch ((enum subject)(ready[i].data.u64 >> 32)) {
			case STOP:
				return NULL;
			case LISTENER:
				on_connections(door, slot);
				break;
			case WAITING:
				on_waiting(door, slot);
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
	if (door->stop >= 0)
		close(door->stop);
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
	door->events = events;
	door->epoll = epoll_create1(EPOLL_CLOEXEC);
	door->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (size_t i = 0; i < MOST_WAITING; i++)
		door->waiting[i].fd = -1;
	pthread_mutex_init(&door->lock, NULL);
	if (door->epoll < 0 || door->stop < 0 || epoll_ctl(door->epoll, EPOLL_CTL_ADD, door->stop, &stopped) < 0)
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

static void free_listener(struct listener *listener)
{
	for (size_t i = 0; i < listener->offer_count; i++)
		free_offer(&listener->offers[i]);
	close(listener->fd);
	free(listener->agent_path);
	*listener = (struct listener){0};
}

void door_close(struct door *door)
{
	uint64_t one = 1;

	if (write(door->stop, &one, sizeof(one)) != sizeof(one)) {
		// An eventfd takes a 1 unless it is full of them.
	}
	pthread_join(door->thread, NULL);
	for (size_t i = 0; i < MOST_WAITING; i++)
		if (door->waiting[i].fd >= 0)
			close(door->waiting[i].fd);
	for (size_t i = 0; i < door->listener_slots; i++)
		if (door->listeners[i].id)
			free_listener(&door->listeners[i]);
	free(door->listeners);
	pthread_mutex_destroy(&door->lock);
	close(door->epoll);
	close(door->stop);
	free(door);
}

// A slot for one more listener, under the lock; NULL when there is no memory.
static struct listener *free_slot(struct door *door)
{
	size_t used = door->listener_slots, slots = used ? used * 2 : 8;
	struct listener *more;

	for (size_t i = 0; i < used; i++)
		if (!door->listeners[i].id)
			return &door->listeners[i];
	more = realloc(door->listeners, slots * sizeof(*more));
	if (!more)
		return NULL;
	memset(more + used, 0, (slots - used) * sizeof(*more));
	door->listeners = more;
	door->listener_slots = slots;
	return &more[used];
}

int door_listen(struct door *door, uint64_t id, int fd, uint64_t agent_cgroup_id, const char *agent_path)
{
	struct epoll_event readable = {.events = EPOLLIN};
	struct listener *listener;
	int error = 0;

	if (id == 0 || strlen(agent_path) >= MOST_AGENT_PATH)
		return EINVAL;
	pthread_mutex_lock(&door->lock);
	if (find_listener(door, id)) {
		error = EEXIST;
	} else if (!(listener = free_slot(door))) {
		error = ENOMEM;
	} else {
		*listener = (struct listener){.id = id, .fd = fd, .agent_cgroup_id = agent_cgroup_id};
		listener->agent_path = strdup(agent_path);
		readable.data.u64 = subject(LISTENER, (size_t)(listener - door->listeners));
		if (!listener->agent_path)
			error = ENOMEM;
		else if (epoll_ctl(door->epoll, EPOLL_CTL_ADD, fd, &readable) < 0)
			error = errno;
		if (error) {
			free(listener->agent_path);
			*listener = (struct listener){0};
		}
	}
	pthread_mutex_unlock(&door->lock);
	return error;
}

void door_unlisten(struct door *door, uint64_t id)
{
	struct listener *listener;

	pthread_mutex_lock(&door->lock);
	listener = find_listener(door, id);
	// Closing takes it out of the epoll descriptor.
	if (listener)
		free_listener(listener);
	pthread_mutex_unlock(&door->lock);
}

int door_offer(struct door *door, uint64_t listener_id, uint64_t id, const void *request, size_t request_length, int procs,
               int oom_score_adj, const void *reply, size_t reply_length)
{
	struct offer offer = {
		.id = id, .request_length = request_length, .reply_length = reply_length, .procs = procs,
		.oom_score_adj = oom_score_adj,
	};
	struct listener *listener;
	int error = 0;

	if (request_length == 0 || request_length > DOOR_MOST_BYTES || reply_length == 0 || reply_length > DOOR_MOST_BYTES)
		return EINVAL;
	offer.request = malloc(request_length + reply_length);
	if (!offer.request)
		return ENOMEM;
	offer.reply = offer.request + request_length;
	memcpy(offer.request, request, request_length);
	memcpy(offer.reply, reply, reply_length);
	pthread_mutex_lock(&door->lock);
	listener = find_listener(door, listener_id);
	if (!listener)
		error = ENOENT;
	else if (listener->offer_count == DOOR_MOST_OFFERS)
		error = ENOSPC;
	else
		listener->offers[listener->offer_count++] = offer;
	pthread_mutex_unlock(&door->lock);
	if (error)
		free(offer.request);
	return error;
}

int door_withdraw(struct door *door, uint64_t listener_id, uint64_t id)
{
	struct listener *listener;
	bool found = false;

	pthread_mutex_lock(&door->lock);
	listener = find_listener(door, listener_id);
	for (size_t i = 0; listener && i < listener->offer_count; i++)
		if (listener->offers[i].id == id) {
			free_offer(&listener->offers[i]);
			remove_offer(listener, &listener->offers[i]);
			found = true;
			break;
		}
	pthread_mutex_unlock(&door->lock);
	return found;
}
