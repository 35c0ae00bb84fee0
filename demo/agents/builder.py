"""The builder, of high priority: changes, builds and checks the C library lz4. What others do must not hurt it."""

from pathlib import Path
from typing import Final

from demo.harness import Harness, Tool
from demo.story import BUILDER_MOST_MEMORY, Point, StepName

MAKEFILE: Final = """\
CFLAGS ?= -O0 -g
OBJECTS := lz4.o lz4hc.o lz4frame.o xxhash.o

roundtrip: roundtrip.c liblz4.a
	$(CC) $(CFLAGS) -Ilz4libs -o $@ roundtrip.c liblz4.a

liblz4.a: $(OBJECTS)
	$(AR) rcs $@ $^

%.o: lz4libs/%.c
	$(CC) $(CFLAGS) -Ilz4libs -c -o $@ $<

release/%.o: lz4libs/%.c
	mkdir -p release
	$(CC) -O1 -Ilz4libs -c -o $@ $<
"""

ROUNDTRIP: Final = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lz4.h"

/* Compresses FILE in memory with the given acceleration, decompresses it and compares: roundtrip FILE ACCELERATION */
int main(int argc, char **argv)
{
	FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
	if (!file || fseek(file, 0, SEEK_END) != 0)
		return 2;
	long size = ftell(file);
	rewind(file);
	int most = LZ4_compressBound((int)size);
	char *plain = malloc(size), *packed = malloc(most), *again = malloc(size);
	if (!plain || !packed || !again || fread(plain, 1, size, file) != (size_t)size)
		return 2;
	memset(packed, 0, most);
	int length = LZ4_compress_fast(plain, packed, (int)size, most, atoi(argv[2]));
	if (length <= 0 || LZ4_decompress_safe(packed, again, length, (int)size) != size || memcmp(plain, again, size) != 0)
		return 1;
	printf("acceleration %s: %ld bytes become %d and come back whole\n", argv[2], size, length);
	return 0;
}
"""

ACCELERATIONS: Final = ("8", "32")


def script(harness: Harness) -> None:
    """Clone, look, build, check; then let a sub-agent review, commit, pack, and build again while the others burst."""
    library = harness.site.workspace / "lz4"
    build(harness, library)
    harness.meeting.reach(Point.BUILDER_CHECKED)
    hand_in(harness, library)


def build(harness: Harness, library: Path) -> None:
    """Up to the check, which is the builder's own burst of memory."""
    harness.launch(Tool(
        StepName.CLONE_LIBRARY, "clone the library",
        ["git", "clone", "--quiet", str(harness.site.input / "lz4.bundle"), "lz4"],
        {"memory": "32M", "memory-max": "128M", "class": "interactive", "timeout": "60s"}, harness.site.workspace,
    ))  # fmt: skip
    harness.launch(Tool(
        StepName.COMPARE, "compare two releases", ["git", "diff", "--stat", "v4.0.2", "v4.4.5"],
        {"memory": "32M", "memory-max": "128M", "class": "interactive"}, library,
    ))  # fmt: skip
    write_change(library)
    harness.launch(Tool(
        StepName.BUILD, "build it, two jobs", ["make", "-j2", "roundtrip"],
        {"memory": BUILDER_MOST_MEMORY, "memory-max": "256M", "class": "batch", "pids": "64", "timeout": "3m"}, library,
    ))  # fmt: skip
    # Two at once, each with the file, its compressed form and the result in memory.
    harness.launch(Tool(
        StepName.CHECK, "check it on a large file, two at once",
        ["sh", "-c", f"printf '%s\\n' {' '.join(ACCELERATIONS)} | xargs -P 2 -n 1 ./roundtrip \"$1\"", "sh",
         str(harness.site.input / "measurements.csv")],
        {"memory": BUILDER_MOST_MEMORY, "memory-max": "384M", "class": "batch", "timeout": "3m"}, library,
    ))  # fmt: skip


def hand_in(harness: Harness, library: Path) -> None:
    """By nested calls, by the SDK's context manager, by pid, and by the launcher again."""
    review = (
        '"$0" run --memory 32M --label step=review-log -- git log --oneline -3 && '
        '"$0" run --memory 32M --label step=review-grep -- git grep --count LZ4_compress_fast -- "*.c"'
    )
    harness.launch(Tool(
        StepName.REVIEW, "a sub-agent reviews: two nested calls", ["sh", "-c", review, harness.site.launcher],
        {"memory": "96M", "memory-max": "128M", "pids": "32"}, library,
    ))  # fmt: skip
    harness.run_in_scope(Tool(
        StepName.COMMIT, "commit the change",
        ["sh", "-c", "git add Makefile roundtrip.c && git commit --quiet -m 'Check round trips' && git log -1 --stat"],
        {"memory": "32M", "memory-max": "128M", "class": "interactive"}, library,
    ))  # fmt: skip
    harness.place(Tool(
        StepName.COLLECT, "pack the repository", ["git", "gc", "--quiet"],
        {"memory": "64M", "memory-max": "128M", "class": "batch", "pids": "32"}, library,
    ))  # fmt: skip
    # About now the analyst's burst begins, which must not be felt here.
    harness.launch(Tool(
        StepName.RELEASE, "build it optimised", ["make", "release/lz4.o"],
        {"memory": BUILDER_MOST_MEMORY, "memory-max": "256M", "class": "batch", "pids": "64", "timeout": "3m"}, library,
    ))  # fmt: skip


def write_change(library: Path) -> None:
    """The agent's own edit: a Makefile and a program that checks round trips."""
    (library / "Makefile").write_text(MAKEFILE, "ascii")
    (library / "roundtrip.c").write_text(ROUNDTRIP.lstrip(), "ascii")
