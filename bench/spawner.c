/*
 * Starts programs and takes the time, so that no interpreter stands between the clock and the kernel.
 *
 * Every start is vfork(2) (or clone3(2) as vfork does it) and execv(3); the time runs from before the start until the
 * program has ended and is reaped. Results go to stdout as text once everything is over.
 *
 *   spawner latency PLAN PAUSE_US         one start after the other, in the order that PLAN gives
 *   spawner rate PER_SECOND SECONDS CMD.. a start at every tick, whether the last one has ended or not
 *   spawner flood WORKERS SECONDS CMD..   always WORKERS of them alive, as many starts as there is time for
 *   spawner hold COUNT CMD..              COUNT of them at once, until stdin ends
 *
 * PLAN is lines of tab-separated fields. A way of starting, numbered from 0: "spawn CMD..", or in a new child cgroup of
 * PARENT: "place PARENT CMD.." (the child moves itself), "clone3 PARENT CMD.." (it is born there), "move PARENT CMD.." (as
 * place, and the cgroup is made before the time runs). Then "order N N ..".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "starting.h"

#define MOST_WAYS 16
#define MOST_ARGS 64

enum method { SPAWN, PLACE, CLONE3, MOVE };

struct way {
	enum method method;
	const char *parent;
	char *argv[MOST_ARGS];
};

static uint64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static int open_new(const struct way *way, const char *path, const char *procs)
{
	int fd;

	if (mkdir(path, 0755) < 0)
		die(path);
	fd = way->method == CLONE3 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : open(procs, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

/* One start in one of the ways; the removal of the cgroup is not part of the time. */
static uint64_t timed(const struct way *way, unsigned long number, int *status)
{
	char path[PATH_MAX], procs[PATH_MAX + 16];
	uint64_t begin;
	int fd = -1;
	pid_t pid;

	if (way->method != SPAWN) {
		snprintf(path, sizeof(path), "%s/b%lu", way->parent, number);
		snprintf(procs, sizeof(procs), "%s/cgroup.procs", path);
	}
	if (way->method == MOVE)
		fd = open_new(way, path, procs);
	begin = now_ns();
	if (way->method == PLACE || way->method == CLONE3)
		fd = open_new(way, path, procs);
	switch (way->method) {
	case PLACE:
	case MOVE:
		pid = start_placed((char **)way->argv, fd);
		break;
	case CLONE3:
		pid = start_inside((char **)way->argv, fd);
		break;
	default:
		pid = start((char **)way->argv);
	}
	*status = reap(pid);
	begin = now_ns() - begin;
	if (fd >= 0) {
		close(fd);
		if (rmdir(path) < 0)
			die(path);
	}
	return begin;
}

static int read_plan(const char *path, struct way *ways, unsigned char **order, size_t *length)
{
	char *line = NULL, *field, *rest;
	size_t size = 0, room = 0;
	int count = 0, argc;
	FILE *file = fopen(path, "r");

	if (!file)
		die(path);
	*length = 0;
	*order = NULL;
	while (getline(&line, &size, file) > 0) {
		line[strcspn(line, "\n")] = 0;
		rest = strdup(line);
		field = strsep(&rest, "\t");
		if (strcmp(field, "order") == 0) {
			while ((field = strsep(&rest, "\t"))) {
				if (*length == room) {
					room = room ? room * 2 : 1024;
					*order = realloc(*order, room);
					if (!*order)
						die("memory");
				}
				(*order)[(*length)++] = (unsigned char)atoi(field);
			}
			continue;
		}
		if (count == MOST_WAYS) {
			fprintf(stderr, "spawner: %s: more than %d ways\n", path, MOST_WAYS);
			exit(2);
		}
		ways[count].method = strcmp(field, "place") == 0    ? PLACE
				     : strcmp(field, "clone3") == 0 ? CLONE3
				     : strcmp(field, "move") == 0   ? MOVE
								    : SPAWN;
		if (ways[count].method != SPAWN)
			ways[count].parent = strsep(&rest, "\t");
		for (argc = 0; argc < MOST_ARGS - 1 && (field = strsep(&rest, "\t")); argc++)
			ways[count].argv[argc] = field;
		count++;
	}
	free(line);
	fclose(file);
	return count;
}

static int run_latency(const char *plan, long pause_us)
{
	static struct way ways[MOST_WAYS];
	struct timespec pause = { pause_us / 1000000, pause_us % 1000000 * 1000 };
	unsigned char *order;
	size_t length, index;
	uint64_t *took;
	int *status;

	read_plan(plan, ways, &order, &length);
	took = calloc(length, sizeof(*took));
	status = calloc(length, sizeof(*status));
	if (!took || !status)
		die("memory");
	for (index = 0; index < length; index++) {
		took[index] = timed(&ways[order[index]], index, &status[index]);
		if (pause_us)
			nanosleep(&pause, NULL);
	}
	for (index = 0; index < length; index++)
		printf("%d\t%llu\t%d\n", order[index], (unsigned long long)took[index], status[index]);
	return 0;
}

struct child {
	pid_t pid;
	uint64_t due;
};

