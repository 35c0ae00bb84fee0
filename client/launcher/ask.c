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

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

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
	struct timeval limit = {.tv_sec = options->wait_ms / 1000, .tv_usec = options->wait_ms % 1000 * 1000 + 1};
	struct sockaddr_un address = {0};
	int fd, dir_fd, error, result;

	fd = above_standard_streams(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	error = socket_address(options->session_dir, &address, &dir_fd);
	if (error == 0) {
		do
			result = connect(fd, (struct sockaddr *)&address, sizeof(address));
		while (result < 0 && errno == EINTR);
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

// Receives one packet before `deadline_ms` (-1: never ends). NULL, or the cause.
static const char *receive(int fd, struct packet *answer, int64_t deadline_ms)
{
	for (;;) {
		struct pollfd readable = {.fd = fd, .events = POLLIN};
		int64_t left_ms = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
		ssize_t n;

		if (deadline_ms >= 0 && left_ms < 0)
			left_ms = 0;
		switch (poll(&readable, 1, (int)left_ms)) {
		case 0:
			return "it did not answer in time";
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
			return "it closed the connection without an answer";
		if (errno != EINTR && errno != EAGAIN)
			return strerror(errno);
	}
}

const char *ask(const struct options *options, struct packet *request, struct packet *answer, struct reply *reply,
                void (*on_queued)(const struct options *, const struct reply *))
{
	int64_t deadline_ms = now_ms() + options->wait_ms;
	const char *cause = NULL;
	bool queued = false;
	int fd = connect_to_daemon(options);

	if (fd < 0)
		return errno == EAGAIN ? "it did not accept the connection in time" : strerror(errno);
	while (send(fd, request->bytes, request->used, MSG_NOSIGNAL) < 0)
		if (errno != EINTR) {
			cause = strerror(errno);
			break;
		}
	while (!cause) {
		cause = receive(fd, answer, deadline_ms);
		if (!cause)
			cause = reply_parse(answer, reply);
		if (cause || reply->status != STATUS_QUEUED)
			break;
		// The daemon bounds the wait of a queued request itself, and refuses it then.
		deadline_ms = -1;
		if (!queued)
			on_queued(options, reply);
		queued = true;
	}
	close(fd);
	return cause;
}
