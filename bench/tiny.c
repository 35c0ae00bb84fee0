/*
 * The program that the benchmark starts: nothing, as /bin/true, so that what is measured is the start.
 *
 *   tiny        end at once
 *   tiny hold   say so on descriptor 3, then wait until descriptor 4 ends
 */
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char byte = 0;

	if (argc < 2 || strcmp(argv[1], "hold") != 0)
		return 0;
	if (write(3, "!", 1) != 1)
		return 1;
	close(3);
	return read(4, &byte, 1) == 0 ? 0 : 1;
}
