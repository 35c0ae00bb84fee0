"""The launcher's door: real processes, real packets, descriptors that are not lost."""

import array
import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from agentcgroup.daemon.api import door
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import ExitStatus, Verdict
from agentcgroup.proto.launch import MAGIC, MOST_BYTES, Reply, Request, Status, decode_reply, encode_request
from agentcgroup.proto.v1 import agent_pb2, types_pb2
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon, descriptors, refusal, until

BEGIN = encode_request(Request())


@contextlib.contextmanager
def knock(daemon: Daemon, session: str = "web") -> Iterator[socket.socket]:
    """A connection of this very process to the door."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        connection.connect(str(daemon.socket(session, "launch.sock")))
        yield connection


async def heard(connection: socket.socket) -> bytes:
    """What the door sends, b"" when it hangs up."""
    try:
        return await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(connection, 2 * MOST_BYTES), DEADLINE_S
        )
    except ConnectionResetError:
        return b""


async def say(daemon: Daemon, packet: bytes, fds: tuple[int, ...] = ()) -> Reply:
    with knock(daemon) as connection:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        connection.sendmsg([packet], ancillary)
        return decode_reply(await heard(connection))


async def test_a_tool_is_in_its_call_when_the_launcher_hears_the_answer(daemon: Daemon) -> None:
    await daemon.open("web")
    request = Request(
        {"memory": "1G", "memory-max": "2G", "cpu": "1.5", "pids": "20", "class": "batch"},
        {"step": "test"},
        ("pytest", "-q"),
    )
    caller, reply = await daemon.launch("web", request)
    assert reply.status is Status.GRANTED
    call = daemon.controller.call("web", reply.call_id)
    assert daemon.host.calls[call.id].pids == {caller.pid}
    assert call.pid == caller.pid
    assert call.intent.command == ("pytest", "-q")
    assert call.intent.labels == (("step", "test"),)
    assert dict(reply.environment) == {
        "AGENTCGROUP_CALL_ID": call.id,
        "AGENTCGROUP_SESSION": "web",
        "AGENTCGROUP_MEMORY_BYTES": str(GIB),
        "AGENTCGROUP_MEMORY_MAX_BYTES": str(2 * GIB),
        "AGENTCGROUP_CPU_MILLI": "1500",
        "AGENTCGROUP_PIDS_MAX": "20",
    }
    daemon.host.statuses[caller.pid] = ExitStatus(exit_code=3)
    await caller.exit(3)
    await asyncio.wait_for(daemon.controller.settle(), DEADLINE_S)
    assert [entry.report.verdict for entry in daemon.history.entries] == [Verdict.EXIT_CODE]
    assert daemon.host.calls == {}


async def test_an_uncapped_tool_is_told_what_there_is_and_not_how_many_workers_to_start(
    daemon: Daemon,
) -> None:
    await daemon.open("web")
    caller, reply = await daemon.launch("web")
    told = dict(reply.environment)
    assert told["AGENTCGROUP_CPU_MILLI"] == str(daemon.host.cpu_capacity_milli)
    assert told["AGENTCGROUP_MEMORY_MAX_BYTES"] == str(4 * GIB - 256 * MIB)
    assert [name for name, _ in reply.defaults] == ["GOMEMLIMIT"]
    await caller.exit()


async def test_a_capped_tool_is_told_how_many_workers_make_sense(daemon: Daemon) -> None:
    await daemon.open("web", cpu_milli=1000)
    caller, reply = await daemon.launch("web", Request({"memory": "64M", "memory-max": "100M"}))
    assert dict(reply.environment)["AGENTCGROUP_CPU_MILLI"] == "1000"
    assert dict(reply.defaults) == {
        "OMP_NUM_THREADS": "1",
        "GOMAXPROCS": "1",
        "PYTHON_CPU_COUNT": "1",
        "PYTEST_XDIST_AUTO_NUM_WORKERS": "1",
        "GOMEMLIMIT": f"{90 * MIB}B",
    }
    await caller.exit()


async def test_a_refused_launch_says_why_and_leaves_nothing(daemon: Daemon) -> None:
    await daemon.open("web", memory=GIB)
    before = descriptors()
    _, reply = await daemon.launch("web", Request({"memory": "2G"}))
    assert reply.status is Status.REFUSED
    assert reply.message and reply.suggestion
    assert reply.environment == ()
    assert daemon.controller.calls("web") == []
    assert daemon.host.done["create_call"] == 0
    assert descriptors() <= before + 2  # the pipes to the caller


async def test_a_trimmed_launch_tells_the_true_limits(daemon: Daemon) -> None:
    await daemon.open("web", cpu_milli=500)
    caller, reply = await daemon.launch("web", Request({"cpu": "4"}))
    assert reply.status is Status.TRIMMED
    assert dict(reply.environment)["AGENTCGROUP_CPU_MILLI"] == "500"
    await caller.exit()


async def test_a_launch_inside_a_call_is_nested_in_it(daemon: Daemon) -> None:
    await daemon.open("web")
    outer, outer_reply = await daemon.launch("web", Request({"memory": "1G"}))
    inner = await daemon.caller("web", Request({"memory": "1M"}))
    daemon.host.calls[outer_reply.call_id].pids.add(inner.pid)
    reply = await inner.ask()
    assert daemon.controller.call("web", reply.call_id).parent_id == outer_reply.call_id
    await inner.exit()
    await outer.exit()


async def test_a_process_of_another_session_is_turned_away(daemon: Daemon) -> None:
    await daemon.open("web")
    await daemon.open("api")
    caller = await daemon.caller("web")
    daemon.host.homes[caller.pid] = "api"
    reply = await caller.ask()
    assert reply.status is Status.INVALID
    assert "another session" in reply.message
    assert daemon.controller.calls(None) == []
    assert daemon.controller.counters.request_errors[Kind.DENIED] == 1


async def test_a_ticket_tells_what_runs_unless_the_declaration_did(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    for declared, kept in (((), ("make", "-j4")), (("build",), ("build",))):
        intent = types_pb2.Intent(memory_bytes=MIB, command=declared)
        begun = await agent.BeginCall(agent_pb2.BeginCallRequest(intent=intent, ticket=True))
        caller, reply = await daemon.launch("web", Request(ticket=begun.ticket, arguments=("make", "-j4")))
        assert daemon.controller.call("web", reply.call_id).intent.command == kept
        await caller.exit()


async def test_a_ticket_does_not_lead_out_of_a_call(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    outer, outer_reply = await daemon.launch("web")
    ticket = agent_pb2.BeginCallRequest(intent=types_pb2.Intent(memory_bytes=MIB), ticket=True)
    begun = await agent.BeginCall(ticket)
    inner = await daemon.caller("web", Request(ticket=begun.ticket))
    daemon.host.calls[outer_reply.call_id].pids.add(inner.pid)
    reply = await inner.ask()
    assert reply.status is Status.INVALID
    assert outer_reply.call_id in reply.suggestion
    ticket = agent_pb2.BeginCallRequest(
        intent=types_pb2.Intent(memory_bytes=MIB), ticket=True, parent_call_id=outer_reply.call_id
    )
    begun = await agent.BeginCall(ticket)
    inner = await daemon.caller("web", Request(ticket=begun.ticket))
    daemon.host.calls[outer_reply.call_id].pids.add(inner.pid)
    assert (await inner.ask()).status is Status.GRANTED
    await inner.exit()
    await outer.exit()


async def test_a_call_inside_one_that_has_not_begun_waits_for_it(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    outer = await agent.BeginCall(
        agent_pb2.BeginCallRequest(intent=types_pb2.Intent(memory_bytes=GIB), ticket=True)
    )
    nested = agent_pb2.BeginCallRequest(
        intent=types_pb2.Intent(memory_bytes=MIB), ticket=True, parent_call_id=outer.call.id
    )
    error = await refusal(agent.BeginCall(nested))
    assert (error.reason, error.field) == ("STATE", "parent_call_id")
    assert [call.id for call in daemon.controller.calls("web")] == [outer.call.id]
    caller, _ = await daemon.launch("web", Request(ticket=outer.ticket))
    inner, reply = await daemon.launch("web", Request(ticket=(await agent.BeginCall(nested)).ticket))
    assert reply.status is Status.GRANTED
    await inner.exit()
    await caller.exit()


async def test_a_pidfd_sent_along_is_placed_instead_of_the_sender(daemon: Daemon) -> None:
    await daemon.open("web")
    pid = daemon.process("web")
    caller = await daemon.caller("web", place=pid)
    reply = await caller.ask()
    assert reply.status is Status.GRANTED
    assert daemon.host.calls[reply.call_id].pids == {pid}
    await caller.exit()
    await daemon.controller.finish("web", reply.call_id, None)


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (b"x", "cut off"),
        (b"agentcgroup-launch/9\0op=begin\0", "different releases"),
        (BEGIN[:-1], "cut off"),
        (BEGIN + b"x" * MOST_BYTES, "more than"),
        (BEGIN + b"\0" * 10, "no '='"),
        (MAGIC + b"\0op=launch\0", "op=launch"),
        (encode_request(Request({"memory": "many"})), "--memory"),
        (encode_request(Request({"memory": "0"})), "--memory is 0"),
        (encode_request(Request({"memory": "2G", "memory-max": "1G"})), "--memory-max"),
        (encode_request(Request({"class": "\udcff"})), "--class"),
        (encode_request(Request(labels={"k": "\udcff"})), "--label"),
        (encode_request(Request(labels={"k": "\x1b[2J"})), "--label"),
        (encode_request(Request(ticket="wrong")), "ticket"),
        (encode_request(Request(ticket="")), "ticket"),
    ],
)
async def test_a_bad_packet_is_answered_and_changes_nothing(
    daemon: Daemon, packet: bytes, words: str
) -> None:
    await daemon.open("web")
    before = descriptors()
    reply = await say(daemon, packet)
    assert reply.status is Status.INVALID
    assert words in reply.message
    assert descriptors() == before
    assert daemon.controller.calls("web") == []
    assert daemon.controller.counters.request_errors.total() == 1
    await daemon.is_well()


async def test_descriptors_that_come_along_are_closed_whatever_they_are(daemon: Daemon) -> None:
    await daemon.open("web")
    dead = daemon.dead_pidfd()
    null = os.open("/dev/null", os.O_RDONLY)
    before = descriptors()
    try:
        for fds, words in (
            ((null,), "no pidfd"),
            ((dead,), "ended already"),
            ((null, null), "2 descriptors"),
            ((null,) * 4, "4 descriptors"),
            ((null,) * 5, "more than 4 descriptors"),
            ((null,) * 200, "more than 4 descriptors"),
        ):
            reply = await say(daemon, BEGIN, fds)
            assert reply.status is Status.INVALID
            assert words in reply.message
        assert (await say(daemon, b"garbage", (null, null))).status is Status.INVALID
        # Descriptors without a byte: not even a message.
        with knock(daemon) as connection:
            connection.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null]))])
            assert decode_reply(await heard(connection)).status is Status.INVALID
        assert descriptors() == before
    finally:
        os.close(null)
        os.close(dead)


async def test_the_daemon_itself_and_init_are_not_placed(daemon: Daemon) -> None:
    await daemon.open("web")
    for pid in (1, os.getpid()):
        pidfd = os.pidfd_open(pid)
        try:
            reply = await say(daemon, BEGIN, (pidfd,))
        finally:
            os.close(pidfd)
        assert reply.status is Status.INVALID
        assert "not to be moved" in reply.message
    assert daemon.controller.calls("web") == []


async def test_a_packet_may_come_after_the_connection(daemon: Daemon) -> None:
    await daemon.open("web")
    with knock(daemon) as connection:
        await asyncio.sleep(0.05)
        connection.send(encode_request(Request({"memory": "x"})))
        assert decode_reply(await heard(connection)).status is Status.INVALID


async def test_who_hangs_up_is_forgotten_at_any_moment(daemon: Daemon) -> None:
    await daemon.open("web")
    before = descriptors()
    for packet in (None, b"", BEGIN[:5], encode_request(Request({"memory": "x"}))):
        for pause_s in (0, 0.01):
            with knock(daemon) as connection:
                await asyncio.sleep(pause_s)
                if packet is not None:
                    connection.send(packet)
    assert (await say(daemon, b"?")).status is Status.INVALID
    await until(lambda: descriptors() == before)


async def test_who_says_nothing_is_shown_out(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    await daemon.open("web")
    before = descriptors()
    monkeypatch.setattr(door, "SILENCE_S", 0.05)
    with knock(daemon) as connection:
        assert await heard(connection) == b""
    assert descriptors() <= before


async def test_the_silent_do_not_keep_others_out(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.open("web")
    monkeypatch.setattr(door, "MOST_WAITING", 3)
    caplog.set_level("INFO", "agentcgroup.api")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(knock(daemon)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert await heard(stack.enter_context(knock(daemon))) == b""
        # Who speaks at once needs no place to wait.
        assert (await say(daemon, b"?")).status is Status.INVALID
        silent[0].send(b"?")
        assert decode_reply(await heard(silent[0])).status is Status.INVALID
    assert daemon.controller.counters.request_errors[Kind.EXHAUSTED] == 1
    await daemon.controller.remove_session("web", "")
    assert "turned_away=1" in caplog.text


async def test_without_free_descriptors_callers_wait_and_are_then_served(daemon: Daemon) -> None:
    await daemon.open("web")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    filling.append(os.dup(connection.fileno()))
            connection.connect(str(daemon.socket("web", "launch.sock")))
            connection.send(b"?")
            await asyncio.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in filling:
                os.close(fd)
        assert decode_reply(await heard(connection)).status is Status.INVALID


async def test_what_the_kernel_will_not_do_is_a_refusal_with_its_words(daemon: Daemon) -> None:
    await daemon.open("web")
    daemon.host.failures["create_call"] = RequestError(
        Kind.HOST, "mkdir: No space left on device", "make room"
    )
    before = descriptors()
    _, reply = await daemon.launch("web")
    assert reply.status is Status.REFUSED
    assert (reply.message, reply.suggestion) == ("mkdir: No space left on device", "make room")
    assert daemon.controller.calls("web") == []
    assert descriptors() <= before + 2


async def test_a_bug_is_a_refusal_with_an_incident(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.open("web")

    def broken(pid: int) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(daemon.host, "locate", broken)
    reply = await say(daemon, BEGIN)
    assert reply.status is Status.REFUSED
    assert "secret" not in reply.message
    assert reply.message.split("incident ")[1].rstrip(")") in caplog.text
    assert daemon.controller.counters.internal_errors == 1


async def test_a_closed_door_hangs_up_on_everybody(daemon: Daemon) -> None:
    await daemon.open("web")
    before = descriptors()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(knock(daemon)) for _ in range(3)]
        await asyncio.sleep(0.02)
        await daemon.controller.remove_session("web", "")
        for connection in waiting:
            assert await heard(connection) == b""
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)), knock(daemon):
            pass
    assert descriptors() < before


async def test_many_launches_at_once_are_all_served(daemon: Daemon) -> None:
    await daemon.open("web")
    launches = await asyncio.gather(*(daemon.launch("web", Request({"memory": "16M"})) for _ in range(24)))
    assert {reply.status for _, reply in launches} == {Status.GRANTED}
    assert len(daemon.controller.calls("web")) == 24
    await asyncio.gather(*(caller.exit() for caller, _ in launches))
    await asyncio.wait_for(daemon.controller.settle(), DEADLINE_S)
    assert len(daemon.history.entries) == 24
    assert daemon.controller.counters.placement_s
