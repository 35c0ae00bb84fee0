"""The launcher's parser of replies and proto.launch, held against each other on generated packets, under the sanitizers."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from agentcgroup.proto.launch import (
    MAGIC,
    MOST_BYTES,
    BadMessage,
    Reply,
    Status,
    decode_reply,
    encode_reply,
)
from tests.unit.client.conftest import LAUNCHER_SOURCES


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "reply_probe"
    subprocess.run(
        [
            "cc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all", f"-I{LAUNCHER_SOURCES}", "-o", program, Path(__file__).parent / "reply_probe.c",
            LAUNCHER_SOURCES / "message.c",
        ],
        check=True,
        timeout=100,
    )  # fmt: skip
    return program


def _by_launcher(probe: Path, packets: list[bytes]) -> list[str]:
    stream = b"".join(len(each).to_bytes(2, "little") + each for each in packets)
    done = subprocess.run([probe], input=stream, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def _hex(text: str) -> str:
    return text.encode(errors="surrogateescape").hex()


def _by_proto(packet: bytes) -> str:
    """What the launcher should make of `packet`, in the probe's words."""
    try:
        reply = decode_reply(packet)
    except BadMessage:
        return "bad"
    if any(not name for name, _ in reply.environment + reply.defaults):
        return "bad"
    told = [f"ok {reply.status}", f"call={_hex(reply.call_id)}", f"message={_hex(reply.message)}"]
    told += [f"suggestion={_hex(reply.suggestion)}", *(f"notice={_hex(each)}" for each in reply.notices)]
    told += [f"env={_hex(f'{name}={value}')}" for name, value in reply.environment]
    told += [f"default={_hex(f'{name}={value}')}" for name, value in reply.defaults]
    return " ".join(told)


_values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
_names = st.text("ABCXYZ_", min_size=1, max_size=10)
_replies = st.builds(
    Reply,
    status=st.sampled_from(Status),
    call_id=_values,
    message=_values,
    suggestion=_values,
    notices=st.lists(_values.filter(bool), max_size=4).map(tuple),
    environment=st.lists(st.tuples(_names, _values), max_size=4).map(tuple),
    defaults=st.lists(st.tuples(_names, _values), max_size=4).map(tuple),
)
# Records that are nearly right, in any order, cut anywhere.
_records = st.one_of(
    st.sampled_from(
        [
            b"status=granted",
            b"status=",
            b"status=queued",
            b"call=c1",
            b"message",
            b"=",
            b"",
            b"env=A=b",
            b"x=1",
        ]
    ),
    st.binary(max_size=30),
)


def _mangled(records: list[bytes], magic: bytes, cut: int) -> bytes:
    packet = b"".join(each + b"\0" for each in [magic, *records])
    return packet[: len(packet) - cut] if cut else packet


_packets = st.one_of(
    st.binary(max_size=200),
    st.builds(
        _mangled,
        st.lists(_records, max_size=8),
        st.sampled_from([MAGIC, MAGIC, MAGIC, b"agentcgroup-launch/2", b""]),
        st.integers(0, 3),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.lists(_replies, min_size=1, max_size=30))
def test_the_launcher_reads_every_reply_as_the_daemon_wrote_it(probe: Path, replies: list[Reply]) -> None:
    packets = [encode_reply(each) for each in replies]
    assert _by_launcher(probe, packets) == [_by_proto(each) for each in packets]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packets=st.lists(_packets, min_size=1, max_size=50))
def test_launcher_and_daemon_agree_on_what_is_no_reply(probe: Path, packets: list[bytes]) -> None:
    # A variable without '=' is the one thing that only the launcher rejects: putenv() would take it away.
    expected = [_by_proto(each) for each in packets if b"\0env=" not in each or b"\0env=A=b\0" in each]
    kept = [each for each in packets if b"\0env=" not in each or b"\0env=A=b\0" in each]
    assert [
        line.split(" ")[0] if line.startswith("bad") else line for line in _by_launcher(probe, kept)
    ] == expected


def test_a_packet_of_the_greatest_length_is_read_and_one_byte_more_is_not(probe: Path) -> None:
    head = MAGIC + b"\0status=granted\0message="
    fits = head + b"m" * (MOST_BYTES - len(head) - 1) + b"\0"
    assert len(fits) == MOST_BYTES
    assert [line[:3] for line in _by_launcher(probe, [fits, fits[:-1] + b"m\0"])] == ["ok ", "bad"]
