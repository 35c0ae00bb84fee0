// The conversation with the daemon over its SOCK_SEQPACKET socket, unix(7). Identity is the kernel's word about this
// process (SO_PEERCRED), so the process that asks is the one that executes the tool.
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// A wait shorter than this is not told, except on a terminal.
enum { QUIET_WAIT_MS = 2000 };

// A daemon that is restarted comes back to its sockets. So long a socket that nobody listens at is tried again, where the
// answer may take as long; and so often a place in the queue that is lost with the daemon is asked for anew.
enum { RESTART_MS = 5000, RESTART_PAUSE_MS = 50, MOST_RESTARTS = 3 };

static const char timed_out[] = "it did not answer in time";
static const char hung_up[] = "it closed the connection without an answer";

// With standard streams closed the socket could become stderr, and complaints would go to the daemon.
static int above_standard_streams(int fd)
{
	int higher;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	close(fd);
	return higher;
}

// sun_path holds 107 bytes; a longer name is reached through a descriptor of its directory. 0 or an errno.
static int socket_address(const char *dir, struct sockaddr_un *address, int *dir_fd)
{
	char *path = address->sun_path;
	char digits[12], *at = digits + sizeof(digits);
	int fd;

	*dir_fd = -1;
	address->sun_family = AF_UNIX;
	if (strlen(dir) + sizeof("/" SOCKET_NAME) <= sizeof(address->sun_path)) {
		strcpy(path, dir);
	} else {
		*dir_fd = fd = above_standard_streams(open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
		if (fd < 0)
			return errno;
		*--at = '\0';
		do
			*--at = (char)('0' + fd % 10);
		while (fd /= 10);
		strcpy(path, "/proc/self/fd/");
		strcat(path, at);
	}
	strcat(path, "/" SOCKET_NAME);
	return 0;
}

// A connected socket, or -1 and errno. A daemon whose backlog is full is waited for as long as for an answer.
static int connect_to_daemon(const struct options *options)
{
	struct timeval limit = {.tv_sec = options->answer_timeout_ms / 1000, .tv_usec = options->answer_timeout_ms % 1000 * 1000 + 1};
	struct sockaddr_un address = {0};
	int fd, dir_fd, error, result;

	fd = above_standard_streams(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	if (fd < 0)
		return -1;
	error = socket_address(options->session_dir, &address, &dir_fd);
	if (error == 0) {
		result = connect(fd, (struct sockaddr *)&address, sizeof(address));
		if (result < 0 && errno == EAGAIN) {
			setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
			fcntl(fd, F_SETFL, 0);
			do
				result = connect(fd, (struct sockaddr *)&address, sizeof(address));
			while (result < 0 && errno == EINTR);
		}
		error = result < 0 ? errno : 0;
	}
	if (dir_fd >= 0)
		close(dir_fd);
	if (error) {
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

// Receives one packet within `wait_ms` (-1: for ever). NULL, or the cause. No clock is read: no signal is handled here, and
// the kernel counts on when this process was stopped.
static const char *receive(int fd, struct packet *answer, int wait_ms)
{
	for (;;) {
		struct pollfd readable = {.fd = fd, .events = POLLIN};
		ssize_t n;

		switch (poll(&readable, 1, wait_ms)) {
		case 0:
			return timed_out;
		case -1:
			if (errno == EINTR)
				continue;
			return strerror(errno);
		}
		n = recv(fd, answer->bytes, sizeof(answer->bytes), MSG_DONTWAIT);
		if (n > 0) {
			answer->used = (size_t)n;
			return NULL;
		}
		if (n == 0)
			return hung_up;
		if (errno != EINTR && errno != EAGAIN)
			return strerror(errno);
	}
}

// Where a queued request stands, told to people at most once for each word of the daemon's. A wait that is over in a moment
// is not worth a line, except to somebody who looks at a terminal. Only who waits here reads a clock.
static struct queue_news {
	bool queued;
	bool untold;
	int64_t tell_at_ms;
	struct packet packet;
	struct reply reply;
} news;

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void news_came(const struct packet *answer)
{
	if (!news.queued)
		news.tell_at_ms = isatty(STDERR_FILENO) ? 0 : now_ms() + QUIET_WAIT_MS;
	news.queued = true;
	news.untold = true;
	news.packet = *answer;
	reply_parse(&news.packet, &news.reply);
}

// Tells what is to be told; how long the next word may take until there is something to tell, in ms, or -1.
static int tell_news(const struct options *options, void (*on_queued)(const struct options *, const struct reply *))
{
	int64_t left_ms = news.tell_at_ms - now_ms();

	if (!news.untold)
		return -1;
	if (left_ms > 0)
		return (int)left_ms;
	on_queued(options, &news.reply);
	news.untold = false;
	return -1;
}

// As connect_to_daemon, through a restart.
static int connect_patiently(const struct options *options)
{
	int patience_ms = options->answer_timeout_ms < RESTART_MS ? options->answer_timeout_ms : RESTART_MS;
	int64_t until_ms = 0;

	for (;;) {
		int fd = connect_to_daemon(options);

		if (fd >= 0 || errno != ECONNREFUSED)
			return fd;
		if (!until_ms)
			until_ms = now_ms() + patience_ms;
		else if (now_ms() >= until_ms)
			return -1;
		poll(NULL, 0, RESTART_PAUSE_MS);
	}
}

static const char *ask_once(const struct options *options, struct packet *request, struct packet *answer,
                            struct reply *reply, void (*on_queued)(const struct options *, const struct reply *))
{
	int wait_ms = options->answer_timeout_ms;
	const char *cause = NULL;
	int fd = connect_patiently(options);

	if (fd < 0 && errno == EACCES)
		return "this user may not use it: a session is for the user it was made for";
	if (fd < 0)
		return errno == EAGAIN ? "it did not accept the connection in time" : strerror(errno);
	while (send(fd, request->bytes, request->used, MSG_NOSIGNAL) < 0) {
		struct pollfd writable = {.fd = fd, .events = POLLOUT};

		if (errno == EINTR || (errno == EAGAIN && poll(&writable, 1, wait_ms) > 0))
			continue;
		cause = strerror(errno);
		break;
	}
	while (!cause) {
		// The daemon bounds the wait of a queued request itself, and refuses it then.
		if (news.queued)
			wait_ms = tell_news(options, on_queued);
		cause = receive(fd, answer, wait_ms);
		if (cause == timed_out && news.queued) {
			cause = NULL;
			continue;
		}
		if (!cause)
			cause = reply_parse(answer, reply);
		if (cause || reply->status != STATUS_QUEUED)
			break;
		news_came(answer);
	}
	close(fd);
	return cause;
}

const char *ask(const struct options *options, struct packet *request, struct packet *answer, struct reply *reply,
                void (*on_queued)(const struct options *, const struct reply *))
{
	const char *cause = ask_once(options, request, answer, reply, on_queued);

	// Who was queued runs nowhere yet, so asking again starts nothing twice. Any other request may have been granted.
	for (int restarts = 0; cause == hung_up && news.queued && restarts < MOST_RESTARTS; restarts++) {
		news.queued = false;
		cause = ask_once(options, request, answer, reply, on_queued);
	}
	return cause;
}
