// The lines that `agentcg act` tells, see act.h. They are collected, so that telling takes no time between two steps.
#include "act.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { MOST_LINE = 256, BUFFER = 1 << 15 };

static char buffer[BUFFER];
static size_t buffered;
static int results = -1;

bool results_open(const char *path)
{
	results = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	return results >= 0;
}

void results_flush(void)
{
	// A result that cannot be written is lost, not the replay; the lines that are missing show.
	if (buffered && results >= 0 && write(results, buffer, buffered) < 0)
		complain("results cannot be written: ", strerror(errno), NULL);
	buffered = 0;
}

static void put(const char *addition)
{
	size_t length = strlen(addition);

	memcpy(buffer + buffered, addition, length);
	buffered += length;
}

char *digits_of(int64_t number, char digits[static MOST_DIGITS])
{
	char *at = digits + MOST_DIGITS - 1;
	uint64_t rest = number < 0 ? -(uint64_t)number : (uint64_t)number;

	*at = '\0';
	do
		*--at = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0)
		*--at = '-';
	return at;
}

void results_tell(const char *what, const char *who, const int64_t *numbers, int count)
{
	char digits[MOST_DIGITS];

	if (buffered > BUFFER - MOST_LINE)
		results_flush();
	put(what);
	put(" ");
	put(who);
	for (int i = 0; i < count; i++) {
		put(" ");
		put(digits_of(numbers[i], digits));
	}
	put("\n");
}
