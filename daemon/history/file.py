"""The history file as its one writer sees it: opened when needed, written, kept in bounds, repaired.

Not safe for two threads, except `suspect`. Every failure closes the file; the next call opens it again,
so that a disk that comes back needs no restart.
"""

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agentcgroup.daemon.history import events, retention, rows, schema
from agentcgroup.daemon.model import Event, HistoryEntry

LOGGER: Final = logging.getLogger(__name__)

# Deleting by age looks at an index only, so once an hour costs nothing at rest.
EXPIRE_EVERY_S: Final = 3600.0
# A file smaller than this cannot hold a useful history; a smaller bound counts as this.
SIZE_MIN_BYTES: Final = 1 << 20

# What the file keeps.
Record = HistoryEntry | Event

# An event that is there already was written by an attempt whose success was not heard of.
_INSERTS: Final = {
    "calls": f"INSERT INTO calls ({', '.join(rows.COLUMNS)}) VALUES ({', '.join('?' * len(rows.COLUMNS))})",
    "events": (
        f"INSERT OR IGNORE INTO events ({', '.join(events.COLUMNS)}) "
        f"VALUES ({', '.join('?' * len(events.COLUMNS))})"
    ),
}


class Encoded(NamedTuple):
    """Records as rows, by table."""

    calls: list[rows.Row]
    events: list[rows.Row]
    unwritable_calls: int
    unwritable_events: int


class HistoryFile:
    """`keep_ms` and `size_bytes` bound the file; the write-ahead log of a few MiB comes on top."""

    def __init__(
        self,
        path: Path,
        *,
        keep_ms: int,
        size_bytes: int,
        now_ns: Callable[[], int],
        migrations: Sequence[schema.Migration],
    ) -> None:
        self._path = path
        self._keep_ms = keep_ms
        self._size_bytes = max(size_bytes, SIZE_MIN_BYTES)
        self._now_ns = now_ns
        self._migrations = migrations
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._expire_at = 0.0
        # Set by a reader that met damage: the next write examines the file first.
        self.suspect = False
        self.written = 0
        self.unwritable = 0
        self.expired = 0
        self.events_written = 0
        self.events_unwritable = 0
        self.events_expired = 0
        # None until the file was opened.
        self.entries: int | None = None
        self.size_on_disk_bytes: int | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Commit `records`, all or none, and keep the file in its bounds.

        An empty batch only looks after the file. A damaged file is set aside and `records` begin a new one.
        Raises HistoryTrouble, with nothing written.
        """
        encoded = self._encoded(records)
        try:
            try:
                self._commit(self._opened(), encoded)
            except sqlite3.Error as error:
                if not schema.is_damage(error):
                    raise
                self._replace_damaged(str(error))
                self._commit(self._opened(), encoded)
            self._keep_in_bounds(self._opened())
        except (OSError, sqlite3.Error, schema.HistoryTrouble) as error:
            self.close()
            raise explain(error, self._path) from error
        self.unwritable += encoded.unwritable_calls
        self.events_unwritable += encoded.unwritable_events

    def close(self) -> None:
        """Close the file; SQLite folds the write-ahead log into it when it can."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _encoded(self, records: Sequence[Record]) -> Encoded:
        calls: list[rows.Row] = []
        decisions: list[rows.Row] = []
        for record in records:
            try:
                if isinstance(record, HistoryEntry):
                    calls.append(rows.encode(record))
                else:
                    decisions.append(events.encode(record))
            except ValueError as error:
                name = record.report.call_id if isinstance(record, HistoryEntry) else record.id
                LOGGER.error("history: %s cannot be written down: %s", name, error)
        unwritable_calls = sum(isinstance(each, HistoryEntry) for each in records) - len(calls)
        unwritable_events = len(records) - len(calls) - len(decisions) - unwritable_calls
        return Encoded(calls, decisions, unwritable_calls, unwritable_events)

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None and self._identity != _identity(self._path):
            LOGGER.warning("history: %s was moved or deleted; a new file is begun", self._path)
            self.close()
        if self._database is None:
            self._database = schema.open_for_writing(self._path, self._migrations)
            self._identity = _identity(self._path)
            self._expire_at = 0.0
            self.entries = retention.count(self._database)
        if self.suspect:
            self.suspect = False
            if not schema.is_sound(self._database):
                self._replace_damaged("a reader found damage")
                return self._opened()
        return self._database

    def _commit(self, database: sqlite3.Connection, encoded: Encoded) -> None:
        if not (encoded.calls or encoded.events):
            return
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(_INSERTS["calls"], encoded.calls)
            database.executemany(_INSERTS["events"], encoded.events)
            database.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back by itself (https://www.sqlite.org/lang_transaction.html,
            # section 3.1).
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self.written += len(encoded.calls)
        self.entries = (self.entries or 0) + len(encoded.calls)
        self.events_written += len(encoded.events)

    def _keep_in_bounds(self, database: sqlite3.Connection) -> None:
        self._count_expired(database, retention.shrink_to(database, self._size_bytes))
        if time.monotonic() >= self._expire_at:
            before_ns = self._now_ns() - self._keep_ms * 1_000_000
            self._count_expired(database, retention.delete_older_than(database, before_ns))
            self._expire_at = time.monotonic() + EXPIRE_EVERY_S
        self.size_on_disk_bytes = sum(
            os.path.getsize(name) for name in (self._path, f"{self._path}-wal") if os.path.exists(name)
        )

    def _count_expired(self, database: sqlite3.Connection, deleted: retention.Deleted) -> None:
        self.events_expired += deleted["events"]
        if deleted["calls"]:
            self.expired += deleted["calls"]
            self.entries = retention.count(database)

    def _replace_damaged(self, why: str) -> None:
        self.close()
        aside = schema.set_aside(self._path, self._now_ns())
        LOGGER.error(
            "history: %s is damaged (%s); kept as %s for `sqlite3 FILE .recover`, a new history begins",
            self._path,
            why,
            aside,
        )


def explain(error: Exception, path: Path) -> schema.HistoryTrouble:
    """`error` as trouble with a cause and a next step that an operator can follow."""
    if isinstance(error, schema.HistoryTrouble):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = error.errno if isinstance(error, OSError) else None
    if code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT):
        step = "Free space on its file system, or lower history.max_size"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        step = "Another process holds it: end that process (`fuser FILE` names it)"
    elif (
        code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or number is not None
    ):
        step = (
            "Make its directory writable for agentcgroupd, or set daemon.state_dir or history.path elsewhere"
        )
    else:
        step = "Look at the file system and the kernel log for errors of the disk"
    return schema.HistoryTrouble(f"{path} cannot be used: {error}", step)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