/* Reaps whoever has ended; each is one line: when it was due until it was over, and its status. Returns how many. */
static size_t reap_all(struct child *children, size_t count, uint64_t *took, int *statuses, size_t *ended)
{
	size_t index, reaped = 0;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (index = 0; index < count && children[index].pid != pid; index++)
			;
		if (index == count)
			continue;
		children[index].pid = 0;
		took[*ended] = now_ns() - children[index].due;
		statuses[(*ended)++] = status;
		reaped++;
	}
	return reaped;
}

static void await_child(uint64_t until)
{
	struct timespec left;
	sigset_t set;
	uint64_t now = now_ns();

	if (now >= until)
		return;
	left.tv_sec = (time_t)((until - now) / 1000000000u);
	left.tv_nsec = (long)((until - now) % 1000000000u);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigtimedwait(&set, NULL, &left);
}

static void block_sigchld(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static size_t free_slot(const struct child *children, size_t count)
{
	size_t index;

	for (index = 0; index < count && children[index].pid; index++)
		;
	return index;
}

/* `period_ns` 0: as soon as there is a free slot. */
static int run_load(size_t slots, uint64_t period_ns, double seconds, char **argv)
{
	uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9), due = begin, drained;
	size_t room = 4u << 20, started = 0, ended = 0, alive = 0, most = 0, index;
	struct child *children = calloc(slots, sizeof(*children));
	uint64_t *took = calloc(room, sizeof(*took));
	int *statuses = calloc(room, sizeof(*statuses));

	if (!children || !took || !statuses)
		die("memory");
	block_sigchld();
	while (due < end && started < room) {
		alive -= reap_all(children, slots, took, statuses, &ended);
		if (period_ns && now_ns() < due) {
			await_child(due);
			continue;
		}
		index = free_slot(children, slots);
		if (index == slots) {
			await_child(now_ns() + 100000000u);
			if (!period_ns)
				due = now_ns();
			continue;
		}
		children[index].due = period_ns ? due : now_ns();
		children[index].pid = start(argv);
		started++;
		alive++;
		most = alive > most ? alive : most;
		due = period_ns ? due + period_ns : now_ns();
	}
	end = now_ns();
	drained = end + 60000000000u;
	while (alive && now_ns() < drained) {
		alive -= reap_all(children, slots, took, statuses, &ended);
		if (alive)
			await_child(now_ns() + 100000000u);
	}
	printf("started\t%zu\nended\t%zu\nmost\t%zu\nns\t%llu\n", started, ended, most,
	       (unsigned long long)(end - begin));
	for (index = 0; index < ended; index++)
		printf("%d\t%llu\t%d\n", 0, (unsigned long long)took[index], statuses[index]);
	return 0;
}

static int run_hold(size_t count, char **argv)
{
	int ready[2], release[2], status, failed = 0;
	size_t index, heard = 0;
	struct pollfd poll_ready;
	uint64_t begin;
	char bytes[512];
	ssize_t got;

	if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(release, O_CLOEXEC) < 0)
		die("pipe");
	/* What the programs know by number must not be what we opened by chance. */
	if (fcntl(ready[1], F_DUPFD, 10) < 0 || dup2(ready[1], 103) < 0 || dup2(release[0], 104) < 0 ||
	    fcntl(ready[0], F_DUPFD_CLOEXEC, 110) < 0 || fcntl(release[1], F_DUPFD_CLOEXEC, 120) < 0)
		die("descriptors");
	close(ready[0]);
	close(ready[1]);
	close(release[0]);
	close(release[1]);
	close(10);
	ready[0] = 110;
	release[1] = 120;
	dup2(103, 3);
	dup2(104, 4);
	close(103);
	close(104);
	begin = now_ns();
	for (index = 0; index < count; index++)
		start(argv);
	close(3);
	close(4);
	poll_ready.fd = ready[0];
	poll_ready.events = POLLIN;
	while (heard < count && poll(&poll_ready, 1, 120000) > 0) {
		got = read(ready[0], bytes, sizeof(bytes));
		if (got <= 0)
			break;
		heard += (size_t)got;
	}
	printf("held\t%zu\nns\t%llu\n", heard, (unsigned long long)(now_ns() - begin));
	fflush(stdout);
	while (read(0, bytes, sizeof(bytes)) > 0)
		;
	close(release[1]);
	while (wait(&status) > 0)
		failed += status != 0;
	printf("failed\t%d\n", failed);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "latency") == 0)
		return run_latency(argv[2], atol(argv[3]));
	if (argc > 4 && strcmp(argv[1], "rate") == 0)
		return run_load(4096, (uint64_t)(1e9 / atof(argv[2])), atof(argv[3]), argv + 4);
	if (argc > 4 && strcmp(argv[1], "flood") == 0)
		return run_load((size_t)atol(argv[2]), 0, atof(argv[3]), argv + 4);
	if (argc > 3 && strcmp(argv[1], "hold") == 0)
		return run_hold((size_t)atol(argv[2]), argv + 3);
	fprintf(stderr, "usage: spawner latency PLAN PAUSE_US | rate PER_SECOND SECONDS CMD.. |\n"
			"       flood WORKERS SECONDS CMD.. | hold COUNT CMD..\n");
	return 2;
}
