// What the launcher's parts say to each other. The wire protocol is described in proto/launch.py.
#ifndef AGENTCG_LAUNCHER_H
#define AGENTCG_LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>

// Exit statuses of the launcher itself; otherwise the status is the tool's own. `agentcg run --help` lists them.
enum {
	EXIT_INVALID = 2,
	EXIT_REFUSED = 120,
	EXIT_UNREACHABLE = 121,
	EXIT_INTERNAL = 125,
	EXIT_NOT_EXECUTABLE = 126,
	EXIT_NOT_FOUND = 127,
};

#define MAGIC "agentcgroup-launch/1"
#define SOCKET_NAME "launch.sock"
#define DEFAULT_SESSION_DIR "/run/agentcgroup/session"
#define ENV_SESSION_DIR "AGENTCGROUP_SESSION_DIR"
#define ENV_FEEDBACK "AGENTCGROUP_FEEDBACK"
#define FEEDBACK_NAME "feedback.json"
#define ENV_IF_UNREACHABLE "AGENTCGROUP_IF_UNREACHABLE"
#define ENV_ANSWER_TIMEOUT "AGENTCGROUP_ANSWER_TIMEOUT"

enum {
	MOST_BYTES = 16 * 1024, // of one packet
	MOST_PATH = 4096,
};

// ---- message.c: packets of the protocol; no I/O ----

struct packet {
	size_t used;
	char bytes[MOST_BYTES + 1]; // one more, so that a packet that is too long shows
};

enum status { STATUS_GRANTED, STATUS_TRIMMED, STATUS_QUEUED, STATUS_REFUSED, STATUS_INVALID };

// Points into the packet it was read from. Texts are never NULL.
struct reply {
	enum status status;
	const char *call;
	const char *message;
	const char *suggestion;
	const char *reason;
};

// A packet that holds the protocol's name and `op=begin`.
void packet_start(struct packet *packet);
// Adds `key=value`. False, and nothing added, when it does not fit.
bool packet_add(struct packet *packet, const char *key, const char *value);
// Reads the reply in `packet`. Returns NULL, or what is wrong with it.
const char *reply_parse(struct packet *packet, struct reply *reply);
// The value of the next record named `key` behind `after` (NULL: the first). NULL: no more. Only for a packet that
// reply_parse has taken.
char *packet_next(struct packet *packet, const char *key, char *after);
// The protocol's word for a status.
const char *status_name(enum status status);

// ---- tell.c: what `agentcg run` says of a request ----

// One line for programs (--json) on stderr. `notices`: the packet that has them, NULL: none. `exit_status` is -1 when the
// tool is executed.
void tell_json(const char *decision, const struct reply *reply, struct packet *notices, bool placed, int exit_status);

struct failure {
	const char *decision;
	const char *reason; // a word for programs
	const char *call;   // that this process is in; NULL: none
	const char *next_step;
	int exit_status;
};

// Says what is wrong, the texts up to NULL, and ends the process.
_Noreturn void fail(const struct failure *failure, bool json, const char *first, ...) __attribute__((sentinel));

// ---- options.c: the command line of `agentcg run` ----

struct options {
	bool run_if_unreachable;
	int answer_timeout_ms;
	bool json;
	bool quiet;
	char **command; // NULL-terminated, at least one
	char session_dir[MOST_PATH]; // absolute
};

// Reads options and environment into `options`, and into `request` what the daemon is to know. Ends the process on a
// wrong command line (EXIT_INVALID) and on --help.
void options_parse(int argc, char **argv, struct options *options, struct packet *request);

// ---- ask.c: the conversation ----

// Sends `request`, waits for the answer (NULL then, and `reply` is filled from `answer`). Otherwise returns the cause
// why there is none, for people. `on_queued` is called with the daemon's word on where the request stands, when it waits
// longer than a moment (on a terminal at once), and whenever that changes.
const char *ask(const struct options *options, struct packet *request, struct packet *answer, struct reply *reply,
                void (*on_queued)(const struct options *, const struct reply *));

// ---- environment.c: what the tool finds ----

// Variables that the launcher itself sets.
enum { ENVIRONMENT_OWN = 2 };
// How many pointers a list needs that holds this process's environment, all that `answer` may add, and the launcher's own.
size_t environment_room(struct packet *answer);
// Fills `list` with this process's environment.
void environment_start(char **list);
// Sets a NAME=VALUE, which stays the caller's, whatever was there before.
void environment_set(char **list, char *variable);
// Sets it unless there is one of that name.
void environment_default(char **list, char *variable);

// ---- command.c: finding and executing programs ----

// Finds `name` as a shell does. Returns 0 and fills `path`, or EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE and errno.
int command_find(const char *name, char path[static MOST_PATH]);
// Executes `path`; comes back only on failure, with errno set.
void command_execute(const char *path, char **argv, char **environment);
// Executes the Python command line for every subcommand but `run`. Returns an exit status when it cannot.
int python_execute(int argc, char **argv);

// ---- text.c: what people and programs read ----

struct text {
	size_t used;
	char bytes[8 * MOST_BYTES];
};

// Appends; what does not fit is cut off.
void text_add(struct text *text, const char *addition);
// Appends `addition` as one line or more for people: control characters, which come from others, become '?'.
void text_add_shown(struct text *text, const char *addition);
// Appends a JSON string; bytes that are no UTF-8 become U+FFFD.
void text_add_json(struct text *text, const char *value);
void text_add_number(struct text *text, int number);
// Writes it in one go, so that lines of several launchers do not mix. Errors of a closed stderr are of no consequence.
void text_write(const struct text *text, int fd);
// "agentcg: " and the texts up to NULL on stderr, as one line.
void complain(const char *first, ...) __attribute__((sentinel));

// ---- act.c: the recorded agent of `agentcg replay` ----

int act(int argc, char **argv);

extern const char help_main[];
extern const char help_run[];

#endif
