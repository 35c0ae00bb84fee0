/*
 * Work whose pace the kernel programs must not slow: does a number of steps, prints the nanoseconds they took.
 *
 *   work alloc N    touch N pages of fresh anonymous memory, in pieces of 1 MiB that are given back
 *   work fork N     start N processes that execute this program and end at once, one after the other
 *   work switch N   N round trips of a byte between two processes on one CPU: two context switches each
 */
#define _GNU_SOURCE
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIECE (1 << 20)
#define PAGE 4096

static long long now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int alloc(long pages)
{
	while (pages > 0) {
		char *piece = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (piece == MAP_FAILED)
			return 1;
		/* Page by page: one fault and one charge each, as small allocations make them. */
		madvise(piece, PIECE, MADV_NOHUGEPAGE);
		for (int at = 0; at < PIECE && pages > 0; at += PAGE, pages--)
			piece[at] = 1;
		munmap(piece, PIECE);
	}
	return 0;
}

static int start(char *self, long count)
{
	char *words[] = {self, "end", NULL}, *environment[] = {NULL};

	while (count-- > 0) {
		pid_t child;
		int status;

		if (posix_spawn(&child, self, NULL, NULL, words, environment) != 0)
			return 1;
		if (waitpid(child, &status, 0) != child || status != 0)
			return 1;
	}
	return 0;
}

static int ping_pong(long rounds)
{
	int there[2], back[2];
	char byte = 0;
	cpu_set_t one;
	pid_t child;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	if (sched_setaffinity(0, sizeof(one), &one) != 0 || pipe(there) != 0 || pipe(back) != 0)
		return 1;
	child = fork();
	if (child == 0) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1)
			if (write(back[1], &byte, 1) != 1)
				_exit(1);
		_exit(0);
	}
	while (rounds-- > 0)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			return 1;
	close(there[1]);
	return waitpid(child, NULL, 0) != child;
}

int main(int count, char **words)
{
	long long began_ns;
	long steps;
	int failed;

	if (count == 2 && strcmp(words[1], "end") == 0)
		return 0;
	steps = count == 3 ? atol(words[2]) : 0;
	if (steps <= 0)
		return 2;
	began_ns = now_ns();
	if (strcmp(words[1], "alloc") == 0)
		failed = alloc(steps);
	else if (strcmp(words[1], "fork") == 0)
		failed = start(words[0], steps);
	else if (strcmp(words[1], "switch") == 0)
		failed = ping_pong(steps);
	else
		return 2;
	if (failed)
		return 1;
	printf("%lld\n", now_ns() - began_ns);
	return 0;
}
