"""Pages of the history, newest first, by key instead of offset.

New entries never shift a page being turned.
"""

import logging
import re
import sqlite3
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import rows
from agentcgroup.daemon.model import HistoryEntry, Verdict

LOGGER: Final = logging.getLogger(__name__)

SIZE_DEFAULT: Final = 100
SIZE_MAX: Final = 1000
# Long command lines and labels could make 1000 entries larger than the 4 MiB that a gRPC client takes.
PAGE_BYTES: Final = 2 << 20

_TOKEN: Final = re.compile(r"before-([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries: `session` "" and `verdict` None are all, `before` None begins at the newest."""

    session: str
    verdict: Verdict | None
    size: int
    before: int | None


def make_query(session: str, verdict: Verdict | None, page_size: int, page_token: str) -> Query:
    """The arguments of a request, checked. Raises RequestError (INVALID)."""
    if page_size < 0:
        raise RequestError(
            Kind.INVALID,
            f"page_size {page_size} is negative",
            f"Ask for 1 to {SIZE_MAX} entries, or 0 for {SIZE_DEFAULT}",
            "page_size",
        )
    before = None
    if page_token:
        match = _TOKEN.fullmatch(page_token)
        if match is None:
            raise RequestError(
                Kind.INVALID,
                f"page_token {page_token[:40]!r} is none that this daemon gave",
                "Begin again with an empty page_token",
                "page_token",
            )
        before = int(match[1])
    return Query(session, verdict, min(page_size or SIZE_DEFAULT, SIZE_MAX), before)


def token_before(number: int) -> str:
    """The token of the page that goes on before row `number`."""
    return f"before-{number}"


def read(database: sqlite3.Connection, query: Query) -> tuple[list[HistoryEntry], str]:
    """The entries of one page, and the token of the next one, "" when there is none.

    Raises sqlite3.Error.
    """
    conditions, values = ["1"], list[int | str]()
    for condition, value in (
        ("id < ?", query.before),
        ("session = ?", query.session or None),
        ("verdict = ?", query.verdict),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    cursor = database.execute(
        f"SELECT id, {', '.join(rows.COLUMNS)} FROM calls "
        f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
        (*values, query.size + 1),
    )
    entries: list[HistoryEntry] = []
    taken = size_bytes = last = 0
    for number, *row in cursor:
        if taken == query.size or (taken and size_bytes >= PAGE_BYTES):
            return entries, token_before(last)
        taken, last = taken + 1, number
        size_bytes += sum(len(value) for value in row if isinstance(value, str))
        try:
            entries.append(rows.decode(tuple(row)))
        except rows.BadRow as error:
            # One row that a later version wrote, or that a hand has changed, must not hide the others.
            LOGGER.warning("history: a row is left out: %s", error)
    return entries, ""


def newest(database: sqlite3.Connection, count: int) -> list[HistoryEntry]:
    """The newest `count` entries, oldest first. Raises sqlite3.Error."""
    entries: list[HistoryEntry] = []
    for row in database.execute(
        f"SELECT {', '.join(rows.COLUMNS)} FROM calls ORDER BY id DESC LIMIT ?", (count,)
    ):
        try:
            entries.append(rows.decode(row))
        except rows.BadRow as error:
            LOGGER.warning("history: a row is left out: %s", error)
    return entries[::-1]
