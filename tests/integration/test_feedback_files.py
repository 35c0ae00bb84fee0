"""Feedback as files: what is in them, when, and that their owner cannot turn the daemon's hand against others."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agentcgroup.daemon.api import feedback_file
from agentcgroup.daemon.model import BudgetRequest, ExitStatus, Intent, Priority
from agentcgroup.proto.launch import Request
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon, until
from tests.integration.test_adoption import next_daemon

NOBODY = 65534


async def document(daemon: Daemon, holds: Any) -> dict[str, Any]:
    """feedback.json of session web, as soon as `holds` of it is true."""
    path = daemon.socket("web", "feedback.json")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found: dict[str, Any] = json.loads(path.read_text())
            if holds(found):
                return found
            await asyncio.sleep(0.01)


async def limited(daemon: Daemon, memory: str = "96M") -> str:
    """A running call that is about to be stopped at its limit."""
    _, reply = await daemon.launch(
        "web", Request({"memory": "64M", "memory-max": memory}, arguments=("make",))
    )
    machine = daemon.host.calls[reply.call_id]
    await until(lambda: machine.is_watched)
    daemon.host.use_memory(reply.call_id, 95 * MIB)
    return reply.call_id


async def test_a_calm_session_has_calm_files(daemon: Daemon) -> None:
    await daemon.open("web")
    caller, _ = await daemon.launch("web")
    daemon.host.statuses[caller.pid] = ExitStatus(exit_code=0)
    await caller.exit()
    await asyncio.wait_for(daemon.controller.settle(), DEADLINE_S)
    found = await document(daemon, lambda found: True)
    assert found == {"session": "web", "level": "ample", "calls": {}, "messages": []}
    assert daemon.socket("web", "feedback.txt").read_text() == "All is calm.\n"


async def test_what_happens_to_a_call_is_in_the_files_while_it_lives_and_the_end_afterwards(
    daemon: Daemon,
) -> None:
    await daemon.open("web")
    call_id = await limited(daemon)
    found = await document(daemon, lambda found: found["calls"])
    assert found["level"] == "tight"
    (message,) = found["messages"]
    assert found["calls"] == {call_id: message}
    assert (message["kind"], message["rung"]) == ("warning", "warned")
    assert message["memory_to_ask_bytes"] == 192 * MIB and message["memory_max_bytes"] == 96 * MIB
    assert f"agentcg call set {call_id}" in message["advice"]
    await daemon.controller.kill_call(call_id, "enough")
    found = await document(daemon, lambda found: not found["calls"])
    assert [each["kind"] for each in found["messages"]] == ["warning", "ended"]
    assert found["messages"][-1]["verdict"] == "operator" and found["level"] == "ample"
    assert "enough" in daemon.socket("web", "feedback.txt").read_text()


async def test_what_an_operator_does_to_the_session_is_in_the_files(daemon: Daemon) -> None:
    await daemon.open("web")
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=2 * GIB), None)
    daemon.controller.drain("kernel update", None)
    found = await document(daemon, lambda found: len(found["messages"]) == 2)
    assert [each["level"] for each in found["messages"]] == ["tight", "critical"]
    text = daemon.socket("web", "feedback.txt").read_text()
    assert "2048 MiB in all" in text and "kernel update" in text and "save it" in text
    daemon.controller.resume()
    found = await document(daemon, lambda found: len(found["messages"]) == 3)
    assert "takes new calls again" in found["messages"][-1]["message"]
    daemon.controller.update_session("web", BudgetRequest(), Priority.LOW)
    daemon.controller.update_session("web", BudgetRequest(), Priority.LOW)
    daemon.controller.update_session("web", BudgetRequest(memory_max_bytes=3 * GIB), None)
    found = await document(daemon, lambda found: "3072" in found["messages"][-1]["message"])
    assert [each["message"] for each in found["messages"][3:]] == [
        "The operator changed the session's priority from normal to low.",
        "The operator changed the session's limits: 3072 MiB in all.",
    ]


async def test_the_files_hold_a_bounded_number_of_messages(daemon: Daemon) -> None:
    await daemon.open("web")
    for _ in range(feedback_file.MOST_MESSAGES + 3):
        daemon.controller.declare("web", Intent(memory_bytes=100 * GIB))
    found = await document(daemon, lambda found: len(found["messages"]) == feedback_file.MOST_MESSAGES)
    assert {each["kind"] for each in found["messages"]} == {"refused"}


async def test_a_call_that_has_left_the_queue_is_in_no_file_as_one_that_lives(daemon: Daemon) -> None:
    await daemon.open("web")
    controller = daemon.controller
    room = controller.session("web").budget.calls_memory_bytes
    holder = controller.declare("web", Intent(memory_bytes=room))
    queued = [controller.declare("web", Intent(memory_bytes=room), wait_ms=60_000) for _ in range(3)]
    found = await document(daemon, lambda found: len(found["calls"]) == 3)
    assert {each["kind"] for each in found["calls"].values()} == {"queued"}
    controller.give_back("web", queued[0].call_id)
    found = await document(daemon, lambda found: queued[0].call_id not in found["calls"])
    assert "left the queue" in found["messages"][-1]["message"], "nor does a stream leave it at that"
    await controller.kill_call(queued[1].call_id, "enough")
    await document(daemon, lambda found: [*found["calls"]] == [queued[2].call_id])
    # The last one gets its turn: that it waits is not true any more.
    controller.give_back("web", holder.call_id)
    await document(daemon, lambda found: found["calls"] == {})


async def test_the_level_is_that_of_now(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await limited(daemon)
    assert (await document(daemon, lambda found: found["calls"]))["level"] == "tight"
    # A refusal says nothing about how bad it is, and so does not make it better.
    daemon.controller.adjust("web", call_id, Intent(memory_max_bytes=100 * GIB, memory_bytes=100 * GIB))
    found = await document(daemon, lambda found: found["calls"][call_id]["kind"] == "refused")
    assert found["level"] == found["calls"][call_id]["level"] == "tight"
    # That it gave memory back is not worth a message, but it is as calm as before.
    daemon.host.use_memory(call_id, 10 * MIB)
    daemon.controller._look_soon(daemon.controller.call("web", call_id))
    found = await document(daemon, lambda found: not found["calls"])
    assert found["level"] == "ample" and [each["kind"] for each in found["messages"]] == [
        "warning",
        "refused",
    ]


async def test_what_was_said_before_is_there_after_the_next_daemon_has_taken_over(daemon: Daemon) -> None:
    await daemon.open("web")
    call_id = await limited(daemon)
    before = await document(daemon, lambda found: found["messages"])
    async with next_daemon(daemon) as after:
        found = await document(after, lambda found: True)
        assert found["messages"][:1] == before["messages"] and before["messages"][0]["call_id"] == call_id
        after.controller.drain("kernel update", None)
        found = await document(after, lambda found: "kernel update" in found["messages"][-1]["message"])
        numbers = [each["sequence"] for each in found["messages"]]
        assert numbers == sorted(set(numbers)), "who reads on from a number misses nothing"
        text = after.socket("web", "feedback.txt").read_text().splitlines()
        assert call_id in text[0] and "kernel update" in text[-1]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[" * 100_000,
        b'{"messages": [{"sequence": -1, "at_ms": 1, "kind": "warning"}]}',
        b'{"messages": [{"sequence": 1, "at_ms": 9007199254740991, "kind": "warning"}]}',
        b'{"messages": [{"sequence": 18446744073709551616, "at_ms": 1, "kind": "warning"}]}',
        b'{"messages": [{"sequence": 1, "at_ms": 1, "kind": "triumph"}]}',
        b'{"messages": [], "filler": "' + b"x" * (2 << 20) + b'"}',
        None,
    ],
    ids=["cut", "deep", "negative", "late", "large", "kind", "long", "fifo"],
)
async def test_a_file_that_its_owner_has_changed_is_begun_anew(
    daemon: Daemon, content: bytes | None
) -> None:
    await daemon.open("web")
    path = daemon.socket("web", "feedback.json")
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    async with next_daemon(daemon) as after:
        found = await document(after, lambda found: True)
        assert found == {"session": "web", "level": "ample", "calls": {}, "messages": []}
        await after.is_well()


async def test_a_container_has_the_files_where_its_sockets_are(daemon: Daemon, tmp_path: Path) -> None:
    await daemon.open("web")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    # Of a session that had the same mount before.
    old = {"sequence": 7, "at_ms": 1, "kind": "session", "message": "long ago"}
    (mounted / "feedback.json").write_text(json.dumps({"messages": [old]}))
    daemon.api.show_feedback("web", mounted)
    call_id = await limited(daemon)
    found = await document(daemon, lambda found: found["calls"])
    await until(lambda: json.loads((mounted / "feedback.json").read_text()) == found)
    assert found["messages"][0]["call_id"] == call_id and len(found["messages"]) == 1
    mode = stat.S_IMODE((mounted / "feedback.txt").stat().st_mode)
    assert mode == 0o644, "whoever runs in the container may read it"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
async def test_the_files_belong_to_the_sessions_user_and_follow_no_link_of_theirs(
    daemon: Daemon, tmp_path: Path
) -> None:
    await daemon.controller.open_session("web", BudgetRequest(), owner_uid=NOBODY, owner_gid=NOBODY)
    path = daemon.socket("web", "feedback.json")
    assert path.stat().st_uid == NOBODY and stat.S_IMODE(path.stat().st_mode) == 0o600
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("feedback.json", "feedback.txt"):
        daemon.socket("web", name).unlink()
        daemon.socket("web", name).symlink_to(victim)
    call_id = await limited(daemon)
    await until(lambda: not path.is_symlink())
    found = await document(daemon, lambda found: call_id in found["calls"])
    assert found["calls"] and victim.read_text() == "untouched" and victim.stat().st_uid == 0
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "agent.sock",
        "feedback.json",
        "feedback.txt",
        "launch.sock",
    ], "no temporary file is left"


@pytest.mark.skipif(os.geteuid() != 0, reason="moves a directory of the daemon's")
async def test_a_file_that_cannot_be_written_harms_nobody(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.open("web")
    for name in ("feedback.json", "feedback.txt"):
        daemon.socket("web", name).unlink()
        (daemon.socket("web", name) / "full").mkdir(parents=True)
    await limited(daemon)
    await until(lambda: "cannot be written" in caplog.text)
    await daemon.is_well()
