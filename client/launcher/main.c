// agentcg: `run` natively, so that a tool call pays for no Python start-up; everything else in Python.
#include "launcher.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct packet request, answer;
static struct text text;

// One line for programs. `exit_status` is -1 when the tool is executed.
static void write_json(const char *decision, const struct reply *reply, bool placed, int exit_status)
{
	const char *separator = "";

	text.used = 0;
	text_add(&text, "{\"decision\":");
	text_add_json(&text, decision);
	text_add(&text, ",\"call_id\":");
	text_add_json(&text, reply->call);
	text_add(&text, ",\"message\":");
	text_add_json(&text, reply->message);
	text_add(&text, ",\"suggestion\":");
	text_add_json(&text, reply->suggestion);
	text_add(&text, ",\"notices\":[");
	for (char *notice = NULL; answer.used && (notice = packet_next(&answer, "notice", notice)); separator = ",") {
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

static void show(const char *line)
{
	if (*line == '\0')
		return;
	text_add(&text, "agentcg: ");
	text_add_shown(&text, line);
	text_add(&text, "\n");
}

static void show_queued(const struct options *options, const struct reply *reply)
{
	if (options->quiet || options->json)
		return;
	text.used = 0;
	show(*reply->message ? reply->message : "waiting for room");
	text_write(&text, STDERR_FILENO);
}

// There is no answer. Ends the process, or comes back to run the tool without limits.
static void without_answer(const struct options *options, const char *cause)
{
	const char *consequence = options->run_if_unreachable
	                                  ? "running without limits"
	                                  : "not run; --if-unreachable run would run it without limits";

	answer.used = 0;
	if (options->json) {
		struct reply reply = {.call = "", .message = cause, .suggestion = ""};

		if (!options->run_if_unreachable)
			reply.suggestion = "check that agentcgroupd runs and that the session exists: agentcg check";
		write_json("unreachable", &reply, false, options->run_if_unreachable ? -1 : EXIT_UNREACHABLE);
	} else {
		complain(options->command[0], ": ", consequence, ": no answer from the daemon at ", options->session_dir,
		         "/" SOCKET_NAME ": ", cause, NULL);
	}
	if (!options->run_if_unreachable)
		exit(EXIT_UNREACHABLE);
}

static void out_of_memory(void)
{
	complain("out of memory", NULL);
	exit(EXIT_INTERNAL);
}

// Whether the caller has the variable of NAME=VALUE in the environment already, whatever its value.
static bool is_set(const char *variable)
{
	size_t length = (size_t)(strchr(variable, '=') - variable) + 1;

	for (char **each = environ; *each; each++)
		if (strncmp(*each, variable, length) == 0)
			return true;
	return false;
}

// Ends the process when the answer is no.
static void with_answer(const struct options *options, const struct reply *reply)
{
	bool placed = reply->status == STATUS_GRANTED || reply->status == STATUS_TRIMMED;
	int exit_status = reply->status == STATUS_REFUSED ? EXIT_REFUSED : EXIT_INVALID;

	if (options->json) {
		write_json(status_name(reply->status), reply, placed, placed ? -1 : exit_status);
	} else if (!placed || !options->quiet) {
		text.used = 0;
		// A grant is what was asked for; only what differs from it is worth a line.
		if (reply->status != STATUS_GRANTED)
			show(*reply->message ? reply->message : status_name(reply->status));
		if (reply->status != STATUS_GRANTED)
			show(reply->suggestion);
		for (char *notice = packet_next(&answer, "notice", NULL); notice;
		     notice = packet_next(&answer, "notice", notice))
			show(notice);
		text_write(&text, STDERR_FILENO);
	}
	if (!placed)
		exit(exit_status);
	for (char *env = packet_next(&answer, "env", NULL); env; env = packet_next(&answer, "env", env))
		if (putenv(env) != 0)
			out_of_memory();
	for (char *set = packet_next(&answer, "default", NULL); set; set = packet_next(&answer, "default", set))
		if (!is_set(set) && putenv(set) != 0)
			out_of_memory();
}

static int run(int argc, char **argv)
{
	static struct options options;
	static char path[MOST_PATH], feedback[MOST_PATH + sizeof(FEEDBACK_NAME)];
	struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
	struct reply reply;
	const char *cause;
	int status;

	// Nobody reading stderr is no reason to lose the tool; the tool gets the disposition that was.
	sigaction(SIGPIPE, &ignore, &before);
	options_parse(argc, argv, &options, &request);
	// Looked for before the daemon is asked: a misspelt command should not wait for room.
	status = command_find(options.command[0], path);
	if (status) {
		complain(options.command[0], ": ", errno == ENOENT && !strchr(options.command[0], '/') ? "command not found" : strerror(errno), NULL);
		return status;
	}
	cause = ask(&options, &request, &answer, &reply, show_queued);
	if (cause)
		without_answer(&options, cause);
	else
		with_answer(&options, &reply);
	strcpy(feedback, options.session_dir);
	strcat(feedback, "/" FEEDBACK_NAME);
	if (setenv(ENV_SESSION_DIR, options.session_dir, 1) != 0 || setenv(ENV_FEEDBACK, feedback, 1) != 0)
		out_of_memory();
	sigaction(SIGPIPE, &before, NULL);
	command_execute(path, options.command);
	status = errno == ENOENT || errno == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	complain(options.command[0], ": ", strerror(errno), NULL);
	return status;
}

static int say(const char *what, int fd, int status)
{
	text_add(&text, what);
	text_write(&text, fd);
	return status;
}

int main(int argc, char **argv)
{
	const char *subcommand = argc > 1 ? argv[1] : "";

	if (strcmp(subcommand, "run") == 0)
		return run(argc - 2, argv + 2);
	if (argc < 2)
		return say(help_main, STDERR_FILENO, EXIT_INVALID);
	if (strcmp(subcommand, "--help") == 0 || strcmp(subcommand, "-h") == 0 || strcmp(subcommand, "help") == 0)
		return say(help_main, STDOUT_FILENO, 0);
	if (strcmp(subcommand, "--version") == 0)
		return say("agentcg " VERSION "\n", STDOUT_FILENO, 0);
	return python_execute(argc, argv);
}
