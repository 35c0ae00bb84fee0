"""Keeping the history within its age and size: the oldest rows go first, of calls and events alike, a few at a time.

A deletion of everything at once would hold the file for seconds and grow the write-ahead log by as much
as it deletes.
"""

import sqlite3
from typing import Final

_BATCH: Final = 200

# The tables that grow, with the column that says how old a row is. Both are read from the low end of an index.
_AGES: Final = {"calls": "ended_at_ns", "events": "at_ns"}

# Rows deleted, by table.
Deleted = dict[str, int]


def delete_older_than(database: sqlite3.Connection, before_ns: int) -> Deleted:
    """Delete what happened before `before_ns` (Unix nanoseconds)."""
    # An event's id is its time in microseconds, or a little more.
    return {
        "calls": _delete(database, "calls", "ended_at_ns", before_ns),
        "events": _delete(database, "events", "id", before_ns // 1000),
    }


def _delete(database: sqlite3.Connection, table: str, column: str, before: int) -> int:
    deleted = 0
    while True:
        batch = database.execute(
            f"DELETE FROM {table} WHERE id IN "
            f"(SELECT id FROM {table} WHERE {column} < ? ORDER BY {column} LIMIT ?)",
            (before, _BATCH),
        ).rowcount
        deleted += batch
        if batch < _BATCH:
            return deleted


def shrink_to(database: sqlite3.Connection, size_bytes: int) -> Deleted:
    """Delete the oldest rows until the rest fits `size_bytes`, and give pages back.

    The newest _BATCH rows of a table stay, whatever the size: a bound set too small must not make an empty history.
    """
    deleted = dict.fromkeys(_AGES, 0)
    while _used_bytes(database) > size_bytes:
        table = _table_with_oldest(database)
        if table is None:
            break
        deleted[table] += database.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id <= "
            f"(SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?) ORDER BY id LIMIT ?)",
            (_BATCH, _BATCH),
        ).rowcount
    if _pragma(database, "page_count") * _pragma(database, "page_size") > size_bytes:
        # This pragma frees one page a step and yields rows without columns, at the first of which `execute` stops.
        database.executescript("PRAGMA incremental_vacuum")
    return deleted


def _table_with_oldest(database: sqlite3.Connection) -> str | None:
    """The table whose first row is the oldest, of those that have more rows than are kept in any case."""
    oldest: list[tuple[int, str]] = []
    for table, age in _AGES.items():
        for (at_ns,) in database.execute(
            f"SELECT {age} FROM {table} WHERE EXISTS (SELECT 1 FROM {table} LIMIT 1 OFFSET ?) ORDER BY id LIMIT 1",
            (_BATCH,),
        ):
            oldest.append((at_ns, table))
    return min(oldest)[1] if oldest else None


def count(database: sqlite3.Connection) -> int:
    """How many ended calls the file holds; walks an index, so not for every batch."""
    ((entries,),) = database.execute("SELECT count(*) FROM calls").fetchall()
    return int(entries)


def _used_bytes(database: sqlite3.Connection) -> int:
    pages = _pragma(database, "page_count") - _pragma(database, "freelist_count")
    return pages * _pragma(database, "page_size")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    ((value,),) = database.execute(f"PRAGMA {name}").fetchall()
    return int(value)
