"""Keeping the history within its age and size: the oldest entries go first, a few at a time.

A deletion of everything at once would hold the file for seconds and grow the write-ahead log by as much
as it deletes.
"""

import sqlite3
from typing import Final

_BATCH: Final = 200


def delete_older_than(database: sqlite3.Connection, before_ns: int) -> int:
    """Delete entries of calls that ended before `before_ns` (Unix nanoseconds). Returns how many."""
    deleted = 0
    while True:
        batch = database.execute(
            "DELETE FROM calls WHERE id IN "
            "(SELECT id FROM calls WHERE ended_at_ns < ? ORDER BY ended_at_ns LIMIT ?)",
            (before_ns, _BATCH),
        ).rowcount
        deleted += batch
        if batch < _BATCH:
            return deleted


def shrink_to(database: sqlite3.Connection, size_bytes: int) -> int:
    """Delete the oldest entries until the rest fits `size_bytes`, and give pages back. Returns how many.

    The newest _BATCH entries stay, whatever the size: a bound set too small must not make an empty history.
    """
    deleted = 0
    while _used_bytes(database) > size_bytes:
        batch = database.execute(
            "DELETE FROM calls WHERE id IN (SELECT id FROM calls ORDER BY id LIMIT ?) "
            "AND id <= (SELECT max(id) FROM calls) - ?",
            (_BATCH, _BATCH),
        ).rowcount
        deleted += batch
        if not batch:
            break
    if _pragma(database, "page_count") * _pragma(database, "page_size") > size_bytes:
        # This pragma frees one page a step and yields rows without columns, at the first of which `execute` stops.
        database.executescript("PRAGMA incremental_vacuum")
    return deleted


def count(database: sqlite3.Connection) -> int:
    """How many entries the file holds; walks an index, so not for every batch."""
    ((entries,),) = database.execute("SELECT count(*) FROM calls").fetchall()
    return int(entries)


def _used_bytes(database: sqlite3.Connection) -> int:
    pages = _pragma(database, "page_count") - _pragma(database, "freelist_count")
    return pages * _pragma(database, "page_size")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    ((value,),) = database.execute(f"PRAGMA {name}").fetchall()
    return int(value)
