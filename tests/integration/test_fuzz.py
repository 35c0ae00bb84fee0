"""Whatever bytes arrive on whichever socket: an answer or a clear error, and a daemon that goes on.

The daemon runs in a thread of its own, as in production it runs in a process of its own; requests are made
from the descriptors, so that a new RPC or field is covered when it is added.
"""

import array
import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings, strategies as st

from agentcgroup.daemon.config import Config, DaemonConfig, QueueConfig
from agentcgroup.daemon.controller import ending
from agentcgroup.daemon.errors import Kind
from agentcgroup.daemon.model import CallState, Intent, ProcessRef
from agentcgroup.proto.launch import INTENT_KEYS, MAGIC, MOST_BYTES, Status, decode_reply
from agentcgroup.proto.v1 import agent_pb2, operator_pb2
from tests.integration.harness import GIB, Daemon, descriptors

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SERVICES = (
    (operator_pb2.DESCRIPTOR.services_by_name["OperatorService"], "operator.sock"),
    (agent_pb2.DESCRIPTOR.services_by_name["AgentService"], "sessions/fuzzed/agent.sock"),
)
METHODS = [
    pytest.param(method, path, id=f"{service.name}.{method.name}")
    for service, path in SERVICES
    for method in service.methods
]


class Running:
    """A daemon in a thread, with two sessions, one of which the fuzzing is about."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        # Long enough to be queued, short enough for a caller to be answered while somebody looks.
        queue = QueueConfig(wait=50, wait_max=50)
        self.daemon = Daemon(run_dir, Config(daemon=DaemonConfig(run_dir=str(run_dir)), queue=queue))
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="daemon", daemon=True)

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def start(self) -> None:
        self._thread.start()
        self.do(self.daemon.start())
        self.do(self.refill())

    async def refill(self) -> None:
        """The sessions, again when the fuzzing removed one, and in one a declared and a running call."""
        controller = self.daemon.controller
        for name in {"fuzzed", "witness"} - {session.name for session in controller.sessions()}:
            await self.daemon.open(name, GIB)
        states = {call.state for call in controller.calls("fuzzed")}
        small = Intent(memory_bytes=1 << 20)
        if CallState.DECLARED not in states:
            controller.declare("fuzzed", small, wait_ms=0)
        if CallState.RUNNING not in states:
            call_id = controller.declare("fuzzed", small, wait_ms=0).call_id
            if call_id:
                controller.begin("fuzzed", call_id, ProcessRef(self.daemon.process("fuzzed")))

    def live_call(self, choice: int) -> str:
        """The id of one of the live calls, or of none."""
        calls = self.daemon.controller.calls("fuzzed")
        return calls[choice % len(calls)].id if calls else "c-none"

    def stop(self) -> None:
        self.do(self.daemon.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()

    def channel(self, path: str) -> Any:
        """For raw bytes, which the types of grpc do not know."""
        return grpc.insecure_channel(f"unix:{self.run_dir / path}")

    def check(self) -> None:
        """Nothing broke: no incident was counted, and another session is served."""
        assert self.daemon.controller.counters.internal_errors == 0
        self.do(self.refill())
        with self.channel("sessions/witness/agent.sock") as channel:
            limits = channel.unary_unary("/agentcgroup.v1.AgentService/GetLimits")(b"", timeout=60)
        assert agent_pb2.GetLimitsResponse.FromString(limits).session == "witness"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    place = Path(tempfile.mkdtemp(prefix="acg-"))
    served = Running(place / "run")
    served.start()
    yield served
    # Calls that were begun for this very process are ended, it is not: nobody tells its status.
    with patch.object(ending, "STATUS_DEADLINE_S", 0.0):
        served.stop()
    shutil.rmtree(place)


# ---- requests from descriptors

LIVE = "(a live call)"

_INTERESTING = {
    "name": ["fuzzed"] * 8 + ["", "a/b", "..", "x" * 300, "new"],
    "session": ["fuzzed"] * 4 + ["witness", "", "none"],
    # LIVE is filled in with a call that exists when the request is sent.
    "call_id": [LIVE] * 8 + ["", "c-0000000000", "c-" + "x" * 1000],
    "parent_call_id": ["", LIVE],
    "page_token": ["", "1.c-1", "zzz", "100"],
}
_KINDS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.sampled_from([0, 1, 3, 255, -1, 2**31 - 1, -(2**31)])
    | st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([1, 10, 50, 100, 100, 1000, 1000, 0, 2**32 - 1])
    | st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([1 << 10, 1 << 20, 1 << 25, 1 << 28, 0, 1 << 62, 2**64 - 1])
    | st.integers(0, 2**64 - 1),
    # Mostly of a meaning, else nothing would get past the first check.
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 1, 2, 3, -1, 99]),
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.name in _INTERESTING:
        return st.sampled_from(_INTERESTING[field.name])
    if field.name == "pid":
        # Never a process that lives: it would be killed with its call.
        return st.sampled_from([0, -1, 1, 2, 4_194_305, 2**31 - 1])
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        assert field.message_type is not None
        return messages(field.message_type)
    return _KINDS[field.type]


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """A message of any shape: each field absent, or of any value of its type."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        absent_in_4 = 1 if field.message_type is not None else 3
        if field.name not in _INTERESTING and draw(st.integers(0, 3)) < absent_in_4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, value in draw(
                st.dictionaries(st.text("abAB.", max_size=4), st.text(max_size=8), max_size=3)
            ).items():
                with contextlib.suppress(UnicodeEncodeError):
                    getattr(message, field.name)[key] = value
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field), max_size=3)))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(draw(values(field)))
        else:
            setattr(message, field.name, draw(values(field)))
    return message


