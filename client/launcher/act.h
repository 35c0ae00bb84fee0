// The parts of `agentcg act` that act.c stands on: the script it plays and the lines it tells.
#ifndef AGENTCG_ACT_H
#define AGENTCG_ACT_H

#include "launcher.h"

#include <stdint.h>
#include <sys/types.h>

// ---- act_script.c ----

enum { MOST_EVENTS = 20000, MOST_CALLS = 2000, MOST_OPTIONS = 16, SMALL_PAGE = 4096 };

struct event {
	int64_t at_us;
	int64_t bytes; // of a point
	int call;      // index of the call that starts, -1 for a point
};

struct call {
	char name[64];
	int64_t start_us, duration_us, started_us;
	char *options[MOST_OPTIONS]; // in the script's text
	int option_count;
	int tries;
	pid_t pid; // 0: not running
};

struct script {
	struct event events[MOST_EVENTS]; // in the order of time
	struct call calls[MOST_CALLS];
	int event_count, call_count;
	int64_t page_bytes; // SMALL_PAGE unless it says otherwise; all memory is a multiple of it
	int64_t step_bytes; // 1 MiB unless it says otherwise
	char *text;
};

// Reads the part of `who` ("": the agent and all starts of calls). Ends the process when `path` is no script.
void script_read(struct script *script, const char *path, const char *who);
// Numbers after a word, separated by blanks and not negative; false when there are not `count` of them.
bool numbers_of(char *at, int64_t *numbers, int count);

// ---- act_results.c ----

enum { MOST_DIGITS = 24 };

// False and errno when RESULTS cannot be opened.
bool results_open(const char *path);
void results_flush(void);
void results_tell(const char *what, const char *who, const int64_t *numbers, int count);
// The decimal digits of `number`, somewhere in `digits`.
char *digits_of(int64_t number, char digits[static MOST_DIGITS]);

// Adds the line `what who number...`; it is written at the next flush, or when there are many.
#define TELL(what, who, ...) \
	results_tell(what, who, (const int64_t[]){__VA_ARGS__}, (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

#endif
