// See telling.h.
#include "telling.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
	PAUSE_MS = 100,
	TOOL_FIRST_NS = 3000000, // a program that was linked statically has started by then
};

int telling_open(struct telling *to, int events)
{
	to->events = events;
	pthread_mutex_init(&to->lock, NULL);
	to->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	to->bell = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return to->stop < 0 || to->bell < 0 ? -1 : 0;
}

void telling_close(struct telling *to)
{
	if (to->stop >= 0)
		close(to->stop);
	if (to->bell >= 0)
		close(to->bell);
	pthread_mutex_destroy(&to->lock);
}

int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// One that rings sooner, or has rung and was not heard, is left as it is.
static void ring(struct telling *to, int64_t in_ns)
{
	int64_t at_ns = monotonic_ns() + in_ns;
	struct itimerspec when = {.it_value = {.tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000}};

	pthread_mutex_lock(&to->lock);
	if (!to->rings_at_ns || at_ns < to->rings_at_ns) {
		to->rings_at_ns = at_ns;
		timerfd_settime(to->bell, TFD_TIMER_ABSTIME, &when, NULL);
	}
	pthread_mutex_unlock(&to->lock);
}

void telling_heard(struct telling *to)
{
	static const struct itimerspec never = {0};

	pthread_mutex_lock(&to->lock);
	to->rings_at_ns = 0;
	timerfd_settime(to->bell, 0, &never, NULL);
	pthread_mutex_unlock(&to->lock);
}

bool tell(struct telling *to, const struct door_event *event, const char *packet, enum urgency urgency)
{
	struct iovec parts[] = {
		{.iov_base = (void *)event, .iov_len = sizeof(*event)},
		{.iov_base = (void *)packet, .iov_len = event->length},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = event->length ? 2 : 1};

	for (;;) {
		struct pollfd ready[] = {{.fd = to->events, .events = POLLOUT}, {.fd = to->stop, .events = POLLIN}};
		int patience_ms;

		if (sendmsg(to->events, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
			ring(to, urgency == TOOL_FIRST ? TOOL_FIRST_NS : 0);
			return true;
		}
		if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
			return false;
		patience_ms = errno == ENOBUFS ? PAUSE_MS : -1;
		ring(to, 0);
		poll(ready, 2, patience_ms);
		if (ready[1].revents)
			return false;
	}
}

void tell_plain(struct telling *to, enum door_event_kind kind, uint64_t listener, uint64_t offer, int error)
{
	struct door_event event = {
		.kind = (int32_t)kind, .listener = listener, .offer = offer, .error = error, .connection = -1, .pidfd = -1,
	};

	tell(to, &event, NULL, AT_ONCE);
}

void pause_for_others(const struct telling *to)
{
	struct pollfd stop = {.fd = to->stop, .events = POLLIN};

	poll(&stop, 1, PAUSE_MS);
}
