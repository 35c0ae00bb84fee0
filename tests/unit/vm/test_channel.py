"""Frames between host and guest."""

import pytest

from vm.channel import BODY_MOST_BYTES, HEADER, ChannelError, Decoder, Frame, Job, Kind, decode_job, encode


def test_frames_come_out_whole_wherever_the_bytes_are_cut() -> None:
    frames = [
        Frame(Kind.STDOUT, b"abc"),
        Frame(Kind.STOP, b""),
        Frame(Kind.ENDED, b"0"),
        Frame(Kind.STDERR, b"\0" * 300),
    ]
    data = b"".join(encode(frame.kind, frame.body) for frame in frames)
    for size in (1, 2, 5, 7, 64, len(data)):
        decoder = Decoder()
        found = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
        assert found == frames


@pytest.mark.parametrize(
    "header", [HEADER.pack(99, 0), HEADER.pack(0, 1), HEADER.pack(Kind.STDOUT, BODY_MOST_BYTES + 1)]
)
def test_a_stream_out_of_step_is_noticed(header: bytes) -> None:
    with pytest.raises(ChannelError):
        list(Decoder().feed(header))


def test_a_job_survives_the_way_with_words_that_are_no_text() -> None:
    job = Job(
        ("printf", "a b\n'\"", "\udcff\udc80", "ä"), (("HOME", "/root"), ("X", "1 2")), ((5, "tests"),)
    )
    (frame,) = Decoder().feed(job.encode())
    assert frame.kind is Kind.JOB
    assert decode_job(frame.body) == job


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"argv": [], "environment": 3, "shares": []}', b"\xff"]
)
def test_what_is_not_a_job_is_refused(body: bytes) -> None:
    with pytest.raises(ChannelError):
        decode_job(body)
