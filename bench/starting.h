/* Starting a program, also in a cgroup, as cheaply as the kernel allows. What cannot be done ends the caller's program. */
#pragma once

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static pid_t start(char **argv)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execv(argv[0], argv);
		_exit(127);
	}
	if (pid < 0)
		die("vfork");
	return pid;
}

/* The child puts itself into the cgroup before it executes. */
static pid_t start_placed(char **argv, int procs)
{
	pid_t pid = vfork();

	if (pid == 0) {
		if (write(procs, "0", 1) != 1)
			_exit(126);
		execv(argv[0], argv);
		_exit(127);
	}
	if (pid < 0)
		die("vfork");
	return pid;
}

/*
 * clone3(2) with CLONE_VM | CLONE_VFORK and without a stack of its own, which is what vfork is. The system call is made
 * in place: a wrapper's return address would be overwritten by the child, which goes on with the same stack first.
 */
static pid_t start_inside(char **argv, int directory)
{
	struct clone_args args;
	long pid;

	memset(&args, 0, sizeof(args));
	args.flags = CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP;
	args.exit_signal = SIGCHLD;
	args.cgroup = (uint64_t)directory;
#if defined(__x86_64__)
	__asm__ volatile("syscall"
			 : "=a"(pid)
			 : "0"(SYS_clone3), "D"(&args), "S"(sizeof(args))
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3;
	register long x0 __asm__("x0") = (long)&args;
	register long x1 __asm__("x1") = sizeof(args);
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
	pid = x0;
#else
	/* Without CLONE_VM, so that the wrapper's frame is the child's own. */
	args.flags &= ~(uint64_t)CLONE_VM;
	pid = syscall(SYS_clone3, &args, sizeof(args));
#endif
	if (pid == 0) {
		execv(argv[0], argv);
		_exit(127);
	}
	if (pid < 0) {
		errno = (int)-pid;
		die("clone3");
	}
	return (pid_t)pid;
}

static int reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return status;
}
