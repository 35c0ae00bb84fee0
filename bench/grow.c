/*
 * Takes memory. "fixed MIB ROUNDS PAUSE_MS": maps so much, writes every page, reads it again, rests, gives it back and
 * rests again, so often, and prints how many ns that took. "endless": one MiB after the other, and keeps all of it;
 * "huge": the same in huge pages. "spin": none, only a CPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "take.h"

static void rest(long ms)
{
	struct timespec length = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&length, NULL);
}

int main(int count, char **arguments)
{
	struct timespec begin, end;
	size_t bytes, sum = 0;
	long pause_ms;
	char *memory;

	if (count == 2 && !strcmp(arguments[1], "endless"))
		for (;;)
			take(1 << 20, MADV_NOHUGEPAGE);
	if (count == 2 && !strcmp(arguments[1], "huge"))
		for (;;)
			take(8 << 20, MADV_HUGEPAGE);
	if (count == 2 && !strcmp(arguments[1], "spin"))
		for (volatile long turns = 0;; turns++)
			;
	if (count != 5 || strcmp(arguments[1], "fixed"))
		return 2;
	bytes = strtoul(arguments[2], NULL, 10) << 20;
	pause_ms = strtol(arguments[4], NULL, 10);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (long round = strtol(arguments[3], NULL, 10); round > 0; round--) {
		memory = take(bytes, MADV_NOHUGEPAGE);
		for (size_t at = 0; at < bytes; at += PAGE)
			sum += memory[at];
		rest(pause_ms);
		munmap(memory, bytes);
		rest(pause_ms);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
	return sum == 0;
}
