// What `agentcg run` says of a request: a line for programs (--json), or words for people.
#include "launcher.h"

#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

void tell_json(const char *decision, const struct reply *reply, struct packet *notices, bool placed, int exit_status)
{
	static struct text text;
	const char *separator = "";

	text.used = 0;
	text_add(&text, "{\"decision\":");
	text_add_json(&text, decision);
	text_add(&text, ",\"call_id\":");
	text_add_json(&text, reply->call);
	text_add(&text, ",\"reason\":");
	text_add_json(&text, reply->reason);
	text_add(&text, ",\"message\":");
	text_add_json(&text, reply->message);
	text_add(&text, ",\"suggestion\":");
	text_add_json(&text, reply->suggestion);
	text_add(&text, ",\"notices\":[");
	for (char *notice = NULL; notices && (notice = packet_next(notices, "notice", notice)); separator = ",") {
		text_add(&text, separator);
		text_add_json(&text, notice);
	}
	text_add(&text, placed ? "],\"placed\":true" : "],\"placed\":false");
	text_add(&text, ",\"exit_status\":");
	if (exit_status < 0)
		text_add(&text, "null");
	else
		text_add_number(&text, exit_status);
	text_add(&text, "}\n");
	text_write(&text, STDERR_FILENO);
}

void fail(const struct failure *failure, bool json, const char *first, ...)
{
	static struct text cause; // of zeroes, so it ends with a NUL
	struct reply reply = {.call = failure->call ? failure->call : "", .reason = failure->reason, .suggestion = failure->next_step};
	va_list parts;

	va_start(parts, first);
	for (const char *part = first; part; part = va_arg(parts, const char *))
		text_add(&cause, part);
	va_end(parts);
	cause.bytes[sizeof(cause.bytes) - 1] = '\0';
	reply.message = cause.bytes;
	if (json)
		tell_json(failure->decision, &reply, NULL, failure->call != NULL, failure->exit_status);
	else
		complain(cause.bytes, "\nagentcg: ", failure->next_step, NULL);
	exit(failure->exit_status);
}
