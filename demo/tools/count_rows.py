"""Counts the rows of a file with worker processes.

    python count_rows.py FILE --workers N

With --workers 0 it has the fault it is here for: it starts another worker for every block it reads and begins again at the
file's start, so it never stops starting them, and no worker ends before it is told to.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator

BLOCK_BYTES = 1 << 20
# Where no limit stops the fault, this does: far above any limit that is tried, far below what hurts a host.
MOST_WORKERS = 400


def blocks(path: str) -> Iterator[tuple[int, int]]:
    """Offset and length of every block of the file."""
    size = os.path.getsize(path)
    for offset in range(0, size, BLOCK_BYTES):
        yield offset, min(BLOCK_BYTES, size - offset)


def count(path: str, offset: int, length: int) -> int:
    """Line ends in one block."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length).count(b"\n")


def count_with(path: str, workers: int) -> int:
    """Counts with `workers` processes, each on its own share of the blocks."""
    ends = []
    for number in range(workers):
        mine, theirs = os.pipe()
        if os.fork() == 0:
            total = sum(
                count(path, *block) for index, block in enumerate(blocks(path)) if index % workers == number
            )
            os.write(theirs, str(total).encode())
            os._exit(0)
        os.close(theirs)
        ends.append(mine)
    totals = [int(os.read(end, 64)) for end in ends]
    for _ in ends:
        os.wait()
    return sum(totals)


def fork_without_end(path: str) -> None:
    """The fault."""
    started = 0
    while started < MOST_WORKERS:
        for _ in blocks(path):
            if os.fork() == 0:
                signal.pause()
            started += 1
    sys.exit(f"count_rows: nothing stopped me at {started} workers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count the rows of a file.")
    parser.add_argument("file")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.workers:
        print(count_with(arguments.file, arguments.workers) - 1, "rows")
    else:
        try:
            fork_without_end(arguments.file)
        except BlockingIOError as error:
            sys.exit(f"count_rows: cannot start another worker: {error}")
