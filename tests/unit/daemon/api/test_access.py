"""api/access.py: the kernel's word for who is there."""

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from agentcgroup.daemon.api import access
from agentcgroup.daemon.api.access import Peer, check_may_place, peer_of, peer_pidfd, process_of
from agentcgroup.daemon.errors import Kind, RequestError

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A live process that ends when its standard input closes."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """One end of a connection whose other end is this process, too."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here


def test_the_peer_is_who_connected(connection: socket.socket) -> None:
    assert peer_of(connection) == Peer(os.getpid(), os.geteuid(), os.getegid())


def test_the_peers_pidfd_is_of_the_peer(connection: socket.socket) -> None:
    pidfd = peer_pidfd(connection, peer_of(connection))
    try:
        assert process_of(pidfd) == os.getpid()
        assert not os.get_inheritable(pidfd)
    finally:
        os.close(pidfd)


def test_before_6_5_the_peer_is_opened_by_its_pid(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A number that no kernel has: getsockopt says ENOPROTOOPT, as an old kernel does for the real one.
    monkeypatch.setattr(access, "_SO_PEERPIDFD", 9999)
    test_the_peers_pidfd_is_of_the_peer(connection)


def test_before_6_5_a_peer_that_hung_up_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_SO_PEERPIDFD", 9999)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here:
        there.close()
        with pytest.raises(RequestError) as caught:
            peer_pidfd(here, peer_of(here))
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("option", [77, 9999])
def test_a_peer_that_has_ended_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str], option: int
) -> None:
    monkeypatch.setattr(access, "_SO_PEERPIDFD", option)
    path = os.path.join(tmp_path, "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        knock = (
            "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])"
        )
        subprocess.run(["python3", "-S", "-E", "-c", knock, path], check=True)
        connection, _ = listener.accept()
    with connection:
        try:
            pidfd = peer_pidfd(connection, peer_of(connection))
        except RequestError as error:
            assert error.kind is Kind.NOT_FOUND
        else:
            # From 6.16 on the kernel keeps a pidfd of a peer that has been waited for; it names no process.
            with pytest.raises(RequestError) as caught:
                process_of(pidfd)
            os.close(pidfd)
            assert caught.value.kind is Kind.NOT_FOUND


def test_a_file_is_no_process() -> None:
    with open("/dev/null", "rb") as file, pytest.raises(RequestError) as caught:
        process_of(file.fileno())
    assert caught.value.kind is Kind.INVALID
    assert "pidfd_open" in caught.value.next_step


def test_a_pidfd_of_an_ended_process_names_none(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)
    assert process_of(pidfd) == child.pid
    child.communicate()
    try:
        with pytest.raises(RequestError) as caught:
            process_of(pidfd)
    finally:
        os.close(pidfd)
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("pid", [1, os.getpid()])
def test_init_and_the_daemon_are_placed_by_nobody(pid: int) -> None:
    with pytest.raises(RequestError) as caught:
        check_may_place(Peer(5, 0, 0), pid)
    assert caught.value.kind is Kind.DENIED


def test_one_places_ones_own_processes(child: subprocess.Popen[bytes]) -> None:
    check_may_place(Peer(child.pid, NOBODY, NOBODY), child.pid)
    check_may_place(Peer(5, os.getuid(), 0), child.pid)


def test_one_does_not_place_another_users_process(child: subprocess.Popen[bytes]) -> None:
    with pytest.raises(RequestError) as caught:
        check_may_place(Peer(5, NOBODY, NOBODY), child.pid)
    assert caught.value.kind is Kind.DENIED


def test_nobody_places_what_has_ended(child: subprocess.Popen[bytes]) -> None:
    child.communicate()
    with pytest.raises(RequestError) as caught:
        check_may_place(Peer(5, NOBODY, NOBODY), child.pid)
    assert caught.value.kind is Kind.NOT_FOUND
