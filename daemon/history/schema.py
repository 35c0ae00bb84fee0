"""The history file: what makes an SQLite file ours, how it is opened, migrated, and set aside when damaged.

`application_id` says whose file it is, `user_version` how far MIGRATIONS have been applied
(https://www.sqlite.org/pragma.html). Every migration runs in one transaction with its version number, so
that a daemon killed in the middle leaves the older schema, whole.
"""

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

# "ACGH" in the file's header, for `file` and for us.
APPLICATION_ID: Final = 0x41434748

Migration = tuple[str, ...]

MIGRATIONS: Final[tuple[Migration, ...]] = (
    (
        """
        CREATE TABLE calls (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            call_id TEXT NOT NULL,
            session TEXT NOT NULL,
            parent_call_id TEXT NOT NULL,
            verdict TEXT NOT NULL,
            decision TEXT NOT NULL,
            exit_code INTEGER,
            signal INTEGER,
            started_at_ns INTEGER,
            ended_at_ns INTEGER NOT NULL,
            duration_ms INTEGER NOT NULL,
            memory_peak_bytes INTEGER,
            cpu_usage_us INTEGER,
            leftover_processes INTEGER NOT NULL,
            cpu_class TEXT,
            command_class TEXT NOT NULL,
            message TEXT NOT NULL,
            advice TEXT NOT NULL,
            usage TEXT NOT NULL,
            intent TEXT NOT NULL,
            limits TEXT
        ) STRICT
        """,
        "CREATE INDEX calls_by_session ON calls (session, id)",
        "CREATE INDEX calls_by_verdict ON calls (verdict, id)",
        "CREATE INDEX calls_by_end ON calls (ended_at_ns)",
    ),
    (
        """
        CREATE TABLE events (
            id INTEGER PRIMARY KEY,
            at_ns INTEGER NOT NULL,
            session TEXT NOT NULL,
            call_id TEXT NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            reason TEXT NOT NULL,
            inputs TEXT NOT NULL,
            deadline_at_ns INTEGER,
            dry_run INTEGER NOT NULL
        ) STRICT
        """,
        "CREATE INDEX events_by_call ON events (call_id, id)",
        "CREATE INDEX events_by_session ON events (session, id)",
        "CREATE INDEX calls_by_call ON calls (call_id)",
    ),
    ("ALTER TABLE calls ADD COLUMN project TEXT NOT NULL DEFAULT ''",),
    ("ALTER TABLE calls ADD COLUMN memory_samples TEXT",),
)

# How long a statement waits for another process that holds the file.
BUSY_TIMEOUT_S: Final = 2.0
# Damaged files that are kept for a look; older ones are deleted, so that a bad disk does not fill itself.
ASIDE_KEPT: Final = 3


class HistoryTrouble(Exception):
    """The file cannot be used now. `cause` names it, `next_step` says what the operator can do."""

    def __init__(self, cause: str, next_step: str) -> None:
        super().__init__(f"{cause}. {next_step}")
        self.cause = cause
        self.next_step = next_step


def open_for_writing(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> sqlite3.Connection:
    """The file at `path`, made when it is missing, at the schema of the last of `migrations`.

    Raises HistoryTrouble for a file that is not ours or newer than us, OSError and sqlite3.Error for the
    rest.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would make it with the process's umask, and it holds command lines. -wal and -shm take over
    # the mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        version = _check_ours(database, path, len(migrations))
        if version == 0:
            # Before the first table, or never: pages of deleted rows can then be given back step by step.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # In WAL mode NORMAL syncs at checkpoints: a power cut may cost the last seconds, never the file.
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA journal_size_limit = {4 << 20}").fetchall()
        for number, statements in enumerate(migrations[version:], start=version + 1):
            _migrate(database, number, statements)
    except BaseException:
        database.close()
        raise
    return database


def open_for_reading(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> sqlite3.Connection | None:
    """The file at `path` for queries only; None when it holds no table yet. Raises as `open_for_writing`."""
    database = sqlite3.connect(
        f"file:{quote(os.fspath(path))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
    )
    try:
        if _check_ours(database, path, len(migrations)) == 0:
            database.close()
            return None
    except BaseException:
        database.close()
        raise
    return database


def is_damage(error: sqlite3.Error) -> bool:
    """Whether `error` says that the file itself is broken, rather than the disk, the rights or a lock."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_sound(database: sqlite3.Connection) -> bool:
    """Whether SQLite finds nothing wrong with the file; reads all of it."""
    try:
        return database.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return False
        raise


def set_aside(path: Path, now_ns: int) -> Path:
    """Rename a damaged file, with its write-ahead log, to a name that says so. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 1_000_000_000))
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    os.rename(path, aside)
    for suffix in ("-wal", "-shm"):
        try:
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        except FileNotFoundError:
            continue
    for old in _asides(path)[:-ASIDE_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{old}{suffix}").unlink(missing_ok=True)
    return aside


def _asides(path: Path) -> list[Path]:
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(
        (aside for aside in found if not aside.name.endswith(("-wal", "-shm"))),
        key=lambda aside: (aside.stat().st_mtime_ns, aside.name),
    )


def _check_ours(database: sqlite3.Connection, path: Path, newest: int) -> int:
    # Returns the schema version; 0 is an empty file.
    ((application_id,),) = database.execute("PRAGMA application_id").fetchall()
    ((version,),) = database.execute("PRAGMA user_version").fetchall()
    ((tables,),) = database.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if application_id != APPLICATION_ID and (tables or application_id or version):
        raise HistoryTrouble(
            f"{path} is an SQLite file of another program",
            "Set history.path to a name of its own and restart agentcgroupd",
        )
    if version > newest:
        raise HistoryTrouble(
            f"{path} has history schema {version}; this agentcgroupd knows up to {newest}",
            "Start the newer agentcgroupd again, or move the file away to begin a new history",
        )
    return int(version)


def _migrate(database: sqlite3.Connection, number: int, statements: Migration) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {number}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
