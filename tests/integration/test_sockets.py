"""The sockets as files: who may reach them, what is left of them, and what stands in their way."""

import asyncio
import grp
import os
import socket
import stat
import sys
from pathlib import Path

import grpc
import pytest

from agentcgroup.client import AsyncClient, Unreachable
from agentcgroup.daemon.api import sockets
from agentcgroup.daemon.config import Config, ConfigError, DaemonConfig
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import BudgetRequest
from agentcgroup.proto.v1 import agent_pb2
from tests.integration.harness import GIB, Daemon, descriptors

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
NOBODY = 65534


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


# It becomes the user itself: with `user=` this process, with gRPC's threads, would be forked rather than vforked, and its
# at-fork handlers run; and an interpreter that the user may not read would not start.
KNOCK = """
import os, socket, sys
os.setgroups([])
os.setresgid(*[int(sys.argv[3])] * 3)
os.setresuid(*[int(sys.argv[3])] * 3)
socket.socket(socket.AF_UNIX, int(sys.argv[2])).connect(sys.argv[1])
"""


async def knock(path: Path, kind: socket.SocketKind, uid: int) -> tuple[int, bytes]:
    """Connects to the socket as the user and group `uid`: the exit status, and what was said on the standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", "-c", KNOCK, str(path), str(int(kind)), str(uid)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors


def test_a_place_where_sockets_are_bound_is_never_used_again(run_dir: Path) -> None:
    """Whoever was bound there unlinks that path when it closes, at whatever time."""
    (run_dir / sockets.STAGING).mkdir(parents=True)
    first = sockets.make_staging_dir(run_dir)
    first.rmdir()
    assert sockets.make_staging_dir(run_dir) != first


async def test_a_new_client_reaches_a_session_made_anew_while_an_old_one_still_pauses(
    daemon: Daemon,
) -> None:
    session = await daemon.open("web")
    async with AsyncClient(session.socket_dir) as old:
        await old.limits()
        await daemon.controller.remove_session("web", "")
        for _ in range(5):
            with pytest.raises(Unreachable):
                await old.limits()
        await daemon.open("web")
        async with AsyncClient(session.socket_dir) as new:
            assert (await new.limits()).session == "web"


async def test_the_operators_socket_is_roots_alone(daemon: Daemon) -> None:
    assert mode(daemon.run_dir / "operator.sock") == "srw-------"
    assert mode(daemon.run_dir) == "drwxr-xr-x"
    assert mode(daemon.run_dir / "sessions") == "drwx--x--x"


@needs_root
async def test_the_operators_socket_is_given_to_the_configured_group(run_dir: Path) -> None:
    group = grp.getgrgid(NOBODY).gr_name
    daemon = Daemon(run_dir, Config(daemon=DaemonConfig(run_dir=str(run_dir), operator_group=group)))
    await daemon.start()
    try:
        assert mode(run_dir / "operator.sock") == "srw-rw----"
        assert owner(run_dir / "operator.sock") == (0, NOBODY)
    finally:
        await daemon.stop()


async def test_a_group_that_does_not_exist_is_a_clear_error(run_dir: Path) -> None:
    daemon = Daemon(run_dir, Config(daemon=DaemonConfig(run_dir=str(run_dir), operator_group="nosuchgroup")))
    with pytest.raises(ConfigError, match="daemon.operator_group: there is no group 'nosuchgroup'"):
        await daemon.start()


@needs_root
async def test_a_sessions_sockets_are_its_owners_alone(daemon: Daemon) -> None:
    await daemon.controller.open_session("web", BudgetRequest(), owner_uid=NOBODY, owner_gid=NOBODY)
    path = daemon.run_dir / "sessions" / "web"
    assert (mode(path), owner(path)) == ("drwx------", (NOBODY, NOBODY))
    for name in ("agent.sock", "launch.sock"):
        assert (mode(path / name), owner(path / name)) == ("srw-------", (NOBODY, NOBODY))


@needs_root
@pytest.mark.parametrize(("uid", "gets_in"), [(NOBODY, True), (NOBODY - 1, False)])
async def test_the_kernel_lets_the_owner_in_and_nobody_else(daemon: Daemon, uid: int, gets_in: bool) -> None:
    # The test's own directory is closed to others, as mkdtemp makes it.
    daemon.run_dir.parent.chmod(0o711)
    await daemon.controller.open_session("web", BudgetRequest(), owner_uid=NOBODY, owner_gid=NOBODY)
    for name, kind in (("agent.sock", socket.SOCK_STREAM), ("launch.sock", socket.SOCK_SEQPACKET)):
        status, errors = await knock(daemon.socket("web", name), kind, uid)
        assert (status == 0) is gets_in, (status, errors)
        assert gets_in or b"PermissionError" in errors, (status, errors)
    status, errors = await knock(daemon.run_dir / "operator.sock", socket.SOCK_STREAM, uid)
    assert status == 1 and b"PermissionError" in errors, (status, errors)


async def test_a_umask_of_0_opens_nothing(run_dir: Path) -> None:
    before = os.umask(0)
    daemon = Daemon(run_dir)
    try:
        await daemon.start()
        await daemon.open("web")
        assert mode(run_dir) == "drwxr-xr-x"
        assert mode(run_dir / "operator.sock") == "srw-------"
        assert mode(run_dir / "sessions" / "web") == "drwx------"
        assert mode(run_dir / "sessions" / "web" / "launch.sock") == "srw-------"
    finally:
        os.umask(before)
        await daemon.stop()


async def test_what_a_dead_daemon_left_is_removed(run_dir: Path) -> None:
    stale = run_dir / "sessions" / "web"
    stale.mkdir(parents=True)
    (stale / "something").write_text("of the owner's")
    (stale / "link").symlink_to("/etc")
    for name in ("agent.sock", "launch.sock", "../../operator.sock"):
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(stale / name))
    daemon = Daemon(run_dir)
    await daemon.start()
    try:
        assert list((run_dir / "sessions").iterdir()) == []
        assert "passwd" in os.listdir("/etc")
        await daemon.open("web")
        assert sorted(each.name for each in stale.iterdir()) == [
            *("agent.sock", "feedback.json", "feedback.txt", "launch.sock")
        ]
        limits = await daemon.agent("web").GetLimits(agent_pb2.GetLimitsRequest())
        assert limits.session == "web"
    finally:
        await daemon.stop()


async def test_a_file_in_the_place_of_the_operators_socket_is_not_deleted(run_dir: Path) -> None:
    os.mkdir(run_dir)
    (run_dir / "operator.sock").write_text("precious")
    with pytest.raises(ConfigError, match="is no socket: move it away"):
        await Daemon(run_dir).start()
    assert (run_dir / "operator.sock").read_text() == "precious"


async def test_a_run_dir_that_others_may_write_is_refused(run_dir: Path) -> None:
    os.mkdir(run_dir)
    os.chmod(run_dir, 0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        await Daemon(run_dir).start()


async def test_a_run_dir_with_spaces_and_signs_works(run_dir: Path) -> None:
    strange = run_dir.with_name("a b%20c#d?")
    daemon = Daemon(strange)
    await daemon.start()
    try:
        await daemon.open("web")
        assert (strange / "sessions" / "web" / "agent.sock").is_socket()
        channel = grpc.aio.insecure_channel(sockets.address(strange / "operator.sock"))
        async with channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
    finally:
        await daemon.stop()


async def test_a_name_too_long_for_a_socket_is_refused_with_what_fits(run_dir: Path) -> None:
    deep = run_dir.with_name("r" * 40)
    daemon = Daemon(deep)
    await daemon.start()
    try:
        with pytest.raises(RequestError) as caught:
            await daemon.open("x" * 63)
        assert (caught.value.kind, caught.value.field) == (Kind.INVALID, "name")
        fits = int(caught.value.next_step.split("at most ")[1].split()[0])
        await daemon.open("x" * fits)
        assert daemon.host.sessions.keys() == {"x" * fits}
    finally:
        await daemon.stop()


async def test_what_the_owner_put_beside_the_sockets_goes_with_them(daemon: Daemon, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("not the session's")
    await daemon.open("web")
    path = daemon.run_dir / "sessions" / "web"
    (path / "directory").mkdir()
    (path / "directory" / "file").write_text("x")
    (path / "link").symlink_to(tmp_path)
    (path / "agent.sock").unlink()
    (path / "agent.sock").symlink_to(kept)
    await daemon.controller.remove_session("web", "")
    assert not path.exists()
    assert kept.read_text() == "not the session's"


async def test_a_session_that_cannot_have_sockets_is_not_there(daemon: Daemon) -> None:
    before = descriptors()
    (daemon.run_dir / "sessions").rmdir()
    with pytest.raises(RequestError) as caught:
        await daemon.open("web")
    assert caught.value.kind is Kind.HOST
    assert daemon.host.sessions == {}
    assert descriptors() == before
    (daemon.run_dir / "sessions").mkdir(mode=0o711)
    await daemon.open("web")


@pytest.mark.parametrize("uid", [0, NOBODY])
@needs_root
async def test_sessions_come_and_go_without_a_trace(daemon: Daemon, uid: int) -> None:
    await daemon.open("first")
    await daemon.controller.remove_session("first", "")
    before = descriptors()
    for _ in range(3):
        for number in range(20):
            await daemon.controller.open_session(
                f"s{number}", BudgetRequest(memory_max_bytes=GIB), owner_uid=uid
            )
        for number in range(20):
            await daemon.controller.remove_session(f"s{number}", "")
    assert descriptors() <= before
    assert list((daemon.run_dir / "sessions").iterdir()) == []
    assert daemon.host.sessions == {}


async def test_one_session_cannot_use_up_the_daemons_connections(daemon: Daemon) -> None:
    await daemon.open("greedy")
    await daemon.open("other")
    before = descriptors()
    path = str(daemon.socket("greedy", "agent.sock"))
    greedy = []
    for _ in range(600):
        connection = socket.socket(socket.AF_UNIX)
        greedy.append(connection)
        connection.setblocking(False)
        try:
            connection.connect(path)
        except BlockingIOError:
            break
        await asyncio.sleep(0)
    try:
        limits = await daemon.agent("other").GetLimits(agent_pb2.GetLimitsRequest())
        assert limits.session == "other"
        held = descriptors() - before - len(greedy)
        assert held <= 300
    finally:
        for connection in greedy:
            connection.close()
