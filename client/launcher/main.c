// agentcg: the command that agents and operators type.
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		puts("agentcg " VERSION);
		return 0;
	}
	fputs("agentcg: not built yet: only --version works in this commit\n", stderr);
	return 125;
}
