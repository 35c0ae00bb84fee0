"""proto/launch.py: the launcher's packets."""

import pytest
from hypothesis import given, strategies as st

from agentcgroup.proto.launch import (
    INTENT_KEYS,
    MAGIC,
    MOST_BYTES,
    BadMessage,
    Reply,
    Request,
    Status,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    split_request,
)

# What argv and environment can hold: any bytes but NUL, as Python sees them.
_VALUES = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape"))
_KEYS = st.text("abcdefgh_.-", min_size=1, max_size=10)


def packet(*records: bytes) -> bytes:
    return b"".join(record + b"\0" for record in (MAGIC, *records))


@given(
    st.dictionaries(st.sampled_from(sorted(INTENT_KEYS)), _VALUES),
    st.dictionaries(_KEYS, _VALUES, max_size=5),
    st.lists(_VALUES, max_size=10),
)
def test_a_request_is_read_as_it_was_written(
    intent: dict[str, str], labels: dict[str, str], arguments: list[str]
) -> None:
    request = Request(intent, labels, tuple(arguments))
    assert decode_request(encode_request(request)) == request


@given(
    st.sampled_from(Status),
    st.text("abc-0123", max_size=12),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300),
    st.lists(st.tuples(_KEYS, _VALUES), max_size=6),
)
def test_a_reply_is_read_as_it_was_written(
    status: Status, call_id: str, message: str, environment: list[tuple[str, str]]
) -> None:
    reply = Reply(status, call_id, message, environment=tuple(environment))
    assert decode_reply(encode_reply(reply)) == reply


def test_arguments_that_do_not_fit_are_left_out_and_the_rest_is_kept() -> None:
    request = Request(arguments=tuple(["x" * 1000] * 100))
    encoded = encode_request(request)
    assert len(encoded) <= MOST_BYTES
    assert 10 < len(decode_request(encoded).arguments) < 100


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "\0" * 10_000, "\U0001f600" * 20_000])
def test_a_reply_with_endless_texts_fits_into_a_packet(text: str) -> None:
    reply = Reply(Status.REFUSED, "c-1", text, text, (text,) * 20, (("NAME", "value"),))
    encoded = encode_reply(reply)
    assert len(encoded) <= MOST_BYTES
    decoded = decode_reply(encoded)
    assert decoded.environment == (("NAME", "value"),)
    assert len(decoded.message) >= 400


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "cut off"),
        (b"\0", "not agentcgroup-launch/1"),
        (packet(), "op=None"),
        (packet(b"op=begin")[:-1], "cut off"),
        (b"agentcgroup-launch/2\0op=begin\0", "different releases"),
        (packet(b"op=end"), "op=end"),
        (packet(b"op=begin", b"op=begin"), "twice"),
        (packet(b"op=begin", b"memory=1G", b"memory=2G"), "twice"),
        (packet(b"op=begin", b"ticket=a", b"ticket=b"), "twice"),
        (packet(b"op=begin", b"ticket=a", b"memory=1G"), "leave out limits"),
        (packet(b"op=begin", b"colour=red"), "not a field"),
        (packet(b"op=begin", b"memory"), "no '='"),
        (packet(b"op=begin", b"label=x"), "KEY=VALUE"),
        (packet(b"op=begin", b"\xff\xfe=x"), "not a field"),
        (packet(b"op=begin", b"x" * MOST_BYTES), "more than"),
    ],
)
def test_bytes_that_are_no_request_are_refused_with_the_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(BadMessage, match=complaint):
        decode_request(data)


@given(
    st.one_of(st.binary(max_size=400), st.binary(max_size=200).map(lambda data: packet(b"op=begin", data)))
)
def test_any_bytes_are_a_request_or_a_bad_message(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(data)
        except BadMessage as error:
            assert len(str(error)) < 400


def test_a_value_with_a_nul_is_not_sent() -> None:
    with pytest.raises(BadMessage, match="NUL"):
        encode_request(Request({"memory": "1\0G"}))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_request_is_split_from_its_arguments(arguments: list[str]) -> None:
    asked = Request(intent={"memory": "2G"}, labels={"a": "b"})
    packet = encode_request(Request(asked.intent, asked.labels, tuple(arguments[:20])))
    split = split_request(packet)
    assert split == (encode_request(asked), decode_request(packet).arguments)


def test_arguments_among_what_is_asked_for_are_not_split() -> None:
    assert split_request(MAGIC + b"\0op=begin\0arg=ls\0memory=2G\0") is None
