// `agentcg act SCRIPT`: plays the part of a recorded agent with real memory. What `agentcg replay` runs.
//
// One process is the agent: it follows the memory curve of the agent runtime and starts the recorded calls, each a
// process of its own that follows the call's curve. Native, because a replay is at high speed and what it measures is
// the time that single steps of memory take.
//
// SCRIPT, made by `agentcg replay`, has a record a line, times in microseconds:
//
//   pages BYTES             memory is taken in pages of so much, if more than 4096 where the kernel gives them (mTHP)
//   step BYTES              how much is allocated at a time; each such step is timed
//   agent                   the following points are the agent's own
//   call NAME START DURATION    the following points are the call's, counted from its own beginning
//   option WORD             of `agentcg run`, for this call
//   point OFFSET BYTES      from OFFSET on it holds BYTES
//
// Pages are really taken: MADV_POPULATE_WRITE faults them in, in steps, and where the kernel lacks it each is written to.
// A recorded pause stays as long as it was, but work takes what it takes: who is late goes on from there, and the agent
// waits for a call that has not ended when the recorded one had.
//
// RESULTS gets lines, each in one write, times since START_US of CLOCK_MONOTONIC (0: since this process began; -: it is a
// line of standard input):
//
//   step WHO AT TOOK BYTES  | free WHO AT BYTES  | call NAME STARTED ENDED STATUS TRIES  | done WHO STARTED ENDED
//
// STATUS is the exit status, or 128 and the signal's number.
#include "act.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// An agent that is refused asks again after this time, this often; what is refused again and again it no longer declares,
// so that it gets what there is.
enum { RETRY_US = 100 * 1000, DECLARING_TRIES = 3, MOST_TRIES = 100 };

