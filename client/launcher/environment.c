// What the tool finds in its environment. The list is made anew, on the caller's stack: on the path of every launch an
// allocator costs more than the whole list.
#include "launcher.h"

#include <string.h>

extern char **environ;

// The length of NAME= in NAME=VALUE.
static size_t name_length(const char *variable)
{
	return (size_t)(strchr(variable, '=') - variable) + 1;
}

static char **find(char **list, const char *variable)
{
	size_t length = name_length(variable);

	while (*list && strncmp(*list, variable, length) != 0)
		list++;
	return list;
}

size_t environment_room(struct packet *answer)
{
	size_t count = ENVIRONMENT_OWN + 1;

	for (char **each = environ; *each; each++)
		count++;
	for (size_t i = 0; i < answer->used; i++)
		count += answer->bytes[i] == '\0';
	return count;
}

void environment_start(char **list)
{
	char **each = environ;

	while ((*list++ = *each++))
		;
}

void environment_set(char **list, char *variable)
{
	char **at = find(list, variable);

	if (!*at)
		at[1] = NULL;
	*at = variable;
}

void environment_default(char **list, char *variable)
{
	if (!*find(list, variable))
		environment_set(list, variable);
}
