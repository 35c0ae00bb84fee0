// Packets of the launcher's protocol, version 1: NUL-terminated records, the first the protocol's name, every other
// key=value. The Python side is proto/launch.py; tests hold the two against each other.
#include "launcher.h"

#include <string.h>

static const char *const status_names[] = {
	[STATUS_GRANTED] = "granted", [STATUS_TRIMMED] = "trimmed", [STATUS_QUEUED] = "queued",
	[STATUS_REFUSED] = "refused", [STATUS_INVALID] = "invalid",
};

const char *status_name(enum status status)
{
	return status_names[status];
}

void packet_start(struct packet *packet)
{
	memcpy(packet->bytes, MAGIC, sizeof(MAGIC));
	packet->used = sizeof(MAGIC);
	packet_add(packet, "op", "begin");
}

bool packet_add(struct packet *packet, const char *key, const char *value)
{
	size_t key_length = strlen(key), value_length = strlen(value);
	size_t length = key_length + 1 + value_length + 1;
	char *at = packet->bytes + packet->used;

	if (value_length >= MOST_BYTES || length > MOST_BYTES - packet->used)
		return false;
	memcpy(at, key, key_length);
	at[key_length] = '=';
	memcpy(at + key_length + 1, value, value_length + 1);
	packet->used += length;
	return true;
}

static char *record_after(struct packet *packet, char *record)
{
	char *next = record + strlen(record) + 1;

	return next < packet->bytes + packet->used ? next : NULL;
}

char *packet_next(struct packet *packet, const char *key, char *after)
{
	size_t length = strlen(key);
	char *record = after ? after : packet->bytes;

	while ((record = record_after(packet, record)))
		if (strncmp(record, key, length) == 0 && record[length] == '=')
			return record + length + 1;
	return NULL;
}

static const char *last(struct packet *packet, const char *key)
{
	const char *found = NULL;

	for (char *value = packet_next(packet, key, NULL); value; value = packet_next(packet, key, value))
		found = value;
	return found;
}

static const char *or_empty(const char *text)
{
	return text ? text : "";
}

const char *reply_parse(struct packet *packet, struct reply *reply)
{
	static const char *const variables[] = {"env", "default"};
	const char *status;
	size_t i;

	if (packet->used > MOST_BYTES)
		return "its answer is longer than the protocol allows";
	if (packet->used == 0 || packet->bytes[packet->used - 1] != '\0')
		return "its answer is cut off";
	if (strcmp(packet->bytes, MAGIC) != 0)
		return "it does not speak " MAGIC ": launcher and daemon are of different releases";
	for (char *record = record_after(packet, packet->bytes); record; record = record_after(packet, record))
		if (!strchr(record, '='))
			return "its answer has a record without '='";
	for (i = 0; i < sizeof(variables) / sizeof(*variables); i++)
		for (char *set = packet_next(packet, variables[i], NULL); set; set = packet_next(packet, variables[i], set))
			// putenv() of a text without '=' would take the variable away.
			if (!strchr(set, '=') || *set == '=')
				return "its answer sets a variable without a name";
	status = last(packet, "status");
	if (!status)
		return "its answer has no status";
	for (i = 0; i < sizeof(status_names) / sizeof(*status_names); i++)
		if (strcmp(status, status_names[i]) == 0)
			break;
	if (i == sizeof(status_names) / sizeof(*status_names))
		return "its answer has a status that this launcher does not know";
	*reply = (struct reply){
		.status = (enum status)i,
		.call = or_empty(last(packet, "call")),
		.message = or_empty(last(packet, "message")),
		.suggestion = or_empty(last(packet, "suggestion")),
		.reason = or_empty(last(packet, "reason")),
	};
	return NULL;
}