static struct script script;
static int64_t zero_us;

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void sleep_until(int64_t at_us)
{
	struct timespec until = {.tv_sec = at_us / 1000000, .tv_nsec = at_us % 1000000 * 1000};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

// ---- memory ----

static char *ground;
static int64_t held_bytes;

static void reserve(int64_t bytes)
{
	// Address space only. Pages of one size, so that a step is the same work every time.
	ground = mmap(NULL, (size_t)(bytes ? bytes : 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ground == MAP_FAILED) {
		complain("address space: ", strerror(errno), NULL);
		exit(EXIT_INTERNAL);
	}
	madvise(ground, (size_t)(bytes ? bytes : 1), script.page_bytes > SMALL_PAGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	// Starting a call shall not cost what the agent holds.
	madvise(ground, (size_t)(bytes ? bytes : 1), MADV_DONTFORK);
}

static void touch(char *from, size_t length)
{
	if (madvise(from, length, MADV_POPULATE_WRITE) == 0)
		return;
	for (volatile char *page = from; page < from + length; page += 4096)
		*page = 1;
}

static void hold(const char *who, int64_t bytes)
{
	if (bytes < held_bytes) {
		madvise(ground + bytes, (size_t)(held_bytes - bytes), MADV_DONTNEED);
		held_bytes = bytes;
		TELL("free", who, now_us() - zero_us, held_bytes);
		return;
	}
	while (held_bytes < bytes) {
		int64_t length = bytes - held_bytes < script.step_bytes ? bytes - held_bytes : script.step_bytes;
		int64_t before = now_us(), after;

		touch(ground + held_bytes, (size_t)length);
		after = now_us();
		held_bytes += length;
		TELL("step", who, after - zero_us, after - before, held_bytes);
	}
	results_flush();
}

// ---- the agent ----

static char **launcher; // what comes before the options of `agentcg run`
static int launcher_words;
static char *own_words[6]; // this program, playing one call

static void start(struct call *call)
{
	char **words;
	int count = 0;

	call->tries++;
	results_flush();
	call->pid = fork();
	if (call->pid < 0) {
		complain("fork: ", strerror(errno), NULL);
		exit(EXIT_INTERNAL);
	}
	if (call->pid)
		return;
	words = calloc((size_t)launcher_words + MOST_OPTIONS + 8, sizeof(*words));
	if (!words)
		_exit(EXIT_INTERNAL);
	for (int i = 0; i < launcher_words; i++)
		words[count++] = launcher[i];
	for (int i = 0; launcher_words && call->tries <= DECLARING_TRIES && i < call->option_count; i++)
		words[count++] = call->options[i];
	if (launcher_words)
		words[count++] = "--";
	for (size_t i = 0; i < sizeof(own_words) / sizeof(*own_words) - 1; i++)
		words[count++] = own_words[i];
	words[count] = call->name;
	execvp(words[0], words);
	complain(words[0], ": ", strerror(errno), NULL);
	_exit(EXIT_NOT_FOUND);
}

static void begin(struct call *call)
{
	call->started_us = now_us();
	start(call);
}

static int status_of(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void finish(struct call *call)
{
	int status = 0;

	while (call->pid) {
		if (waitpid(call->pid, &status, 0) < 0 && errno == EINTR)
			continue;
		call->pid = 0;
		// Refused: an agent waits and asks again.
		if (status_of(status) == EXIT_REFUSED && call->tries < MOST_TRIES) {
			sleep_until(now_us() + RETRY_US);
			start(call);
		}
	}
	TELL("call", call->name, call->started_us - zero_us, now_us() - zero_us, status_of(status), call->tries);
	results_flush();
}

// Waits for every call that had ended by `at_us` in the recording; how long that was.
static int64_t await_calls(int64_t at_us)
{
	int64_t before = now_us();

	for (int i = 0; i < script.call_count; i++)
		if (script.calls[i].pid && script.calls[i].start_us + script.calls[i].duration_us <= at_us)
			finish(&script.calls[i]);
	return now_us() - before;
}

static void follow(const char *who)
{
	int64_t began_us = now_us(), late_us = 0;

	for (int i = 0; i < script.event_count; i++) {
		struct event *event = &script.events[i];
		int64_t due_us;

		// Waiting for a tool is no pause of the agent's own: it comes on top, less what there was to wait anyway.
		await_calls(event->at_us);
		due_us = began_us + late_us + event->at_us;
		if (now_us() < due_us)
			sleep_until(due_us);
		else
			late_us += now_us() - due_us;
		int64_t before = now_us();
		if (event->call >= 0)
			begin(&script.calls[event->call]);
		else
			hold(who, event->bytes);
		late_us += now_us() - before;
	}
	await_calls(INT64_MAX);
	TELL("done", who, began_us - zero_us, now_us() - zero_us);
	results_flush();
}

// ---- the command line ----

static const char usage[] = "agentcg act SCRIPT RESULTS START_US|- [CALL | -- agentcg run OPTION...]: run by agentcg replay";

// Waits for the common beginning; what to hand on to the calls, which count from the same moment.
static char *await_start(char *start)
{
	static char zero[MOST_DIGITS];
	ssize_t length;

	if (strcmp(start, "-") == 0) {
		// Whoever plays it says when all are where they belong.
		length = read(STDIN_FILENO, zero, sizeof(zero) - 1);
		zero[length > 0 ? strcspn(zero, "\n") : 0] = '\0';
		start = zero;
	}
	if (!numbers_of(start, &zero_us, 1)) {
		complain(usage, NULL);
		exit(EXIT_INVALID);
	}
	if (zero_us == 0) {
		zero_us = now_us();
		return digits_of(zero_us, zero);
	}
	if (now_us() < zero_us)
		sleep_until(zero_us);
	return start;
}

int act(int argc, char **argv)
{
	const char *who = argc > 3 && strcmp(argv[3], "--") != 0 ? argv[3] : "";
	int64_t most_bytes = 0;
	static char own[MOST_PATH];

	if (argc < 3) {
		complain(usage, NULL);
		return EXIT_INVALID;
	}
	if (!results_open(argv[1])) {
		complain(argv[1], ": ", strerror(errno), NULL);
		return EXIT_INVALID;
	}
	script_read(&script, argv[0], who);
	for (int i = 0; i < script.event_count; i++)
		if (script.events[i].bytes > most_bytes)
			most_bytes = script.events[i].bytes;
	reserve(most_bytes);
	if (argc > 4 && !*who) {
		launcher = argv + 4;
		launcher_words = argc - 4;
	}
	if (readlink("/proc/self/exe", own, sizeof(own) - 1) < 0)
		strcpy(own, "agentcg");
	own_words[0] = own;
	own_words[1] = "act";
	memcpy(own_words + 2, argv, 3 * sizeof(*argv));
	own_words[4] = await_start(argv[2]);
	follow(*who ? who : "agent");
	return 0;
}
