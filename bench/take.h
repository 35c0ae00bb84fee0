/* Memory that is there: every page of it written. */
#pragma once

#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

/* `advice` as in madvise(2): without huge pages there are the most charges for the memory. Ends the program without room. */
static char *take(size_t bytes, int advice)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		exit(1);
	madvise(memory, bytes, advice);
	for (size_t at = 0; at < bytes; at += PAGE)
		memory[at] = 1;
	return memory;
}
