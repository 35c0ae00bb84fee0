"""The latest word to an agent as files in its session's directory, for harnesses that can only read files.

    feedback.json   level, the last messages, and for each live call the last one about it
    feedback.txt    the same messages as a person would read them

Both are replaced as a whole and written on change only. The directory belongs to the session's user, who may put anything
there at any moment, so nothing in it is trusted: it is held by a descriptor taken before it was given away, a new file is
made under a name that nobody else uses (O_EXCL and O_NOFOLLOW follow nothing that lies there) and given to the user by its
descriptor, and rename(2) replaces what is there, be it a link.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.ids import random_hex
from agentcgroup.daemon.model import Feedback, FeedbackKind, Level

log = logging.getLogger("agentcgroup.api")

JSON_NAME: Final = "feedback.json"
TEXT_NAME: Final = "feedback.txt"
# What is kept for who looks late.
MOST_MESSAGES: Final = 20
# Files are not written more often; what came meanwhile is in the next one.
PAUSE_S: Final = 0.2

# Every call starts and most end well: that is no news, and would push out what is.
_CALM: Final = frozenset({FeedbackKind.STARTED, FeedbackKind.DECLARED, FeedbackKind.HELLO})


def is_news(message: Feedback) -> bool:
    """Whether an agent that reads only now and then should find it."""
    if message.kind is FeedbackKind.SESSION:
        # That it was opened is none; that the host is emptied, or that it has less to use, is.
        return message.level is not None or bool(message.advice)
    return message.kind not in _CALM and not (
        message.kind is FeedbackKind.ENDED and message.level is Level.AMPLE and not message.advice
    )


def _document(message: Feedback) -> dict[str, Any]:
    ladder = message.ladder
    values = {
        "sequence": message.sequence,
        "at_ms": message.at_ns // 1_000_000,
        "kind": message.kind,
        "call_id": message.call_id,
        "level": message.level,
        "message": message.message,
        "advice": message.advice,
        "verdict": message.report.verdict if message.report is not None else None,
        "memory_current_bytes": message.usage.memory_current_bytes if message.usage is not None else None,
        "memory_bytes": message.limits.memory_bytes if message.limits is not None else None,
        "memory_max_bytes": message.limits.memory_max_bytes if message.limits is not None else None,
        "time_to_limit_ms": message.time_to_limit_ms,
        "rung": ladder.rung if ladder is not None else None,
        "event_id": ladder.event_id if ladder is not None else None,
        "deadline_at_ms": ladder.deadline_at_ns // 1_000_000
        if ladder is not None and ladder.deadline_at_ns
        else None,
        "memory_to_ask_bytes": ladder.memory_to_ask_bytes if ladder is not None else None,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


class FeedbackFiles:
    """Keeps the two files of one session. Lives on the event loop; a file that cannot be written is logged once."""

    def __init__(self, feed: Feed, session: str, directory: Path, uid: int, gid: int) -> None:
        """`directory` still belongs to this daemon alone: it is given to its owner afterwards. Raises OSError."""
        self._session: Final = session
        self._owner: Final = uid, gid
        self._directory: Final = os.open(
            directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        self._messages: deque[Feedback] = deque(maxlen=MOST_MESSAGES)
        self._live: dict[str, Feedback] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._failed = False
        self._feed: Final = feed
        feed.attend(session, self._hear)
        self._write()

    def close(self) -> None:
        """Writes what is still to be written, and forgets the directory."""
        self._feed.leave(self._session)
        if self._timer is not None:
            self._timer.cancel()
        if self._is_due:
            self._write()
        os.close(self._directory)

    def _hear(self, message: Feedback) -> None:
        has_ended = message.kind is FeedbackKind.ENDED
        was_known = has_ended and self._live.pop(message.call_id, None) is not None
        if is_news(message):
            self._messages.append(message)
            if message.call_id and not has_ended:
                self._live[message.call_id] = message
        elif not was_known:
            return
        self._is_due = True
        if self._timer is None:
            # Behind what is being said: whoever says it is in the middle of doing something about it.
            self._timer = asyncio.get_running_loop().call_later(0, self._write_due)

    def _write_due(self) -> None:
        """Writes what is due, and then nothing for a while."""
        self._timer = None
        if self._is_due:
            self._write()
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._write_due)

    # ---- writing

    def _write(self) -> None:
        self._is_due = False
        try:
            self._replace(JSON_NAME, json.dumps(self._as_document(), indent=1) + "\n")
            self._replace(TEXT_NAME, self._as_text())
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("session %s: its feedback files cannot be written: %s", self._session, error)
            self._failed = True

    def _as_document(self) -> dict[str, Any]:
        levels = [each.level for each in self._live.values()]
        worst = next((level for level in (Level.CRITICAL, Level.TIGHT) if level in levels), Level.AMPLE)
        return {
            "session": self._session,
            "level": worst,
            "calls": {call_id: _document(message) for call_id, message in self._live.items()},
            "messages": [_document(message) for message in self._messages],
        }

    def _as_text(self) -> str:
        if not self._messages:
            return "All is calm.\n"
        return "".join(_line(message) for message in self._messages)

    def _replace(self, name: str, text: str) -> None:
        temporary = f".{name}.{random_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        try:
            with open(fd, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
                file.flush()
                os.fchown(fd, *self._owner)
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._directory)
            raise


def _line(message: Feedback) -> str:
    at = datetime.fromtimestamp(message.at_ns / 1e9, UTC).strftime("%H:%M:%SZ")
    words = [at, message.call_id, message.level or "", message.message, message.advice]
    return " ".join(word for word in words if word) + "\n"
