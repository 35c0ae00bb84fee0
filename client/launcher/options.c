// The command line of `agentcg run`. Quantities are not read here: the daemon does, so that there is one syntax.
#include "launcher.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { INTENT, LABEL, SESSION_DIR, IF_UNREACHABLE, ANSWER_TIMEOUT, JSON, QUIET, HELP };

static const struct option {
	const char *name; // without the dashes; of an INTENT also the field of the request
	enum kind kind;
} known[] = {
	{"memory", INTENT},  {"memory-max", INTENT}, {"cpu", INTENT},       {"weight", INTENT},
	{"class", INTENT},   {"pids", INTENT},       {"timeout", INTENT},   {"expect", INTENT},
	{"on-exceed", INTENT}, {"throttle-limit", INTENT}, {"wait", INTENT}, {"ticket", INTENT}, {"label", LABEL},
	{"session-dir", SESSION_DIR}, {"if-unreachable", IF_UNREACHABLE}, {"answer-timeout", ANSWER_TIMEOUT},
	{"json", JSON}, {"quiet", QUIET}, {"help", HELP},
};

enum { KNOWN = sizeof(known) / sizeof(*known) };

static const struct failure invalid = {
	.decision = "invalid",
	.reason = "invalid",
	.next_step = "see agentcg run --help",
	.exit_status = EXIT_INVALID,
};

// Wherever `options` is what is being filled.
#define INVALID(...) fail(&invalid, options->json, __VA_ARGS__, NULL)

// The option that `word`, --NAME or --NAME=VALUE, means; NULL: none.
static const struct option *option_in(const char *word)
{
	size_t length;

	if (strncmp(word, "--", 2) != 0)
		return NULL;
	length = strcspn(word += 2, "=");
	for (size_t i = 0; i < KNOWN; i++)
		if (strlen(known[i].name) == length && memcmp(known[i].name, word, length) == 0)
			return &known[i];
	return NULL;
}

static bool takes_value(enum kind kind)
{
	return kind != JSON && kind != QUIET && kind != HELP;
}

// Milliseconds in `text`: a whole number of seconds, or with ms, s or m. -1 when it is none.
static int parse_timeout(const char *text)
{
	static const struct {
		const char *unit;
		int ms;
	} units[] = {{"", 1000}, {"ms", 1}, {"s", 1000}, {"m", 60000}};
	const char *at = text;
	int number = 0;

	for (; *at >= '0' && *at <= '9'; at++)
		if ((number = number * 10 + (*at - '0')) > 30000)
			return -1;
	if (at == text)
		return -1;
	for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
		if (strcmp(at, units[i].unit) == 0)
			return number * units[i].ms;
	return -1;
}

static void set_answer_timeout(struct options *options, const char *text, const char *origin)
{
	options->answer_timeout_ms = parse_timeout(text);
	if (options->answer_timeout_ms < 0)
		INVALID(origin, ": '", text, "' is no time: write seconds or a unit, for example 10, 500ms or 1m");
}

static void set_if_unreachable(struct options *options, const char *text, const char *origin)
{
	options->run_if_unreachable = strcmp(text, "run") == 0;
	if (!options->run_if_unreachable && strcmp(text, "refuse") != 0)
		INVALID(origin, ": '", text, "' is neither run nor refuse");
}

// The tool may change its directory and still call the launcher, so a relative directory is made absolute.
static void set_session_dir(struct options *options, const char *text, const char *origin)
{
	size_t used = 0;

	if (*text == '\0')
		INVALID(origin, ": the directory's name is empty");
	if (*text != '/') {
		if (!getcwd(options->session_dir, MOST_PATH - 1))
			INVALID(origin, ": '", text, "' is relative, and the working directory is gone");
		used = strlen(options->session_dir);
		options->session_dir[used++] = '/';
	}
	if (used + strlen(text) + sizeof("/" SOCKET_NAME) > MOST_PATH)
		INVALID(origin, ": the directory's name is too long");
	strcpy(options->session_dir + used, text);
}

static void set_from_environment(struct options *options)
{
	const char *dir = getenv(ENV_SESSION_DIR), *policy = getenv(ENV_IF_UNREACHABLE), *timeout = getenv(ENV_ANSWER_TIMEOUT);

	strcpy(options->session_dir, DEFAULT_SESSION_DIR);
	options->answer_timeout_ms = 10000;
	if (dir && *dir)
		set_session_dir(options, dir, ENV_SESSION_DIR);
	if (policy && *policy)
		set_if_unreachable(options, policy, ENV_IF_UNREACHABLE);
	if (timeout && *timeout)
		set_answer_timeout(options, timeout, ENV_ANSWER_TIMEOUT);
}

static void apply(struct options *options, struct packet *request, const struct option *option, const char *value)
{
	switch (option->kind) {
	case INTENT:
	case LABEL:
		if (!packet_add(request, option->name, value))
			INVALID("--", option->name, ": options and labels together are longer than 16 KiB");
		break;
	case SESSION_DIR:
		set_session_dir(options, value, "--session-dir");
		break;
	case IF_UNREACHABLE:
		set_if_unreachable(options, value, "--if-unreachable");
		break;
	case ANSWER_TIMEOUT:
		set_answer_timeout(options, value, "--answer-timeout");
		break;
	case JSON: // see wants_json
		break;
	case QUIET:
		options->quiet = true;
		break;
	case HELP: {
		static struct text text;

		text_add(&text, help_run);
		text_write(&text, STDOUT_FILENO);
		exit(0);
	}
	}
}

// Whether the words before the command say --json: what is wrong with those before it is told in JSON too.
static bool wants_json(int argc, char **argv)
{
	for (int i = 0; i < argc && argv[i][0] == '-' && strcmp(argv[i], "--") != 0; i++) {
		const struct option *option = option_in(argv[i]);

		if (option && option->kind == JSON)
			return true;
		// The next word is a value, also of what is misspelt.
		if (!strchr(argv[i], '=') && (option ? takes_value(option->kind) : i + 1 < argc && argv[i + 1][0] != '-'))
			i++;
	}
	return false;
}

void options_parse(int argc, char **argv, struct options *options, struct packet *request)
{
	bool seen[KNOWN] = {false};
	int i;

	options->json = wants_json(argc, argv);
	set_from_environment(options);
	packet_start(request);
	for (i = 0; i < argc; i++) {
		const char *name = argv[i], *value = "", *equals;
		const struct option *option;

		if (strcmp(name, "--") == 0) {
			i++;
			break;
		}
		if (strcmp(name, "-h") == 0)
			name = "--help";
		if (name[0] != '-')
			break; // the command, without a -- before it
		equals = strchr(name, '=');
		option = option_in(name);
		if (!option)
			INVALID("unknown option ", name);
		if (option->kind != LABEL && seen[option - known])
			INVALID("--", option->name, " is given twice");
		seen[option - known] = true;
		if (!takes_value(option->kind)) {
			if (equals)
				INVALID("--", option->name, " takes no value");
		} else if (equals) {
			value = equals + 1;
		} else if (i + 1 < argc) {
			value = argv[++i];
		} else {
			INVALID("--", option->name, " needs a value");
		}
		apply(options, request, option, value);
	}
	if (i >= argc)
		INVALID("no command: write it behind --, for example agentcg run --memory 2G -- pytest -q");
	options->command = argv + i;
	// The daemon keeps the command line for people; what does not fit is left out.
	for (; i < argc && packet_add(request, "arg", argv[i]); i++)
		;
}
