"""A call as a context manager: declared at the start, run through the real launcher, finished at the end."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2, status_pb2

from agentcgroup.client import (
    AsyncClient,
    Client,
    Decision,
    NotFound,
    Reason,
    Refused,
    Verdict,
    WrongState,
    call_scope,
)
from agentcgroup.proto.launch import Reply, Status
from agentcgroup.proto.v1 import agent_pb2 as agent, types_pb2 as pb
from tests.unit.client.scripted_daemon import ScriptedDaemon
from tests.unit.client.scripted_door import ScriptedDoor


@pytest.fixture
def session(
    agent_daemon: ScriptedDaemon, tmp_path: Path, launcher: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ScriptedDaemon, ScriptedDoor]]:
    """Both sockets of a session that grants everything."""
    monkeypatch.setattr(call_scope, "launcher", lambda: str(launcher))
    agent_daemon.answers |= {
        "DeclareIntent": agent.DeclareIntentResponse(
            answer=pb.Answer(decision=pb.DECISION_GRANTED, call_id="c1")
        ),
        "BeginCall": agent.BeginCallResponse(
            ticket="t0ken", call=pb.Call(id="c1", state=pb.CALL_STATE_RUNNING)
        ),
        "AdjustCall": agent.AdjustCallResponse(
            answer=pb.Answer(decision=pb.DECISION_REFUSED, message="no room")
        ),
        "FinishCall": agent.FinishCallResponse(
            report=pb.Report(call_id="c1", verdict=pb.VERDICT_OK, message="Ended well.")
        ),
    }
    with ScriptedDoor(tmp_path, [Reply(Status.GRANTED, call_id="c1")]) as door:
        yield agent_daemon, door


def test_a_command_runs_through_the_launcher_with_the_calls_ticket(
    session: tuple[ScriptedDaemon, ScriptedDoor],
) -> None:
    daemon, door = session
    with Client(daemon.socket.parent) as client, client.call(memory="2G") as call:
        assert (call.id, call.answer.decision) == ("c1", Decision.GRANTED)
        done = call.run(["sh", "-c", "cat; exit 3"], input="in", capture_output=True, text=True)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (
        ["sh", "-c", "cat; exit 3"],
        3,
        "in",
        "",
    )
    assert (call.report.verdict, call.report.message) == (Verdict.OK, "Ended well.")
    assert [each.request.ticket for each in door.heard] == ["t0ken"]
    assert [name for name, _ in daemon.heard] == ["DeclareIntent", "BeginCall", "FinishCall"]
    assert daemon.requests("FinishCall") == [agent.FinishCallRequest(call_id="c1", exit_code=3)]


async def test_a_command_runs_through_the_launcher_from_asyncio(
    session: tuple[ScriptedDaemon, ScriptedDoor],
) -> None:
    daemon, door = session
    async with AsyncClient(daemon.socket.parent) as client:
        async with client.call(memory="2G") as call:
            done = await call.run(["sh", "-c", "cat; exit 3"], input=b"in", capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"")
        assert call.report.verdict is Verdict.OK
        async with client.call() as call:
            with pytest.raises(subprocess.CalledProcessError):
                await call.run(["false"], check=True)
    assert [each.request.ticket for each in door.heard] == ["t0ken", "t0ken"]
    assert [each.exit_code for each in daemon.requests("FinishCall")] == [3, 1]


def test_a_failing_command_raises_only_when_asked_to(session: tuple[ScriptedDaemon, ScriptedDoor]) -> None:
    daemon, _ = session
    with Client(daemon.socket.parent) as client:
        with client.call() as call:
            assert call.run(["false"]).returncode == 1
        with pytest.raises(subprocess.CalledProcessError), client.call() as call:
            call.run(["false"], check=True)
    # Finished both times, also when the block ended with an error.
    assert [each.exit_code for each in daemon.requests("FinishCall")] == [1, 1]


def test_a_command_that_runs_too_long_for_its_caller_is_killed(
    session: tuple[ScriptedDaemon, ScriptedDoor],
) -> None:
    daemon, _ = session
    with (
        Client(daemon.socket.parent) as client,
        pytest.raises(subprocess.TimeoutExpired),
        client.call() as call,
    ):
        call.run(["sleep", "60"], timeout_s=0.2)
    # Killed by a signal: that is for the kernel to tell, not for the caller.
    assert not daemon.requests("FinishCall")[0].HasField("exit_code")


async def test_a_cancelled_run_leaves_no_process(
    session: tuple[ScriptedDaemon, ScriptedDoor], tmp_path: Path
) -> None:
    daemon, _ = session
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with AsyncClient(daemon.socket.parent) as client:
        with pytest.raises(asyncio.CancelledError):
            async with client.call() as call:
                running = asyncio.ensure_future(call.run(["sh", "-c", f"echo $$ > {fifo}; exec sleep 60"]))
                pid = int(await asyncio.to_thread(fifo.read_text))
                running.cancel()
                await running
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    else:
        assert await asyncio.wait_for(_ended(pidfd), 10)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


async def _ended(pidfd: int) -> bool:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    return True


def test_a_process_of_the_callers_can_be_the_calls(session: tuple[ScriptedDaemon, ScriptedDoor]) -> None:
    daemon, door = session
    with Client(daemon.socket.parent) as client, client.call() as call:
        assert call.begin(os.getpid()).id == "c1"
        answer = call.adjust(memory="4G")
    assert (answer.decision, answer.message) == (Decision.REFUSED, "no room")
    assert daemon.requests("BeginCall")[0].process.pid == os.getpid()
    assert daemon.requests("AdjustCall")[0].intent == pb.Intent(memory_bytes=2**32)
    assert door.heard == []
    assert not daemon.requests("FinishCall")[0].HasField("exit_code")


def test_a_call_that_is_refused_never_starts(session: tuple[ScriptedDaemon, ScriptedDoor]) -> None:
    daemon, _ = session
    daemon.answers["DeclareIntent"] = agent.DeclareIntentResponse(
        answer=pb.Answer(
            decision=pb.DECISION_REFUSED,
            reason=pb.REASON_SESSION_MEMORY,
            message="1 GiB is left",
            suggestion="declare at most 1 GiB",
        )
    )
    with Client(daemon.socket.parent) as client, pytest.raises(Refused) as caught, client.call(memory="2G"):
        pytest.fail("the block must not run")
    assert (caught.value.cause, caught.value.next_step) == ("1 GiB is left", "declare at most 1 GiB")
    assert caught.value.answer.reason is Reason.SESSION_MEMORY
    assert [name for name, _ in daemon.heard] == ["DeclareIntent"]


def test_the_blocks_own_error_is_what_is_seen_when_finishing_fails_too(
    session: tuple[ScriptedDaemon, ScriptedDoor],
) -> None:
    daemon, _ = session
    daemon.answers["FinishCall"] = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such call")
    with Client(daemon.socket.parent) as client:
        with pytest.raises(ZeroDivisionError) as caught, client.call():
            _ = 1 / 0
        with pytest.raises(NotFound, match="no such call"), client.call():
            pass
    assert caught.value.__notes__ == ["and the call c1 could not be finished: no such call"]


def test_a_scope_out_of_its_time_says_what_it_is_waiting_for(
    session: tuple[ScriptedDaemon, ScriptedDoor],
) -> None:
    daemon, _ = session
    with Client(daemon.socket.parent) as client:
        scope = client.call()
        with pytest.raises(WrongState, match="not declared yet"):
            _ = scope.id
        with scope, pytest.raises(WrongState, match="not ended yet"):
            _ = scope.report
