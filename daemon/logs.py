"""Logs on standard error: one line a decision, as text (in the journal with its priority), or one JSON object a line."""

import json
import logging
import os
import sys
from typing import Final

# sd-daemon(3): "<N>" at the head of a line is its priority.
_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_FIELDS: Final = ("session", "call_id", "kind")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A line break in a caller's text must not begin a line of its own making.
        return super().format(record).replace("\n", "\n\t")


class _Journal(_Text):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelno, 6)}>" + super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {field: value for field in _FIELDS if (value := getattr(record, field, None))}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_level(level: str) -> None:
    """Changes what is logged from now on; `level` as in the configuration."""
    logging.getLogger().setLevel(level.upper())


def _is_journal() -> bool:
    """Whether standard error is the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def configure(level: str, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_Json())
    elif _is_journal():
        handler.setFormatter(_Journal("%(name)s: %(message)s"))
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These two speak of their own inner life at info.
    for name in ("grpc", "docker", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
