// Reads packets from standard input (a length in two bytes, little-endian, then the bytes) and prints for each what the
// launcher's parser makes of it, so that thousands can be tried in one process under the sanitizers.
#include "launcher.h"

#include <stdio.h>

static void print_hex(const char *label, const char *text)
{
	printf(" %s=", label);
	for (; *text; text++)
		printf("%02x", (unsigned char)*text);
}

int main(void)
{
	static struct packet packet;
	struct reply reply;
	unsigned char length[2];

	while (fread(length, 1, 2, stdin) == 2) {
		const char *wrong;

		packet.used = length[0] | (size_t)length[1] << 8;
		if (packet.used > sizeof(packet.bytes) || fread(packet.bytes, 1, packet.used, stdin) != packet.used)
			return 1;
		wrong = reply_parse(&packet, &reply);
		if (wrong) {
			printf("bad %s\n", wrong);
			continue;
		}
		printf("ok %s", status_name(reply.status));
		print_hex("call", reply.call);
		print_hex("message", reply.message);
		print_hex("suggestion", reply.suggestion);
		for (char *value = NULL; (value = packet_next(&packet, "notice", value));)
			print_hex("notice", value);
		for (char *value = NULL; (value = packet_next(&packet, "env", value));)
			print_hex("env", value);
		for (char *value = NULL; (value = packet_next(&packet, "default", value));)
			print_hex("default", value);
		putchar('\n');
	}
	return 0;
}
