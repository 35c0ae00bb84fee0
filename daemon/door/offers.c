// See offers.h.
#include "offers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// Since the listener's last one was taken.
enum { IN_A_ROW_NS = 10000000 };

struct listener {
	uint64_t id; // 0: a free slot
	int fd;
	uint64_t agent_cgroup_id;
	char *agent_path;
	int64_t taken_at_ns;
	size_t offer_count;
	struct offer offers[DOOR_MOST_OFFERS]; // the oldest first
};

void listeners_open(struct listeners *all)
{
	*all = (struct listeners){0};
	pthread_mutex_init(&all->lock, NULL);
}

// ---- listeners; under the lock where they are static ----

static struct listener *find_listener(struct listeners *all, uint64_t id)
{
	for (size_t i = 0; i < all->slot_count; i++)
		if (all->slots[i].id == id && id)
			return &all->slots[i];
	return NULL;
}

// A slot for one more listener; NULL when there is no memory.
static struct listener *free_slot(struct listeners *all)
{
	size_t used = all->slot_count, slots = used ? used * 2 : 8;
	struct listener *more;

	for (size_t i = 0; i < used; i++)
		if (!all->slots[i].id)
			return &all->slots[i];
	more = realloc(all->slots, slots * sizeof(*more));
	if (!more)
		return NULL;
	memset(more + used, 0, (slots - used) * sizeof(*more));
	all->slots = more;
	all->slot_count = slots;
	return &more[used];
}

// Frees the slot and what it holds but for the socket, which is returned.
static int free_listener(struct listener *listener)
{
	int fd = listener->fd;

	for (size_t i = 0; i < listener->offer_count; i++)
		offer_free(&listener->offers[i]);
	free(listener->agent_path);
	*listener = (struct listener){0};
	return fd;
}

void listeners_close(struct listeners *all)
{
	for (size_t i = 0; i < all->slot_count; i++)
		if (all->slots[i].id)
			close(free_listener(&all->slots[i]));
	free(all->slots);
	pthread_mutex_destroy(&all->lock);
}

int listeners_add(struct listeners *all, uint64_t id, int fd, uint64_t agent_cgroup_id, const char *agent_path)
{
	struct listener *listener;
	char *path;
	int error = 0;

	if (id == 0 || strlen(agent_path) >= MOST_LEAF_PATH)
		return EINVAL;
	path = strdup(agent_path);
	if (!path)
		return ENOMEM;
	pthread_mutex_lock(&all->lock);
	if (find_listener(all, id))
		error = EEXIST;
	else if (!(listener = free_slot(all)))
		error = ENOMEM;
	else
		*listener = (struct listener){.id = id, .fd = fd, .agent_cgroup_id = agent_cgroup_id, .agent_path = path};
	pthread_mutex_unlock(&all->lock);
	if (error)
		free(path);
	return error;
}

int listeners_remove(struct listeners *all, uint64_t id)
{
	struct listener *listener;
	int fd = -1;

	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, id);
	if (listener)
		fd = free_listener(listener);
	pthread_mutex_unlock(&all->lock);
	return fd;
}

int listeners_accept(struct listeners *all, uint64_t id)
{
	struct listener *listener;
	int connection = -1, error = EAGAIN;

	// Under the lock, so that the descriptor is still the listener's.
	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, id);
	if (listener) {
		connection = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
		error = errno;
	}
	pthread_mutex_unlock(&all->lock);
	errno = error;
	return connection;
}

// ---- offers ----

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

// The oldest offer that the packet fits, under the lock; NULL when there is none.
static struct offer *find_offer(struct listener *listener, const char *packet, size_t length)
{
	for (size_t i = 0; listener && i < listener->offer_count; i++)
		if (matches(&listener->offers[i], packet, length))
			return &listener->offers[i];
	return NULL;
}

static void remove_offer(struct listener *listener, struct offer *offer)
{
	struct offer *end = listener->offers + listener->offer_count--;

	memmove(offer, offer + 1, (size_t)(end - offer - 1) * sizeof(*offer));
}

void offer_free(struct offer *offer)
{
	close(offer->procs);
	free(offer->request);
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

int offer_keep(const struct offer *offer, pid_t pid)
{
	char value[16];
	int length = snprintf(value, sizeof(value), "%d", pid);

	if (write(offer->procs, value, (size_t)length) != length)
		return errno;
	prefer_as_victim(pid, offer->oom_score_adj);
	return 0;
}

int offer_add(struct listeners *all, uint64_t listener_id, const struct offer *offer)
{
	struct listener *listener;
	int error = 0;

	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, listener_id);
	if (!listener)
		error = ENOENT;
	else if (listener->offer_count == DOOR_MOST_OFFERS)
		error = ENOSPC;
	else
		listener->offers[listener->offer_count++] = *offer;
	pthread_mutex_unlock(&all->lock);
	return error;
}

bool offer_withdraw(struct listeners *all, uint64_t listener_id, uint64_t id)
{
	struct listener *listener;
	bool found = false;

	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, listener_id);
	for (size_t i = 0; listener && !found && i < listener->offer_count; i++)
		if (listener->offers[i].id == id) {
			offer_free(&listener->offers[i]);
			remove_offer(listener, &listener->offers[i]);
			found = true;
		}
	pthread_mutex_unlock(&all->lock);
	return found;
}

bool offer_take(struct listeners *all, uint64_t id, const char *packet, size_t length, pid_t pid, int pidfd,
                int64_t now_ns, struct offer *taken)
{
	struct listener *listener;
	struct offer *offer;
	struct leaf leaf;

	// Where the sender lives is asked without the lock, because the kernel may take its time for it; an offer that is
	// withdrawn meanwhile is none.
	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, id);
	offer = find_offer(listener, packet, length);
	if (offer) {
		leaf.cgroup_id = listener->agent_cgroup_id;
		strcpy(leaf.path, listener->agent_path);
	}
	pthread_mutex_unlock(&all->lock);
	if (!offer || !lives_in(&leaf, pid, pidfd))
		return false;
	pthread_mutex_lock(&all->lock);
	listener = find_listener(all, id);
	offer = find_offer(listener, packet, length);
	if (offer) {
		*taken = *offer;
		remove_offer(listener, offer);
		taken->in_a_row = now_ns - listener->taken_at_ns < IN_A_ROW_NS;
		listener->taken_at_ns = now_ns;
	}
	pthread_mutex_unlock(&all->lock);
	return offer != NULL;
}
