/*
 * Takes memory: "fixed MIB ROUNDS" maps so much, writes every page, reads it again and gives it back, so often, and prints
 * how many ns that took; "endless" takes one MiB after the other and keeps all of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096 };

static char *take(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		exit(1);
	/* Pages, not huge ones: the most charges for the memory. */
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	return memory;
}

int main(int count, char **arguments)
{
	struct timespec begin, end;
	size_t bytes, sum = 0;
	char *memory;

	if (count == 2 && !strcmp(arguments[1], "endless"))
		for (;;)
			take(1 << 20);
	if (count != 4 || strcmp(arguments[1], "fixed"))
		return 2;
	bytes = strtoul(arguments[2], NULL, 10) << 20;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (long round = strtol(arguments[3], NULL, 10); round > 0; round--) {
		memory = take(bytes);
		for (size_t at = 0; at < bytes; at += PAGE)
			sum += memory[at];
		munmap(memory, bytes);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
	return sum == 0;
}
