"""The store: `record` and `note` on the loop, one writer thread, and reads in the caller's thread.

When the file cannot be written (full disk, lost rights, a lock, a newer schema) entries wait in the
queue, the oldest give way when it is full, and the writer tries again, less and less often. A damaged
file is set aside and a new one begun. All of that is in `stats`, and in the log once per change.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from agentcgroup.daemon.config import HistoryConfig
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import events, pages, schema
from agentcgroup.daemon.history.file import EXPIRE_EVERY_S, HistoryFile, Record, explain
from agentcgroup.daemon.history.stats import DropCause, HistoryStats
from agentcgroup.daemon.history.waiting import WaitingRoom
from agentcgroup.daemon.model import Event, HistoryEntry, Story, Verdict

LOGGER: Final = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
# How long a reader waits for what was recorded just before.
SETTLE_S: Final = 3.0
CLOSE_S: Final = 5.0

Answered = TypeVar("Answered")
# A page and the token of the next one, "" at the end.
Entries = list[HistoryEntry]
CallPage = tuple[Entries, str]
EventPage = tuple[list[Event], str]


class HistoryStore:
    """Ended calls and decisions in the SQLite file at `path`, for `keep_ms` and up to `size_bytes`.

    Making one never fails: trouble with the file is in `stats`. `now_ns` is Unix time.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_ms: int,
        size_bytes: int,
        now_ns: Callable[[], int] = time.time_ns,
        migrations: Sequence[schema.Migration] = schema.MIGRATIONS,
    ) -> None:
        self._path = path
        self._migrations = migrations
        self._file = HistoryFile(
            path, keep_ms=keep_ms, size_bytes=size_bytes, now_ns=now_ns, migrations=migrations
        )
        self._waiting = WaitingRoom()
        self._trouble: schema.HistoryTrouble | None = None
        # Before anything is decided, so that no id is given twice.
        self._last_event_number = self._read_last_event_number()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def record(self, entry: HistoryEntry) -> None:
        """Queue `entry` for the file. Never blocks on the disk and never raises."""
        self._waiting.put(entry)

    def note(self, event: Event) -> None:
        """Queue a decision for the file, in the same way."""
        self._waiting.put(event)

    @property
    def last_event_number(self) -> int:
        """The number of the newest event in the file when it was opened; 0 when none could be read."""
        return self._last_event_number

    def _read_last_event_number(self) -> int:
        try:
            database = schema.open_for_reading(self._path, self._migrations)
            if database is None:
                return 0
            try:
                return events.last_number(database)
            finally:
                database.close()
        except (schema.HistoryTrouble, OSError, sqlite3.Error):
            # No file yet, or trouble that the writer will meet and tell; ids begin at the clock.
            return 0

    def list(
        self,
        session: str = "",
        verdict: Verdict | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> CallPage:
        """A page of entries, newest first, and the token of the next page, "" at the end.

        `session` "" and `verdict` None mean all; `page_size` 0 is 100, more than 1000 is 1000, and a
        page of large entries ends early. Includes what was recorded before the call. Blocks on the disk:
        use asyncio.to_thread. Raises RequestError: INVALID for a bad argument, HOST when the file cannot
        be read.
        """
        query = pages.make_query(session, verdict, page_size, page_token)
        nothing: CallPage = ([], "")
        return self._asked(lambda database: pages.read(database, query), nothing)

    def newest(self, count: int) -> Entries:
        """The newest `count` entries, oldest first; none when the file cannot be read. Blocks on the disk."""
        nothing: Entries = []
        try:
            return self._asked(lambda database: pages.newest(database, count), nothing)
        except RequestError as error:
            LOGGER.warning("history: nothing is learned from it: %s", error)
            return nothing

    def events(
        self, session: str = "", call_id: str = "", page_size: int = 0, page_token: str = ""
    ) -> EventPage:
        """A page of decisions, newest first; "" means all. Otherwise as `list`."""
        query = pages.make_query(session, None, page_size, page_token)
        nothing: EventPage = ([], "")
        return self._asked(
            lambda database: events.read_page(database, session, call_id, query.before, query.size), nothing
        )

    def story(self, call_id: str, session: str = "", since_ns: int = 0) -> Story:
        """Every decision about a call, of `session` when that is not "", since `since_ns`. Blocks and raises as `list`."""
        return self._asked(
            lambda database: events.read_story(database, call_id, session, since_ns), Story(None, ())
        )

    def _asked(self, question: Callable[[sqlite3.Connection], Answered], of_nothing: Answered) -> Answered:
        """What `question` finds in the file, everything recorded before included."""
        self._waiting.settle(SETTLE_S)
        try:
            database = schema.open_for_reading(self._path, self._migrations)
            if database is None:
                return of_nothing
            try:
                return question(database)
            finally:
                database.close()
        except (schema.HistoryTrouble, OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and schema.is_damage(error):
                self._file.suspect = True
                self._waiting.nudge()
                raise RequestError(
                    Kind.HOST,
                    f"the history {self._path} is damaged: {error}",
                    "It is set aside now and a new one begins; ask again",
                ) from error
            trouble = self._trouble or explain(error, self._path)
            raise RequestError(
                Kind.HOST, f"the history cannot be read: {trouble.cause}", trouble.next_step
            ) from error

    def stats(self) -> HistoryStats:
        """What was written, dropped and is waiting, now. Cheap, from any thread."""
        file, trouble = self._file, self._trouble
        return HistoryStats(
            enabled=True,
            trouble="" if trouble is None else str(trouble),
            written=file.written,
            dropped={
                **self._waiting.lost_calls,
                DropCause.UNWRITABLE: file.unwritable,
            },
            expired=file.expired,
            events_written=file.events_written,
            events_dropped={
                **self._waiting.lost_events,
                DropCause.UNWRITABLE: file.events_unwritable,
            },
            events_expired=file.events_expired,
            waiting=self._waiting.depth,
            entries=file.entries,
            size_bytes=file.size_on_disk_bytes,
        )

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Write what is waiting and close the file. False when that took longer than `timeout_s`."""
        self._waiting.close()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        LOGGER.error(
            "history: %s is still being written after %.1f s; %d entries may be lost",
            self._path,
            timeout_s,
            self._waiting.depth,
        )
        return False

    # ---- the writer thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except Exception:
            # A fault of this code, not of the disk: the daemon must live on, and the loss must be seen.
            LOGGER.exception("history: the writer broke; calls are not recorded until agentcgroupd restarts")
            self._trouble = schema.HistoryTrouble(
                "the history writer broke, see the log", "Restart agentcgroupd"
            )
        finally:
            left = self._waiting.abandon()
            self._file.close()
        if left:
            LOGGER.error("history: %d records could not be written before the end", left)

    def _write_until_closed(self) -> None:
        # The first round opens the file, so that trouble shows at the start and not at the first call.
        batch: Sequence[Record] | None = []
        retry_s = 0.0
        while batch is not None:
            try:
                self._file.write(batch)
            except schema.HistoryTrouble as trouble:
                self._note(trouble)
                self._waiting.failed()
                retry_s = min(max(RETRY_FIRST_S, retry_s * 2), RETRY_MAX_S)
                if self._waiting.closed:
                    return
                batch = self._waiting.take(retry_s, retry=True)
            else:
                self._note(None)
                self._waiting.written()
                retry_s = 0.0
                batch = self._waiting.take(EXPIRE_EVERY_S)

    def _note(self, trouble: schema.HistoryTrouble | None) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble is not None and (before is None or before.cause != trouble.cause):
            LOGGER.warning("history: calls are not recorded: %s", trouble)
        elif trouble is None and before is not None:
            LOGGER.warning(
                "history: calls are recorded again; %d were dropped so far",
                self._waiting.lost_calls[DropCause.QUEUE_FULL],
            )


class DisabledHistory:
    """The history of a daemon with `history.enabled = false`: takes everything, keeps nothing."""

    def record(self, entry: HistoryEntry) -> None:
        """Forget `entry`."""

    def note(self, event: Event) -> None:
        """Forget `event`."""

    @property
    def last_event_number(self) -> int:
        return 0

    def newest(self, count: int) -> Entries:
        """None: nothing is kept."""
        return []

    def list(
        self,
        session: str = "",
        verdict: Verdict | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> CallPage:
        """Raises RequestError (STATE): there is no history to list."""
        raise self._none()

    def events(
        self, session: str = "", call_id: str = "", page_size: int = 0, page_token: str = ""
    ) -> EventPage:
        """Raises RequestError (STATE)."""
        raise self._none()

    def story(self, call_id: str, session: str = "", since_ns: int = 0) -> Story:
        """Raises RequestError (STATE)."""
        raise self._none()

    @staticmethod
    def _none() -> RequestError:
        return RequestError(
            Kind.STATE,
            "this agentcgroupd keeps no history: history.enabled is false",
            "Set history.enabled = true in its configuration and restart it",
        )

    def stats(self) -> HistoryStats:
        """Nothing but `enabled` being False."""
        return HistoryStats(enabled=False)

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """True: there is nothing to write."""
        return True


def open_history(config: HistoryConfig, state_dir: str) -> HistoryStore | DisabledHistory:
    """The history that `config` asks for; its path is relative to `state_dir`."""
    if not config.enabled:
        return DisabledHistory()
    return HistoryStore(Path(state_dir) / config.path, keep_ms=config.keep, size_bytes=config.max_size)
