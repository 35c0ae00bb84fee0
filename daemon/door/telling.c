// See telling.h.
#include "telling.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { PAUSE_MS = 100 };

bool tell(const struct telling *to, const struct door_event *event, const char *packet)
{
	struct iovec parts[] = {
		{.iov_base = (void *)event, .iov_len = sizeof(*event)},
		{.iov_base = (void *)packet, .iov_len = event->length},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = event->length ? 2 : 1};

	for (;;) {
		struct pollfd ready[] = {{.fd = to->events, .events = POLLOUT}, {.fd = to->stop, .events = POLLIN}};

		if (sendmsg(to->events, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return true;
		if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
			return false;
		poll(ready, 2, errno == ENOBUFS ? PAUSE_MS : -1);
		if (ready[1].revents)
			return false;
	}
}

void tell_plain(const struct telling *to, enum door_event_kind kind, uint64_t listener, uint64_t offer, int error)
{
	struct door_event event = {
		.kind = (int32_t)kind, .listener = listener, .offer = offer, .error = error, .connection = -1, .pidfd = -1,
	};

	tell(to, &event, NULL);
}

void pause_for_others(const struct telling *to)
{
	struct pollfd stop = {.fd = to->stop, .events = POLLIN};

	poll(&stop, 1, PAUSE_MS);
}
