"""Lists of calls in pages, so that no answer outgrows what a gRPC client takes by default (4 MiB)."""

import re
from collections.abc import Callable, Iterable
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import ToolCall
from agentcgroup.proto.v1 import types_pb2

DEFAULT_SIZE: Final = 1000
MOST_SIZE: Final = 5000
MOST_BYTES: Final = 3 << 20

# A page ends behind a call; the token is that call's place in the order, which holds when the call itself
# has ended.
_TOKEN: Final = re.compile(r"([0-9]{1,20})\.([a-z0-9-]{1,40})", re.ASCII)


def _place(call: ToolCall) -> tuple[int, str]:
    return call.declared_at_ns, call.id


def _parsed(token: str) -> tuple[int, str]:
    if not token:
        return -1, ""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise RequestError(
            Kind.INVALID,
            "page_token is none that this daemon gave",
            "send next_page_token of the last response unchanged, or nothing for the first page",
            "page_token",
        )
    return int(match[1]), match[2]


def page_of_calls(
    calls: Iterable[ToolCall], size: int, token: str, write: Callable[[ToolCall], types_pb2.Call]
) -> tuple[list[types_pb2.Call], str]:
    """The calls after `token`, oldest first and so parents first, and the token of the next page, "" at the end.

    `size` 0 is DEFAULT_SIZE, more than MOST_SIZE is MOST_SIZE. Raises RequestError(INVALID) for a token not
    given here.
    """
    after = _parsed(token)
    rest = sorted((call for call in calls if _place(call) > after), key=_place)
    page: list[types_pb2.Call] = []
    room = MOST_BYTES
    for call in rest[: min(size or DEFAULT_SIZE, MOST_SIZE)]:
        written = write(call)
        room -= written.ByteSize()
        # One call alone always fits: its texts are bounded where they enter.
        if room < 0 and page:
            break
        page.append(written)
    if len(page) == len(rest):
        return page, ""
    last = rest[len(page) - 1]
    return page, f"{last.declared_at_ns}.{last.id}"
