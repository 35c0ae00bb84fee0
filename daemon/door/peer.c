// See peer.h.
#include "peer.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 // kernel 6.5
#endif

// include/uapi/linux/pidfd.h, struct pidfd_info as of VER0 (kernel 6.13).
struct pidfd_info {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t ids[11];
	int32_t exit_code;
};
#define PIDFD_GET_INFO _IOWR(0xFF, 11, struct pidfd_info)
#define PIDFD_INFO_CGROUPID (UINT64_C(1) << 2)

pid_t peer_of(int connection, int *pidfd)
{
	struct ucred peer;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){sizeof(peer)}) < 0 || peer.pid <= 1)
		return 0;
	if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, pidfd, &(socklen_t){sizeof(*pidfd)}) < 0)
		return 0;
	return peer.pid;
}

// Whether the process of `pidfd` has not ended: then its pid is still its own.
static bool is_alive(int pidfd)
{
	struct pollfd ended = {.fd = pidfd, .events = POLLIN};

	return poll(&ended, 1, 0) == 0;
}

// Whether /proc/PID/cgroup names `path` in cgroup v2. Before kernel 6.13, which tells by pidfd.
static bool lives_at(pid_t pid, int pidfd, const char *path)
{
	char name[32], text[MOST_LEAF_PATH + 512];
	size_t length = strlen(path), used = 0;
	ssize_t n;
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/cgroup", pid);
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	while (used < sizeof(text) - 1 && (n = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)n;
	close(fd);
	text[used] = '\0';
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, "0::", 3) == 0)
			return strncmp(line + 3, path, length) == 0 && line[3 + length] == '\n' && is_alive(pidfd);
	}
	return false;
}

bool lives_in(const struct leaf *leaf, pid_t pid, int pidfd)
{
	struct pidfd_info info = {.mask = PIDFD_INFO_CGROUPID};

	if (ioctl(pidfd, PIDFD_GET_INFO, &info) == 0 && info.mask & PIDFD_INFO_CGROUPID)
		return info.cgroupid == leaf->cgroup_id && is_alive(pidfd);
	return lives_at(pid, pidfd, leaf->path);
}
