/*
 * Grows, to be warned and then killed: "climb MIB LEFT_MIB RATE FILE" says "ready", reads the path of its cgroup's
 * memory.events from standard input, takes MIB at once and then MIB after MIB at RATE bytes a second until LEFT_MIB more.
 * FILE keeps what it saw when it is killed, in ns of CLOCK_BOOTTIME: when memory.high was reached, when it last ran.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "take.h"

enum { BURST = 64 << 10 };

struct seen {
	volatile unsigned long long high_ns, alive_ns;
};

static unsigned long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static unsigned long high_events(int events)
{
	char text[256];
	ssize_t n = pread(events, text, sizeof(text) - 1, 0);
	char *high;

	if (n <= 0)
		return 0;
	text[n] = '\0';
	high = strstr(text, "high ");
	return high ? strtoul(high + 5, NULL, 10) : 0;
}

int main(int count, char **arguments)
{
	unsigned long long begun_ns, before_ns, due_ns;
	char path[512];
	struct seen *seen;
	unsigned long high_before;
	size_t bytes = 0, left;
	double rate;
	int events, file;

	if (count != 5)
		return 2;
	file = open(arguments[4], O_RDWR);
	seen = file < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (seen == MAP_FAILED)
		return 3;
	printf("ready\n");
	fflush(stdout);
	if (!fgets(path, sizeof(path), stdin))
		return 4;
	path[strcspn(path, "\n")] = '\0';
	events = open(path, O_RDONLY);
	if (events < 0)
		return 5;
	high_before = high_events(events);
	take(strtoul(arguments[1], NULL, 10) << 20, MADV_NOHUGEPAGE);
	left = strtoul(arguments[2], NULL, 10) << 20;
	rate = strtod(arguments[3], NULL);
	begun_ns = now_ns();
	while (bytes < left) {
		before_ns = now_ns();
		take(BURST, MADV_NOHUGEPAGE);
		bytes += BURST;
		seen->alive_ns = now_ns();
		if (!seen->high_ns && high_events(events) > high_before)
			seen->high_ns = before_ns;
		due_ns = begun_ns + (unsigned long long)(bytes * 1e9 / rate);
		if (due_ns > now_ns()) {
			struct timespec due = {.tv_sec = due_ns / 1000000000, .tv_nsec = due_ns % 1000000000};

			clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &due, NULL);
		}
	}
	return 0;
}
