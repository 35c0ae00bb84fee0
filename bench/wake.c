/*
 * Wake-up latency: sleeps until a moment, notes how late it ran, works 0.2 ms; prints the latenesses in us, one a line.
 * Begins when its input ends.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int count, char **words)
{
	int rounds = count > 1 ? atoi(words[1]) : 0;
	long *late_us = calloc(rounds ? rounds : 1, sizeof(*late_us));

	if (!rounds || !late_us)
		return 2;
	while (getchar() != EOF)
		;
	for (int round = 0; round < rounds; round++) {
		long long due_ns = now_ns() + 10000000, end_ns;
		struct timespec due = {due_ns / 1000000000, due_ns % 1000000000};

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		late_us[round] = (now_ns() - due_ns) / 1000;
		for (end_ns = now_ns() + 200000; now_ns() < end_ns;)
			;
	}
	for (int round = 0; round < rounds; round++)
		printf("%ld\n", late_us[round]);
	return 0;
}
