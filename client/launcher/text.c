// Text for people and programs, without stdio: one buffer, one write.
#include "launcher.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static void append(struct text *text, const char *bytes, size_t length)
{
	size_t room = sizeof(text->bytes) - text->used;

	if (length > room)
		length = room;
	memcpy(text->bytes + text->used, bytes, length);
	text->used += length;
}

void text_add(struct text *text, const char *addition)
{
	append(text, addition, strlen(addition));
}

void text_add_shown(struct text *text, const char *addition)
{
	for (; *addition; addition++) {
		unsigned char byte = (unsigned char)*addition;

		append(text, (byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7f ? "?" : addition, 1);
	}
}

// Length of the well-formed UTF-8 sequence at `at` (RFC 3629, section 4), 0 when there is none.
static size_t utf8_length(const unsigned char *at)
{
	uint32_t least, point;
	size_t length;

	if (at[0] < 0x80)
		return 1;
	if ((at[0] & 0xe0) == 0xc0)
		length = 2, least = 0x80, point = at[0] & 0x1f;
	else if ((at[0] & 0xf0) == 0xe0)
		length = 3, least = 0x800, point = at[0] & 0x0f;
	else if ((at[0] & 0xf8) == 0xf0)
		length = 4, least = 0x10000, point = at[0] & 0x07;
	else
		return 0;
	for (size_t i = 1; i < length; i++) {
		// The terminating NUL is no continuation byte, so this never reads past the end.
		if ((at[i] & 0xc0) != 0x80)
			return 0;
		point = point << 6 | (at[i] & 0x3f);
	}
	if (point < least || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
		return 0;
	return length;
}

void text_add_json(struct text *text, const char *value)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *at = (const unsigned char *)value;

	append(text, "\"", 1);
	while (*at) {
		size_t length = utf8_length(at);

		if (length == 0) {
			text_add(text, "\\ufffd");
			length = 1;
		} else if (*at == '"' || *at == '\\') {
			append(text, "\\", 1);
			append(text, (const char *)at, 1);
		} else if (*at < ' ' || *at == 0x7f) {
			char escape[] = {'\\', 'u', '0', '0', digits[*at >> 4], digits[*at & 15]};

			append(text, escape, sizeof(escape));
		} else {
			append(text, (const char *)at, length);
		}
		at += length;
	}
	append(text, "\"", 1);
}

void text_add_number(struct text *text, int number)
{
	char digits[12];
	size_t at = sizeof(digits);
	unsigned int rest = number < 0 ? 0u - (unsigned int)number : (unsigned int)number;

	do {
		digits[--at] = (char)('0' + rest % 10);
		rest /= 10;
	} while (rest);
	if (number < 0)
		digits[--at] = '-';
	append(text, digits + at, sizeof(digits) - at);
}

void text_write(const struct text *text, int fd)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
	size_t written = 0;

	// Most launches have nothing to say.
	if (text->used == 0)
		return;
	// Nobody reading stderr is no reason to lose the tool; the tool gets the disposition that was.
	sigaction(SIGPIPE, &ignore, &before);

	while (written < text->used) {
		ssize_t n = write(fd, text->bytes + written, text->used - written);

		if (n >= 0) {
			written += (size_t)n;
		} else if (errno == EAGAIN) {
			// A non-blocking terminal or pipe: its reader gets a moment, then the tool goes before the text.
			struct pollfd writable = {.fd = fd, .events = POLLOUT};

			if (poll(&writable, 1, 1000) == 0)
				break;
		} else if (errno != EINTR) {
			break;
		}
	}
	sigaction(SIGPIPE, &before, NULL);
}

void complain(const char *first, ...)
{
	static struct text text;
	va_list parts;

	text.used = 0;
	text_add(&text, "agentcg: ");
	va_start(parts, first);
	for (const char *part = first; part; part = va_arg(parts, const char *))
		text_add_shown(&text, part);
	va_end(parts);
	text_add(&text, "\n");
	text_write(&text, STDERR_FILENO);
}
