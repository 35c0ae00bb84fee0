"""Failures over real gRPC, as typed exceptions with the cause and the next step; sync and async alike."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from agentcgroup.client import (
    AlreadyExists,
    AsyncClient,
    Client,
    ClientError,
    DaemonError,
    Denied,
    Exhausted,
    HostError,
    IncompatibleDaemon,
    InvalidRequest,
    NotFound,
    OperatorClient,
    TimedOut,
    Unreachable,
    WrongState,
)
from tests.unit.client.scripted_daemon import ScriptedDaemon


def _packed(message: Message) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


def _status(code: int, reason: str, *, field: str = "", next_step: str = "do that") -> status_pb2.Status:
    metadata = {key: value for key, value in (("field", field), ("next_step", next_step)) if value}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="agentcgroup", metadata=metadata)
    message = f"this happened. {next_step}" if next_step else "this happened"
    return status_pb2.Status(code=code, message=message, details=[_packed(info)])


async def _failure(daemon: ScriptedDaemon) -> ClientError:
    """The same failure by the sync and the async client."""
    with Client(daemon.socket.parent) as client, pytest.raises(ClientError) as caught:
        client.limits()
    async with AsyncClient(daemon.socket.parent) as async_client:
        with pytest.raises(ClientError) as caught_async:
            await async_client.limits()
    first, second = caught.value, caught_async.value
    assert (type(first), first.cause, first.next_step, first.field) == (
        type(second), second.cause, second.next_step, second.field,
    )  # fmt: skip
    return first


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, "INVALID", InvalidRequest),
        (code_pb2.NOT_FOUND, "NOT_FOUND", NotFound),
        (code_pb2.ALREADY_EXISTS, "EXISTS", AlreadyExists),
        (code_pb2.FAILED_PRECONDITION, "STATE", WrongState),
        (code_pb2.PERMISSION_DENIED, "DENIED", Denied),
        (code_pb2.RESOURCE_EXHAUSTED, "EXHAUSTED", Exhausted),
        (code_pb2.FAILED_PRECONDITION, "HOST", HostError),
        (code_pb2.INTERNAL, "INTERNAL", DaemonError),
    ],
)
async def test_a_rich_status_becomes_its_kind_with_cause_and_next_step(
    agent_daemon: ScriptedDaemon, code: int, reason: str, kind: type[ClientError]
) -> None:
    agent_daemon.answers["GetLimits"] = _status(code, reason, field="intent.memory_bytes")
    error = await _failure(agent_daemon)
    assert type(error) is kind
    assert (error.cause, error.next_step) == ("this happened", "do that")
    assert (error.field, error.reason) == ("intent.memory_bytes", reason.lower())
    assert str(error) == "this happened. do that"


async def test_what_other_details_say_is_read_too(agent_daemon: ScriptedDaemon) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="name", description="too long")
    agent_daemon.answers["GetLimits"] = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT,
        message="this happened",
        details=[
            _packed(error_details_pb2.BadRequest(field_violations=[violation])),
            _packed(error_details_pb2.LocalizedMessage(locale="en", message="shorten it")),
            any_pb2.Any(type_url="type.example/unknown", value=b"\xff"),
        ],
    )
    error = await _failure(agent_daemon)
    assert (error.cause, error.next_step, error.field) == ("this happened", "shorten it", "name")


async def test_a_status_without_details_is_still_worded(agent_daemon: ScriptedDaemon) -> None:
    agent_daemon.answers["GetLimits"] = grpc.StatusCode.DATA_LOSS
    error = await _failure(agent_daemon)
    assert (type(error), error.cause, error.next_step) == (DaemonError, "as told", "")


async def test_a_method_that_the_daemon_does_not_know_is_a_matter_of_releases(
    agent_daemon: ScriptedDaemon,
) -> None:
    error = await _failure(agent_daemon)
    assert type(error) is IncompatibleDaemon
    assert "same release" in error.next_step


async def test_a_stream_fails_like_a_call(agent_daemon: ScriptedDaemon) -> None:
    agent_daemon.answers["WatchFeedback"] = _status(code_pb2.NOT_FOUND, "NOT_FOUND")
    with Client(agent_daemon.socket.parent) as client, pytest.raises(NotFound, match="do that"):
        next(client.watch("c1"))
    async with AsyncClient(agent_daemon.socket.parent) as async_client:
        with pytest.raises(NotFound, match="do that"):
            await anext(async_client.watch("c1"))


async def test_no_socket_is_unreachable_and_says_which_socket(tmp_path: Path) -> None:
    with Client(tmp_path) as client, pytest.raises(Unreachable) as caught:
        client.limits()
    assert caught.value.cause == f"there is no socket {tmp_path}/agent.sock"
    assert "Start agentcgroupd" in caught.value.next_step
    async with AsyncClient(tmp_path) as async_client:
        with pytest.raises(Unreachable, match="there is no socket"):
            await async_client.limits()


def test_a_socket_that_nobody_listens_at_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "agent.sock"))
    with Client(tmp_path) as client, pytest.raises(Unreachable, match="nobody listens at"):
        client.limits()


def test_what_is_no_socket_is_told_from_a_daemon_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").mkdir()
    with Client(tmp_path) as client, pytest.raises(Unreachable, match="agent.sock is no socket"):
        client.limits()
    (tmp_path / "file").touch()
    with OperatorClient(tmp_path / "file") as operator, pytest.raises(Unreachable) as caught:
        operator.sessions()
    assert caught.value.cause == f"{tmp_path}/file is no socket"
    assert caught.value.next_step.startswith("Name the socket itself")


def test_an_empty_name_is_not_the_working_directory() -> None:
    with pytest.raises(InvalidRequest, match="the name given for socket is empty"):
        OperatorClient("")
    with pytest.raises(InvalidRequest, match="the name given for session_dir is empty"):
        Client("")


def test_a_daemon_that_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "agent.sock"))
        silent.listen()
        with (
            Client(tmp_path, timeout_s=0.2) as client,
            pytest.raises(TimedOut, match="did not answer in time"),
        ):
            client.limits()


def test_a_daemon_that_comes_back_is_found_again(agent_daemon: ScriptedDaemon) -> None:
    from agentcgroup.proto.v1 import agent_pb2
    from tests.unit.client.scripted_daemon import AGENT_SERVICE

    agent_daemon.answers["GetLimits"] = agent_pb2.GetLimitsResponse(session="first")
    with Client(agent_daemon.socket.parent) as client:
        assert client.limits().session == "first"
        agent_daemon.stop()
        agent_daemon.socket.unlink(missing_ok=True)
        with pytest.raises(Unreachable):
            client.limits()
        with ScriptedDaemon(agent_daemon.socket, AGENT_SERVICE) as again:
            again.answers["GetLimits"] = agent_pb2.GetLimitsResponse(session="second")
            for _ in range(300):
                try:
                    assert client.limits().session == "second"
                    return
                except Unreachable:
                    # gRPC pauses between attempts; with our options for a second at most, in all less than the 300.
                    again.cancelled.wait(0.1)
    pytest.fail("the client did not find the daemon that came back")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_socket_that_one_may_not_use_is_denied(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "operator.sock"))
        listener.listen()
        (tmp_path / "operator.sock").chmod(0o600)
        for directory in (tmp_path, *tmp_path.parents):
            if directory.stat().st_uid == os.getuid() and len(directory.parts) > 2:
                directory.chmod(0o755)
        # Loaded before the user changes: the interpreter itself may be where only root can read.
        program = (
            "import os, sys, grpc\n"
            "from agentcgroup.client import OperatorClient, Denied\n"
            "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "try:\n    OperatorClient(sys.argv[1]).host()\n"
            "except Denied as error:\n    print(error.cause)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "operator.sock"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert "uid 65534 may not use" in done.stdout, done.stderr
    assert "belongs to uid 0" in done.stdout
