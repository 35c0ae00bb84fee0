"""api/pages.py: lists of calls in pages of bounded size."""

import pytest
from hypothesis import given, strategies as st

from agentcgroup.daemon.api.pages import MOST_BYTES, MOST_SIZE, page_of_calls
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import CallLimits, Decision, Intent, ToolCall
from agentcgroup.proto.v1 import types_pb2


def call(number: int, at_ns: int | None = None, command: str = "") -> ToolCall:
    return ToolCall(
        id=f"c-{number:05}",
        session="s",
        parent_id="",
        intent=Intent(command=(command,)),
        limits=CallLimits(1),
        decision=Decision.GRANTED,
        declared_at_ns=number if at_ns is None else at_ns,
    )


def write(call: ToolCall) -> types_pb2.Call:
    return types_pb2.Call(id=call.id, intent=types_pb2.Intent(command=call.intent.command))


def all_pages(calls: list[ToolCall], size: int) -> list[list[str]]:
    pages, token = [], ""
    while True:
        page, token = page_of_calls(calls, size, token, write)
        pages.append([each.id for each in page])
        if not token:
            return pages


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 12))
def test_pages_together_are_the_list_also_when_calls_were_declared_at_once(
    times: list[int], size: int
) -> None:
    calls = [call(number, at_ns) for number, at_ns in enumerate(times)]
    pages = all_pages(calls, size)
    expected = [each.id for each in sorted(calls, key=lambda each: (each.declared_at_ns, each.id))]
    assert [identity for page in pages for identity in page] == expected
    assert all(len(page) == size for page in pages[:-1])


def test_a_page_has_a_default_and_a_largest_size() -> None:
    calls = [call(number) for number in range(MOST_SIZE + 10)]
    assert len(all_pages(calls, 0)[0]) == 1000
    assert len(all_pages(calls, 10**9)[0]) == MOST_SIZE


def test_a_page_of_long_commands_stays_below_what_clients_take() -> None:
    calls = [call(number, command="x" * 4096) for number in range(2000)]
    token, seen = "", 0
    while True:
        page, token = page_of_calls(calls, 5000, token, write)
        seen += len(page)
        assert 0 < sum(each.ByteSize() for each in page) <= MOST_BYTES
        if not token:
            break
    assert seen == 2000


def test_calls_that_end_between_pages_shift_nothing() -> None:
    calls = [call(number) for number in range(10)]
    first, token = page_of_calls(calls, 5, "", write)
    second, token = page_of_calls(calls[7:], 5, token, write)
    assert [each.id for each in (*first, *second)] == [
        f"c-{number:05}" for number in (0, 1, 2, 3, 4, 7, 8, 9)
    ]
    assert token == ""


@pytest.mark.parametrize(
    "token", ["x", "1", "1.", ".c-1", "1.C", "-1.c-1", "1.c-1\n", "9" * 30 + ".c-1", "١.c"]
)
def test_a_token_that_was_not_given_here_is_invalid(token: str) -> None:
    with pytest.raises(RequestError) as caught:
        page_of_calls([call(1)], 5, token, write)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID, "page_token")