def call(running: Running, method: MethodDescriptor, path: str, request: bytes) -> grpc.StatusCode:
    """Calls `method` with raw bytes; a stream is read for one message."""
    assert method.containing_service is not None
    full = f"/{method.containing_service.full_name}/{method.name}"
    with running.channel(path) as channel:
        try:
            if method.server_streaming:
                stream = channel.unary_stream(full)(request, timeout=60)
                next(stream)
                stream.cancel()
            else:
                channel.unary_unary(full)(request, timeout=60)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_any_request_is_answered(running: Running, method: MethodDescriptor, path: str) -> None:
    assert method.input_type is not None

    @FUZZ
    @given(messages(method.input_type), st.integers(0, 3))
    def check(request: Message, choice: int) -> None:
        running.do(running.refill())
        for name in ("call_id", "parent_call_id"):
            if getattr(request, name, "") == LIVE:
                setattr(request, name, running.live_call(choice))
        assert call(running, method, path, request.SerializeToString()) in EXPECTED

    check()
    running.check()


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_any_bytes_are_answered(running: Running, method: MethodDescriptor, path: str) -> None:
    @FUZZ
    @given(st.binary(max_size=200) | st.binary(max_size=20).map(lambda data: data * 1000))
    def check(request: bytes) -> None:
        running.do(running.refill())
        assert call(running, method, path, request) in EXPECTED

    check()
    running.check()


@pytest.mark.parametrize("path", ["operator.sock", "sessions/fuzzed/agent.sock"])
def test_any_bytes_instead_of_http2_are_survived(running: Running, path: str) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    @FUZZ
    @given(st.binary(max_size=300), st.booleans())
    def check(data: bytes, begins_well: bool) -> None:
        with (
            socket.socket(socket.AF_UNIX) as connection,
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            connection.connect(str(running.run_dir / path))
            connection.sendall((preface if begins_well else b"") + data)

    running.do(running.refill())
    check()
    running.check()


# ---- the launcher's door

_RECORDS = st.one_of(
    st.binary(max_size=30).map(lambda data: data.replace(b"\0", b"")),
    st.tuples(
        st.sampled_from(
            [key.encode() for key in sorted(INTENT_KEYS)] + [b"label", b"ticket", b"arg", b"op"]
        ),
        st.binary(max_size=20).map(lambda data: data.replace(b"\0", b""))
        | st.sampled_from(
            [b"0", b"1", b"-1", b"1G", b"9" * 400, b"begin", b"batch", b"stop", b"a=b", b"1h" * 50 + b"!"]
        ),
    ).map(b"=".join),
)
_PACKETS = st.one_of(
    st.binary(max_size=400),
    st.lists(_RECORDS, max_size=12).map(lambda records: b"\0".join([MAGIC, b"op=begin", *records, b""])),
    st.lists(_RECORDS, max_size=12).map(lambda records: b"\0".join([MAGIC, *records])),
    st.integers(1, 3).map(
        lambda times: b"\0".join([MAGIC, b"op=begin", b"arg=" + b"x" * MOST_BYTES * times, b""])
    ),
)


def test_any_packet_with_any_descriptors_is_answered_or_hung_up_on(running: Running) -> None:
    running.do(running.refill())
    null = os.open("/dev/null", os.O_RDONLY)
    before = descriptors()
    try:

        @settings(FUZZ, max_examples=300)
        @given(_PACKETS, st.integers(0, 6), st.booleans())
        def check(packet: bytes, descriptors_sent: int, listens: bool) -> None:
            fds = array.array("i", [null] * descriptors_sent)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(60)
                connection.connect(str(running.run_dir / "sessions/fuzzed/launch.sock"))
                connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
                if not listens:
                    return
                heard = connection.recv(2 * MOST_BYTES)
            assert len(heard) <= MOST_BYTES
            if heard:
                reply = decode_reply(heard)
                if fds or len(packet) > MOST_BYTES:
                    assert reply.status is Status.INVALID
            else:
                assert not packet

        check()
    finally:
        os.close(null)
    running.check()
    # Calls that a good packet began for this very process.
    assert descriptors() <= before + len(running.daemon.controller.calls("fuzzed"))
    assert running.daemon.controller.counters.request_errors[Kind.INVALID] > 0
