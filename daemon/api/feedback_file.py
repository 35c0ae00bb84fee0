"""The latest word to an agent as files in its session's directory, for harnesses that can only read files.

    feedback.json   level, the last messages, and for each live call that something was said about the last one
    feedback.txt    the same messages as a person would read them

Both are replaced as a whole and written on change only. What an earlier daemon said is taken over with its numbers, as calls
are, but not how bad it is now: policies begin anew.

The directory belongs to the session's user, who may put anything there at any moment, so nothing in it is trusted: it is
held by a descriptor taken before it was given away, a new file is made under a name that nobody else uses (O_EXCL and
O_NOFOLLOW follow nothing that lies there) and given to the user by its descriptor, and rename(2) replaces what is there, be
it a link. What is read from there can mislead nobody but its owner.
"""

import asyncio
import contextlib
import json
import logging
import os
import stat
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.ids import random_hex
from agentcgroup.daemon.model import Feedback, FeedbackKind, Level, Rung, Session, Verdict

log = logging.getLogger("agentcgroup.api")

JSON_NAME: Final = "feedback.json"
TEXT_NAME: Final = "feedback.txt"
# What is kept for who looks late.
MOST_MESSAGES: Final = 20
# Files are not written more often; what came meanwhile is in the next one.
PAUSE_S: Final = 0.2
# More than the daemon ever writes.
_MOST_BYTES: Final = 1 << 20

# Every call starts and most end well: that is no news, and would push out what is.
_CALM: Final = frozenset({FeedbackKind.STARTED, FeedbackKind.DECLARED, FeedbackKind.HELLO})
# What was said about a call before is over.
_TURNS: Final = frozenset({FeedbackKind.DECLARED, FeedbackKind.STARTED, FeedbackKind.ENDED})

# JSON has no larger integers for everybody, and datetime no later times.
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_UnixMs = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000)]


