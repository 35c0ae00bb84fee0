// agentcg: `run` natively, so that a tool call pays for no Python start-up; everything else in Python.
#include "launcher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct packet request, answer;
static struct text text;

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
	const char *next_step = "check that this is inside a session (agentcg session run NAME -- AGENT; a container needs its "
				"sockets mounted) and that agentcgroupd runs (agentcg check)";

	answer.used = 0;
	if (options->json) {
		static struct text told; // of zeroes, so it ends with a NUL
		struct reply reply = {.call = "", .message = told.bytes, .suggestion = "", .reason = "unreachable"};

		text_add(&told, "no answer from the daemon at ");
		text_add(&told, options->session_dir);
		text_add(&told, "/" SOCKET_NAME ": ");
		text_add(&told, cause);

		if (!options->run_if_unreachable)
			reply.suggestion = next_step;
		tell_json("unreachable", &reply, NULL, false, options->run_if_unreachable ? -1 : EXIT_UNREACHABLE);
	} else {
		complain(options->command[0], ": ", consequence, ": no answer from the daemon at ", options->session_dir,
		         "/" SOCKET_NAME ": ", cause, NULL);
		if (!options->run_if_unreachable)
			complain(next_step, NULL);
	}
	if (!options->run_if_unreachable)
		exit(EXIT_UNREACHABLE);
}

// Ends the process when the answer is no.
static void with_answer(const struct options *options, const struct reply *reply)
{
	bool placed = reply->status == STATUS_GRANTED || reply->status == STATUS_TRIMMED;
	int exit_status = reply->status == STATUS_REFUSED ? EXIT_REFUSED : EXIT_INVALID;

	if (options->json) {
		tell_json(status_name(reply->status), reply, &answer, placed, placed ? -1 : exit_status);
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
}

// The answer's variables and the launcher's own; `own` is where those are kept.
static void fill_environment(char **list, const struct options *options, char *own)
{
	size_t length = strlen(options->session_dir);
	char *feedback = own + sizeof(ENV_SESSION_DIR "=") + length;

	environment_start(list);
	for (char *set = packet_next(&answer, "env", NULL); set; set = packet_next(&answer, "env", set))
		environment_set(list, set);
	for (char *set = packet_next(&answer, "default", NULL); set; set = packet_next(&answer, "default", set))
		environment_default(list, set);
	strcpy(own, ENV_SESSION_DIR "=");
	strcat(own, options->session_dir);
	environment_set(list, own);
	strcpy(feedback, ENV_FEEDBACK "=");
	strcat(feedback, options->session_dir);
	strcat(feedback, "/" FEEDBACK_NAME);
	environment_set(list, feedback);
}

// Becomes the tool; comes back only on failure, with errno set. A frame of its own, because its size is known only now.
static void become(const char *path, const struct options *options)
{
	char *list[environment_room(&answer)];
	char own[2 * strlen(options->session_dir) + sizeof(ENV_SESSION_DIR "=" ENV_FEEDBACK "=/" FEEDBACK_NAME) + 1];

	fill_environment(list, options, own);
	command_execute(path, options->command, list);
}

// What to do where execve(2) ends with `error`; `is_sought`: the command was looked for in PATH.
static const char *remedy(int error, bool is_sought)
{
	switch (error) {
	case ENOENT:
	case ENOTDIR:
		return is_sought ? "write its name as it is found in PATH, or its path; a builtin of a shell needs one: bash -c '...'"
		                 : "name a program that is there, and whose interpreter (its #! line) is there too";
	case EACCES:
	case EPERM:
	case EISDIR:
	case ENOEXEC:
		return "name a program that this user may execute (chmod +x), or its interpreter before it";
	case E2BIG:
		return "say less on its command line and in its environment, for example with a file";
	default:
		return "see whether it starts without agentcg run";
	}
}

// The command cannot be executed, for the reason in errno; in `call`, NULL: none was begun.
static _Noreturn void fail_to_execute(const struct options *options, const char *call)
{
	const char *name = options->command[0];
	bool is_missing = errno == ENOENT || errno == ENOTDIR;
	bool is_sought = is_missing && !strchr(name, '/');
	struct failure failure = {
		.decision = "failed",
		.reason = is_missing ? "command_not_found" : "not_executable",
		.call = call,
		.next_step = remedy(errno, is_sought),
		.exit_status = is_missing ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE,
	};

	fail(&failure, options->json, name, ": ", is_sought ? "command not found" : strerror(errno), NULL);
}

static int run(int argc, char **argv)
{
	static struct options options;
	static char path[MOST_PATH];
	struct reply reply;
	const char *cause;

	options_parse(argc, argv, &options, &request);
	// Looked for before the daemon is asked: a misspelt command should not wait for room.
	if (command_find(options.command[0], path))
		fail_to_execute(&options, NULL);
	cause = ask(&options, &request, &answer, &reply, show_queued);
	if (cause)
		without_answer(&options, cause);
	else
		with_answer(&options, &reply);
	become(path, &options);
	fail_to_execute(&options, cause ? NULL : reply.call);
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
	if (strcmp(subcommand, "act") == 0)
		return act(argc - 2, argv + 2);
	if (argc < 2)
		return say(help_main, STDERR_FILENO, EXIT_INVALID);
	if (strcmp(subcommand, "--help") == 0 || strcmp(subcommand, "-h") == 0 || strcmp(subcommand, "help") == 0)
		return say(help_main, STDOUT_FILENO, 0);
	if (strcmp(subcommand, "--version") == 0)
		return say("agentcg " VERSION "\n", STDOUT_FILENO, 0);
	return python_execute(argc, argv);
}
