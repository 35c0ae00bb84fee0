"""The agent in the guest, with a shell in the place of systemd and a socket in the place of the port."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.channel import Decoder, Frame, Job, Kind, encode
from vm.guest.agent import Agent, find_disk, find_port, parse_end
from vm.tunnel import CONNECTION, PAIR, listen_on

# Starts the command as vm-command.service would, and reports its end as the unit's ExecStopPost= would.
SYSTEMCTL = """#!/bin/bash
[ "$2" = stop ] && { kill "$(cat {run}/pid)"; exit; }
(
    sh {run}/command & echo $! >{run}/pid
    wait $!; status=$?
    if [ $status -gt 128 ]; then
        echo "killed $(kill -l $((status - 128)))" >{run}/status
    else
        echo "exited $status" >{run}/status
    fi
) &
"""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exited 0\n", 0),
        ("exited 203\n", 203),
        ("killed KILL\n", 137),
        ("killed TERM\n", 143),
        ("dumped SEGV\n", 139),
        ("killed NOSUCH\n", None),
        ("exited\n", None),
        ("exited -1", None),
        ("", None),
    ],
)
def test_what_systemd_says_of_an_end_becomes_a_shells_status(text: str, status: int | None) -> None:
    assert parse_end(text) == status


class Guest:
    """An agent in a thread, and the host's end of its port."""

    def __init__(self, directory: Path) -> None:
        self.host, port = socket.socketpair()
        self.host.settimeout(30)
        self.agent = Agent(port.detach(), directory / "run", directory)
        self.thread = threading.Thread(target=self.agent.serve)
        self.thread.start()

    def do(self, *argv: str, targets: tuple[str, ...] = ()) -> None:
        environment = (("HOME", "/"), ("PATH", os.environ["PATH"]), ("GREETING", "it's me"))
        self.host.sendall(Job(argv, environment, (), targets).encode())

    def frames(self) -> Iterator[Frame]:
        decoder = Decoder()
        while data := self.host.recv(65536):
            for frame in decoder.feed(data):
                yield frame
                if frame.kind is Kind.ENDED:
                    return

    def result(self) -> tuple[bytes, bytes, int]:
        frames = list(self.frames())
        out, err = (
            b"".join(f.body for f in frames if f.kind is kind) for kind in (Kind.STDOUT, Kind.STDERR)
        )
        return out, err, int(frames[-1].body)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(SYSTEMCTL.replace("{run}", str(tmp_path / "run")))
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    guest = Guest(tmp_path)
    yield guest
    guest.thread.join(30)
    assert not guest.thread.is_alive()
    guest.host.close()
    os.close(guest.agent.port)
    for pipe in guest.agent.pipes.values():
        os.close(pipe)


def test_a_job_runs_and_its_output_and_status_come_back_apart(guest: Guest) -> None:
    guest.do("sh", "-c", 'echo "$GREETING $1"; pwd; echo wrong >&2; exit 7', "sh", "a  b\n'c'")
    assert guest.result() == (b"it's me a  b\n'c'\n/\n", b"wrong\n", 7)


def test_all_output_arrives_before_the_end_however_much_it_is(guest: Guest) -> None:
    guest.do("sh", "-c", "head -c 5000000 /dev/zero; echo last >&2")
    assert guest.result() == (bytes(5000000), b"last\n", 0)


def test_a_command_that_does_not_exist_ends_like_in_a_shell(guest: Guest) -> None:
    guest.do("no-such-command")
    out, err, status = guest.result()
    assert (out, status) == (b"", 127)
    assert b"no-such-command: not found" in err


def test_a_command_may_open_its_stdout_by_name_and_has_no_stdin(guest: Guest) -> None:
    guest.do("sh", "-c", "cat; echo one >/dev/stdout; echo two >/proc/self/fd/2")
    assert guest.result() == (b"one\n", b"two\n", 0)


def test_a_stop_from_the_host_reaches_the_command(guest: Guest) -> None:
    guest.do("sh", "-c", "echo ready; exec sleep 60")
    frames = guest.frames()
    assert next(frame for frame in frames if frame.kind is Kind.STDOUT).body == b"ready\n"
    guest.host.sendall(encode(Kind.STOP))
    assert list(frames)[-1] == Frame(Kind.ENDED, b"143")


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_port(tmp_path) is None
    for device, name in (("vport0p1", "org.other"), ("vport0p2", "agentcgroup.vm")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "name").write_text(f"{name}\n")
    assert find_port(tmp_path) == Path("/dev/vport0p2")


def test_a_disk_is_found_by_its_namespace_number(tmp_path: Path) -> None:
    for device, number in (("nvme0n1", 5), ("nvme0n2", 4), ("nvme0n1p1", None)):
        (tmp_path / device).mkdir()
        if number is not None:
            (tmp_path / device / "nsid").write_text(f"{number}\n")
    assert find_disk(4, tmp_path, tmp_path) == tmp_path / "nvme0n2"
    assert find_disk(6, tmp_path, tmp_path) is None


def test_the_host_can_connect_to_what_the_job_names(guest: Guest, tmp_path: Path) -> None:
    address = str(tmp_path / "server.sock")
    with listen_on(address) as listener:
        guest.do(
            "sh", "-c", "until test -e $0; do sleep 0.05; done", str(tmp_path / "go"), targets=(address,)
        )
        guest.host.sendall(
            encode(Kind.OPEN, PAIR.pack(5, 0)) + encode(Kind.DATA, CONNECTION.pack(5) + b"hello")
        )
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(30)
            assert accepted.recv(100) == b"hello"
            accepted.sendall(b"back")
        frames = guest.frames()
        answer = next(frame for frame in frames if frame.kind is Kind.DATA)
        assert answer.body == CONNECTION.pack(5) + b"back"
        (tmp_path / "go").touch()
        assert [frame.kind for frame in frames][-1] is Kind.ENDED
