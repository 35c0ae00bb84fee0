"""The tunnel between host and guest, both ends in one process: real sockets outside, a queue of frames in between."""

import contextlib
import os
import selectors
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.channel import ChannelError, Frame, Kind
from vm.tunnel import WINDOW_BYTES, Forward, ListenError, Tunnel, connect_to, listen_on, parse_forward


class Pair:
    """A host's and a guest's end, and what is on its way between them."""

    def __init__(self, forwards: list[Forward]) -> None:
        self.selector = selectors.DefaultSelector()
        self.to_guest: deque[Frame] = deque()
        self.to_host: deque[Frame] = deque()
        self.host = Tunnel(self.selector, lambda kind, body: self.to_guest.append(Frame(kind, body)))
        self.guest = Tunnel(self.selector, lambda kind, body: self.to_host.append(Frame(kind, body)))
        self.targets = [forward.remote for forward in forwards]
        self.most_in_flight = 0
        self.host.listen(forwards)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            for key, mask in self.selector.select(0.01):
                key.data(mask)
            in_flight = sum(len(frame.body) for frame in self.to_guest)
            self.most_in_flight = max(self.most_in_flight, in_flight)
            while self.to_guest:
                self.guest.take(self.to_guest.popleft(), self.targets)
            while self.to_host:
                self.host.take(self.to_host.popleft())

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self.host.close()
        self.guest.close()
        self.selector.close()


@contextlib.contextmanager
def paired(*forwards: Forward) -> Iterator[Pair]:
    pair = Pair(list(forwards))
    try:
        yield pair
    finally:
        pair.close()


@contextlib.contextmanager
def serving(address: str, serve: str) -> Iterator[None]:
    """A server at ``address`` that answers one connection: "echo" sends back what it gets, "late" reads late."""
    listener = listen_on(address)

    def run() -> None:
        accepted, _ = listener.accept()
        with accepted:
            if serve == "late":
                late.wait(60)
            with contextlib.suppress(ConnectionError):
                while data := accepted.recv(65536):
                    accepted.sendall(data)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        listener.close()


late = threading.Event()


def exchange(address: str, data: bytes) -> bytes:
    """Send everything, shut down, read everything."""
    with connect_to(address) as client:
        client.settimeout(20)

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while chunk := client.recv(65536):
            received += chunk
        sender.join()
        return bytes(received)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_unix_socket_leads_to_a_unix_socket(tmp_path: Path) -> None:
    local, remote = str(tmp_path / "local.sock"), str(tmp_path / "remote.sock")
    with serving(remote, "echo"), paired(Forward(local, remote)):
        assert exchange(local, b"hello") == b"hello"


def test_tcp_leads_to_tcp() -> None:
    local, remote = free_address(), free_address()
    with serving(remote, "echo"), paired(Forward(local, remote)):
        assert exchange(local, b"hello") == b"hello"


def test_much_data_arrives_whole_and_in_order(tmp_path: Path) -> None:
    local, remote = str(tmp_path / "local.sock"), str(tmp_path / "remote.sock")
    data = os.urandom(5 * 1024 * 1024)
    with serving(remote, "echo"), paired(Forward(local, remote)):
        assert exchange(local, data) == data


def test_a_reader_that_does_not_read_holds_up_its_sender_and_nobody_else(tmp_path: Path) -> None:
    late.clear()
    slow, fast = str(tmp_path / "slow.sock"), str(tmp_path / "fast.sock")
    remote_slow, remote_fast = str(tmp_path / "rs.sock"), str(tmp_path / "rf.sock")
    with (
        serving(remote_slow, "late"),
        serving(remote_fast, "echo"),
        paired(Forward(slow, remote_slow), Forward(fast, remote_fast)) as pair,
        connect_to(slow) as stuck,
    ):
        stuck.settimeout(0.2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 50 * 1024 * 1024:
                sent += stuck.send(b"x" * 65536)
        assert exchange(fast, b"hello") == b"hello"
        # What the kernel's own socket buffers took comes on top of the window.
        assert sent < 8 * 1024 * 1024
        assert pair.most_in_flight <= 2 * WINDOW_BYTES
        late.set()


def test_where_nobody_listens_the_connection_is_closed(tmp_path: Path) -> None:
    local = str(tmp_path / "local.sock")
    with paired(Forward(local, str(tmp_path / "nobody.sock"))), connect_to(local) as client:
        client.settimeout(60)
        assert client.recv(1) == b""


def test_a_local_unix_socket_is_its_owners_alone_and_goes_with_the_tunnel(tmp_path: Path) -> None:
    local = tmp_path / "local.sock"
    listen_on(str(local)).close()
    with paired(Forward(str(local), "127.0.0.1:1")):
        assert stat.S_IMODE(local.stat().st_mode) == 0o600
    assert not local.exists()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    with pytest.raises(OSError, match="in use"):
        listen_on(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_local_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, selectors.DefaultSelector() as selector:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=address):
            Tunnel(selector, lambda kind, body: None).listen([Forward(address, "127.0.0.1:1")])


def test_frames_for_a_connection_that_is_gone_are_passed_over() -> None:
    with selectors.DefaultSelector() as selector:
        Tunnel(selector, lambda kind, body: None).take(Frame(Kind.DATA, b"\0\0\0\7data"))


def test_a_frame_without_a_connection_is_an_error() -> None:
    with selectors.DefaultSelector() as selector, pytest.raises(ChannelError, match="DATA of 2 bytes"):
        Tunnel(selector, lambda kind, body: None).take(Frame(Kind.DATA, b"\0\0"))


def test_an_unknown_target_is_reset() -> None:
    sent: list[Kind] = []
    with selectors.DefaultSelector() as selector:
        tunnel = Tunnel(selector, lambda kind, body: sent.append(kind))
        tunnel.take(Frame(Kind.OPEN, b"\0\0\0\1\0\0\0\7"), ["127.0.0.1:1"])
    assert sent == [Kind.RESET]


def test_forwards_are_read_as_they_are_written() -> None:
    assert parse_forward("127.0.0.1:9464=127.0.0.1:80") == Forward("127.0.0.1:9464", "127.0.0.1:80")
    assert parse_forward("build/x.sock=/run/x.sock") == Forward("build/x.sock", "/run/x.sock")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9464",
        "127.0.0.1:9464",
        "localhost=1:2",
        "127.0.0.1:0=1:2",
        "1:2=127.0.0.1:70000",
        f"/{'x' * 120}=1:2",
    ],
)
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is|has"):
        parse_forward(text)


def test_time_is_not_wasted_on_an_idle_connection(tmp_path: Path) -> None:
    local, remote = str(tmp_path / "local.sock"), str(tmp_path / "remote.sock")
    with serving(remote, "echo"), paired(Forward(local, remote)) as pair, connect_to(local) as client:
        client.settimeout(60)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        deadline = time.monotonic() + 60
        # Both ends forget a connection that is shut both ways.
        while len(pair.selector.get_map()) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(pair.selector.get_map()) == 1