def is_news(message: Feedback) -> bool:
    """Whether an agent that reads only now and then should find it."""
    if message.kind is FeedbackKind.SESSION:
        # That it was opened is none; that the host is emptied, or that it has less to use, is.
        return message.level is not None or bool(message.advice)
    return message.kind not in _CALM and not (
        message.kind is FeedbackKind.ENDED and message.level is Level.AMPLE and not message.advice
    )


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message as it stands in the file; what it does not say is left out."""

    sequence: _Number
    at_ms: _UnixMs
    kind: FeedbackKind
    call_id: str = ""
    level: Level | None = None
    message: str = ""
    advice: str = ""
    verdict: Verdict | None = None
    memory_current_bytes: int | None = None
    memory_bytes: int | None = None
    memory_max_bytes: int | None = None
    time_to_limit_ms: int | None = None
    rung: Rung | None = None
    event_id: str = ""
    deadline_at_ms: int | None = None
    held_until_ms: int | None = None
    memory_to_ask_bytes: int | None = None


class _Earlier(msgspec.Struct):
    """What of a file that an earlier daemon wrote goes on."""

    messages: list[Word]


def _word(message: Feedback) -> Word:
    usage, limits, ladder = message.usage, message.limits, message.ladder
    return Word(
        sequence=message.sequence,
        at_ms=message.at_ns // 1_000_000,
        kind=message.kind,
        call_id=message.call_id,
        level=message.level,
        message=message.message,
        advice=message.advice,
        verdict=message.report.verdict if message.report is not None else None,
        memory_current_bytes=usage.memory_current_bytes if usage is not None else None,
        memory_bytes=limits.memory_bytes if limits is not None else None,
        memory_max_bytes=limits.memory_max_bytes if limits is not None else None,
        time_to_limit_ms=message.time_to_limit_ms,
        rung=ladder.rung if ladder is not None else None,
        event_id=ladder.event_id if ladder is not None else "",
        deadline_at_ms=_ms(ladder.deadline_at_ns) if ladder is not None else None,
        held_until_ms=_ms(message.held_until_ns),
        memory_to_ask_bytes=ladder.memory_to_ask_bytes if ladder is not None else None,
    )


def _ms(at_ns: int | None) -> int | None:
    return at_ns // 1_000_000 if at_ns is not None else None


@dataclass(frozen=True, slots=True)
class _Said:
    """The last word about a live call, and how bad it is for it since a word that told."""

    last: Word
    level: Level | None
    # Whether that was about its memory, and so may be over without another word.
    is_memory: bool


class FeedbackFiles:
    """Keeps the two files of one session. Lives on the event loop; a file that cannot be written is logged once."""

    def __init__(self, feed: Feed, session: Session, directory: Path, mode: int = 0o600) -> None:
        """`directory` is this daemon's alone, or what an earlier one had given to the session's owner. Raises OSError."""
        self._session: Final = session
        self._mode: Final = mode
        self._directory: Final = os.open(
            directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        self._messages: deque[Word] = deque(self._recall(), maxlen=MOST_MESSAGES)
        self._calls: dict[str, _Said] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._failed = False
        self._feed: Final = feed
        if self._messages:
            feed.go_on(session.name, self._messages[-1].sequence)
        feed.attend(session.name, self)
        self._write()

    def close(self) -> None:
        """Writes what is still to be written, and forgets the directory."""
        self._feed.leave(self._session.name, self)
        if self._timer is not None:
            self._timer.cancel()
        if self._is_due:
            self._write()
        os.close(self._directory)

    def hear(self, message: Feedback) -> None:
        has_changed = self._note(message)
        if is_news(message):
            self._messages.append(_word(message))
        elif not has_changed:
            return
        self._write_soon()

    def forget(self, call_id: str) -> None:
        said = self._calls.get(call_id)
        if said is not None and said.is_memory:
            del self._calls[call_id]
            self._write_soon()

    def _note(self, message: Feedback) -> bool:
        """Keeps what is said of a call as it is now; whether that is new."""
        if message.kind in _TURNS:
            return self._calls.pop(message.call_id, None) is not None
        if not message.call_id or not is_news(message):
            return False
        before = self._calls.get(message.call_id)
        level, is_memory = message.level, message.ladder is not None
        if level is None and before is not None:
            # A word that does not tell how bad it is, a refusal of more, makes it no better.
            level, is_memory = before.level, before.is_memory
        elif message.ladder is not None and message.ladder.rung is Rung.CALM:
            level = None
        self._calls[message.call_id] = _Said(_word(message), level, is_memory)
        return True

    def _write_soon(self) -> None:
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
            self._replace(JSON_NAME, json.dumps(msgspec.to_builtins(self._as_document()), indent=1) + "\n")
            self._replace(TEXT_NAME, self._as_text())
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning(
                    "session %s: its feedback files cannot be written: %s", self._session.name, error
                )
            self._failed = True

    def _as_document(self) -> dict[str, Any]:
        # Who left the queue or gave a grant back is live no more.
        self._calls = {key: said for key, said in self._calls.items() if key in self._session.calls}
        levels = {said.level for said in self._calls.values()}
        worst = next((level for level in (Level.CRITICAL, Level.TIGHT) if level in levels), Level.AMPLE)
        calls = {
            key: msgspec.structs.replace(said.last, level=said.level) for key, said in self._calls.items()
        }
        return {
            "session": self._session.name,
            "level": worst,
            "calls": calls,
            "messages": list(self._messages),
        }

    def _as_text(self) -> str:
        if not self._messages:
            return "All is calm.\n"
        return "".join(map(_line, self._messages))

    def _recall(self) -> list[Word]:
        """The messages that an earlier daemon wrote; none where its file cannot be read, which its owner may see to."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(JSON_NAME, flags, dir_fd=self._directory)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                # Nobody else's file under this name.
                if (status.st_uid, status.st_nlink) != (self._session.owner_uid, 1) or not stat.S_ISREG(
                    status.st_mode
                ):
                    return []
                earlier = msgspec.json.decode(file.read(_MOST_BYTES), type=_Earlier).messages
        except (OSError, msgspec.DecodeError, RecursionError):
            return []
        # A directory that a container mounts may outlive the session that it was told of.
        since_ms = self._session.created_at_ns // 1_000_000
        return [word for word in earlier if word.at_ms >= since_ms]

    def _replace(self, name: str, text: str) -> None:
        temporary = f".{name}.{random_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        try:
            with open(fd, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
                file.flush()
                os.fchmod(fd, self._mode)
                os.fchown(fd, self._session.owner_uid, self._session.owner_gid)
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._directory)
            raise


def _line(word: Word) -> str:
    at = datetime.fromtimestamp(word.at_ms / 1e3, UTC).strftime("%H:%M:%SZ")
    words = [at, word.call_id, word.level or "", word.message, word.advice]
    return " ".join(each for each in words if each) + "\n"
