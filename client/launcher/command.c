// Finding and executing programs as a shell does: PATH, 127, 126, and scripts without a #! line.
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

// 0 when `path` is a file that this process may execute, else an errno.
static int check_executable(const char *path)
{
	struct stat status;

	if (stat(path, &status) < 0)
		return errno;
	if (S_ISDIR(status.st_mode))
		return EISDIR;
	return access(path, X_OK) < 0 ? errno : 0;
}

static int failure(int error)
{
	errno = error;
	return error == ENOENT || error == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}

int command_find(const char *name, char path[static MOST_PATH])
{
	const char *directory = getenv("PATH"), *end;
	size_t name_length = strlen(name);
	int seen = ENOENT;

	if (name_length == 0)
		return failure(ENOENT);
	if (name_length >= MOST_PATH)
		return failure(ENAMETOOLONG);
	if (strchr(name, '/')) {
		int error = check_executable(name);

		strcpy(path, name);
		return error ? failure(error) : 0;
	}
	if (!directory)
		directory = "/usr/local/bin:/usr/bin:/bin";
	for (;; directory = end + 1) {
		size_t length;
		int error;

		end = strchr(directory, ':');
		length = end ? (size_t)(end - directory) : strlen(directory);
		if (length + 1 + name_length < MOST_PATH) {
			memcpy(path, directory, length);
			// An empty entry of PATH is the working directory (POSIX, 8.3).
			if (length)
				path[length++] = '/';
			strcpy(path + length, name);
			error = check_executable(path);
			if (error == 0)
				return 0;
			if (error == EACCES)
				seen = EACCES;
		}
		if (!end)
			return failure(seen);
	}
}

void command_execute(const char *path, char **argv, char **environment)
{
	char **script;
	size_t count = 0;

	execve(path, argv, environment);
	if (errno != ENOEXEC)
		return;
	// A script without a #! line: POSIX has execvp and every shell give it to sh.
	while (argv[count])
		count++;
	script = calloc(count + 2, sizeof(*script));
	if (!script)
		return;
	script[0] = "/bin/sh";
	script[1] = (char *)path;
	memcpy(script + 2, argv + 1, count * sizeof(*script));
	execve(script[0], script, environment);
	free(script);
	errno = ENOEXEC;
}

// Tells apart a Python without the package from a package with a fault.
static const char bootstrap[] =
	"import importlib.util, sys\n"
	"if importlib.util.find_spec('agentcgroup') is None:\n"
	"    print('agentcg: this is the standalone launcher, which knows only run:', sys.executable, 'has no agentcgroup"
	" package.\\nagentcg: install it for the other commands: pip install agentcgroup', file=sys.stderr)\n"
	"    sys.exit(125)\n"
	"from agentcgroup.client.cli.__main__ import main\n"
	"sys.exit(main())\n";

int python_execute(int argc, char **argv)
{
	static char python[MOST_PATH];
	ssize_t length = readlink("/proc/self/exe", python, sizeof(python) - sizeof("python3"));
	char **arguments, *slash;

	python[length > 0 ? length : 0] = '\0';
	slash = strrchr(python, '/');
	if (slash)
		strcpy(slash + 1, "python3");
	if (slash && check_executable(python) != 0 && faccessat(AT_FDCWD, python, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
		// Not a standalone launcher, but an installation that this user cannot use.
		complain("cannot execute ", python, ": ", strerror(errno),
		         "\nagentcg: install agentcgroup where every user may read it, with a Python that every user may execute",
		         NULL);
		return EXIT_NOT_EXECUTABLE;
	}
	if ((!slash || check_executable(python) != 0) && command_find("python3", python) != 0) {
		complain("this is the standalone launcher, which knows only run: there is no Python for '", argv[1],
		         "'\nagentcg: install Python 3.11 and the package: pip install agentcgroup", NULL);
		return EXIT_INTERNAL;
	}
	arguments = calloc((size_t)argc + 4, sizeof(*arguments));
	if (!arguments) {
		complain("out of memory", NULL);
		return EXIT_INTERNAL;
	}
	arguments[0] = python;
	// -P: the working directory is no place to import from.
	arguments[1] = "-P";
	arguments[2] = "-c";
	arguments[3] = (char *)bootstrap;
	memcpy(arguments + 4, argv + 1, (size_t)(argc - 1) * sizeof(*arguments));
	execve(python, arguments, environ);
	free(arguments);
	complain("cannot execute ", python, ": ", strerror(errno), NULL);
	return EXIT_INTERNAL;
}
