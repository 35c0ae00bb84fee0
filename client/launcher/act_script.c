// The script that `agentcg act` plays, see act.c for its records and act.h.
#include "act.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wrong(const char *path, const char *line)
{
	complain(path, ": not a line of a script: ", line, NULL);
	exit(EXIT_INVALID);
}

static int64_t page_ceiling(const struct script *script, int64_t bytes)
{
	return (bytes + script->page_bytes - 1) / script->page_bytes * script->page_bytes;
}

static void add_event(struct script *script, const char *path, int64_t at_us, int64_t bytes, int call)
{
	if (script->event_count == MOST_EVENTS) {
		complain(path, ": more points and calls than this program takes", NULL);
		exit(EXIT_INVALID);
	}
	script->events[script->event_count++] = (struct event){at_us, page_ceiling(script, bytes), call};
}

bool numbers_of(char *at, int64_t *numbers, int count)
{
	for (int i = 0; i < count; i++) {
		char *end;

		errno = 0;
		numbers[i] = strtoll(at, &end, 10);
		if (end == at || errno || numbers[i] < 0 || (*end != ' ' && *end != '\0'))
			return false;
		at = end;
	}
	return true;
}

static int by_time(const void *one, const void *other)
{
	const struct event *a = one, *b = other;

	if (a->at_us != b->at_us)
		return a->at_us < b->at_us ? -1 : 1;
	// The agent's own memory first; calls of one moment in the order of the file.
	return a->call < b->call ? -1 : a->call > b->call;
}

void script_read(struct script *script, const char *path, const char *who)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	char *text = script->text = size < 0 ? NULL : malloc((size_t)size + 1);
	bool ours = false;

	if (!text || lseek(fd, 0, SEEK_SET) || read(fd, text, (size_t)size) != size) {
		complain(path, ": ", strerror(errno), NULL);
		exit(EXIT_INVALID);
	}
	text[size] = '\0';
	close(fd);
	script->page_bytes = SMALL_PAGE;
	script->step_bytes = 1 << 20;
	for (char *line = text, *next; line && *line; line = next) {
		int64_t numbers[2];
		char *space;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (strcmp(line, "agent") == 0) {
			ours = !*who;
		} else if (strncmp(line, "pages ", 6) == 0) {
			if (!numbers_of(line + 6, &script->page_bytes, 1) || script->page_bytes < SMALL_PAGE || script->page_bytes % SMALL_PAGE)
				wrong(path, line);
		} else if (strncmp(line, "step ", 5) == 0) {
			if (!numbers_of(line + 5, &script->step_bytes, 1) || script->step_bytes < SMALL_PAGE)
				wrong(path, line);
			script->step_bytes = page_ceiling(script, script->step_bytes);
		} else if (strncmp(line, "point ", 6) == 0) {
			if (!numbers_of(line + 6, numbers, 2))
				wrong(path, line);
			if (ours)
				add_event(script, path, numbers[0], numbers[1], -1);
		} else if (strncmp(line, "call ", 5) == 0 && (space = strchr(line + 5, ' '))) {
			*space = '\0';
			if (!numbers_of(space + 1, numbers, 2) || strlen(line + 5) >= sizeof(script->calls->name) || script->call_count == MOST_CALLS)
				wrong(path, line);
			ours = strcmp(line + 5, who) == 0;
			if (*who)
				continue;
			struct call *call = &script->calls[script->call_count];
			strcpy(call->name, line + 5);
			call->start_us = numbers[0];
			call->duration_us = numbers[1];
			add_event(script, path, numbers[0], 0, script->call_count++);
		} else if (strncmp(line, "option ", 7) == 0) {
			struct call *call = script->call_count ? &script->calls[script->call_count - 1] : NULL;

			if (*who)
				continue;
			if (!call || call->option_count == MOST_OPTIONS)
				wrong(path, line);
			call->options[call->option_count++] = line + 7;
		} else {
			wrong(path, line);
		}
	}
	qsort(script->events, (size_t)script->event_count, sizeof(*script->events), by_time);
}
