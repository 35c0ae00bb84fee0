"""How a run ends, with real sockets and processes and a script in QEMU's place."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vm import guestrun
from vm.channel import Job
from vm.guestrun import GuestRun
from vm.outcome import ExitStatus, SetupError
from vm.qemu import Accelerator, Machine
from vm.tunnel import Forward, connect_to

REPOSITORY = Path(__file__).resolve().parents[3]
Play = Callable[..., int]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Return a function that runs a guest played by a script and returns the status."""
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m tests.unit.vm.scripted_qemu "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def run(script: str, timeout_s: float = 60.0, forwards: Sequence[Forward] = ()) -> int:
        monkeypatch.setenv("SCRIPT", script)
        machine = Machine(Accelerator.TCG, 1, "64M", tmp_path / "kernel", None, ())
        job = Job(("true",), (), ())
        return GuestRun(machine, job, timeout_s, tmp_path / "console.log", forwards).run(tmp_path)

    return run


def test_output_goes_through_and_the_commands_status_is_ours(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    status = play(
        "hear(); say('STARTED', b'9.5'); say('STDOUT', b'out'); say('STDERR', b'err'); say('ENDED', b'7'); wait()"
    )
    assert status == 7
    assert capfd.readouterr() == ("out", "err")


def test_a_panic_has_its_own_status_and_its_last_words_are_shown(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    status = play(
        "hear(); say('STARTED', b'9.5'); console.sendall(b'[1] Kernel panic - not syncing: sysrq\\r\\n');"
        "console.sendall(b'[1] trace\\r\\n'); sys.exit()"
    )
    assert status == ExitStatus.PANIC
    said = capfd.readouterr().err
    assert "panicked (status 240)" in said
    assert "    [1] Kernel panic - not syncing: sysrq\n    [1] trace\n" in said


def test_a_guest_that_goes_away_is_lost(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    status = play("hear(); say('STARTED', b'9.5'); console.sendall(b'reboot: Power down'); sys.exit()")
    assert status == ExitStatus.GUEST_LOST
    assert "reboot: Power down" in capfd.readouterr().err


def test_a_guest_that_says_why_it_goes_is_quoted(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    assert play("say('PROBLEM', b'no disk'); console.sendall(b'.'); sys.exit()") == ExitStatus.GUEST_LOST
    assert "the guest said: no disk" in capfd.readouterr().err


def test_a_guest_that_talks_nonsense_is_lost(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    assert play("say('JOB', b'me'); console.sendall(b'.'); sys.exit()") == ExitStatus.GUEST_LOST
    assert "out of step" in capfd.readouterr().err


def test_a_command_that_lasts_too_long_is_asked_to_stop(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    # It obeys: what it says while stopping still arrives, and the status is that of a timeout.
    status = play(
        "hear(); say('STARTED', b'9.5'); assert hear().kind.name == 'STOP'; say('STDOUT', b'saved');"
        "say('ENDED', b'143'); wait()",
        timeout_s=3.0,
    )
    assert status == ExitStatus.TIMEOUT
    assert capfd.readouterr().out == "saved"


def test_a_guest_that_hangs_is_killed(
    play: Play, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vm.guestrun.STOP_GRACE_S", 0.2)
    assert play("hear(); say('STARTED', b'9.5'); wait()", timeout_s=3.0) == ExitStatus.TIMEOUT
    assert "while its command ran" in capfd.readouterr().err


def test_a_guest_that_never_comes_up_is_killed(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    assert play("console.sendall(b'stuck here'); wait()", timeout_s=3.0) == ExitStatus.TIMEOUT
    said = capfd.readouterr().err
    assert "before its command had started" in said
    assert "stuck here" in said


def test_a_guest_that_takes_too_long_to_come_up_is_not_given_all_the_time_of_its_command(
    play: Play, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guestrun, "BOOT_TIMEOUT_S", 1.0)
    assert play("wait()", timeout_s=1000.0) == ExitStatus.TIMEOUT
    assert "after 1 s before its command had started" in capfd.readouterr().err


def test_a_qemu_that_does_not_start_is_a_failed_set_up(play: Play) -> None:
    with pytest.raises(SetupError, match="cannot allocate memory"):
        play("sys.exit('cannot allocate memory')")


def send_when(path: Path, numbers: tuple[int, ...]) -> threading.Thread:
    """Send us signals one after the other, each when ``path`` has one line more."""

    def watch() -> None:
        deadline = time.monotonic() + 30
        for count, number in enumerate(numbers, 1):
            while not (path.exists() and len(path.read_text().splitlines()) >= count):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_an_interrupt_stops_the_guest_in_order(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    thread = send_when(tmp_path / "mark", (signal.SIGINT,))
    status = play(
        "hear(); say('STARTED', b'9.5'); print('up', file=open(os.environ['MARK'], 'a')); assert hear().kind.name == 'STOP';"
        "print('stopped', file=open(os.environ['MARK'], 'a')); say('ENDED', b'0'); wait()"
    )
    thread.join()
    assert status == 128 + signal.SIGINT
    assert (tmp_path / "mark").read_text() == "up\nstopped\n"


def test_a_second_interrupt_does_not_wait(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    thread = send_when(tmp_path / "mark", (signal.SIGINT, signal.SIGINT))
    status = play(
        "hear(); say('STARTED', b'9.5'); print('up', file=open(os.environ['MARK'], 'a')); hear();"
        "print('deaf', file=open(os.environ['MARK'], 'a')); wait()"
    )
    thread.join()
    assert status == 128 + signal.SIGINT


def test_nothing_is_left_running(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "pid"))
    play("print(os.getpid(), file=open(os.environ['MARK'], 'w')); say('ENDED', b'0'); wait()")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_what_connects_to_a_forward_talks_to_the_guest(play: Play, tmp_path: Path) -> None:
    local = tmp_path / "local.sock"
    heard: list[bytes] = []

    def talk() -> None:
        deadline = time.monotonic() + 30
        while not local.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with connect_to(str(local)) as client:
            client.sendall(b"question")
            heard.append(client.recv(100))

    thread = threading.Thread(target=talk)
    thread.start()
    status = play(
        "hear(); say('STARTED', b'9.5'); assert hear().kind.name == 'OPEN'; asked = hear().body;"
        "assert asked[4:] == b'question', asked; say('DATA', asked[:4] + b'answer');"
        "[None for _ in iter(lambda: hear().kind.name, 'SHUT')]; say('ENDED', b'0'); wait()",
        forwards=[Forward(str(local), "/run/remote.sock")],
    )
    thread.join(30)

    assert status == 0
    assert heard == [b"answer"]
    assert not local.exists()


def test_a_forward_that_cannot_listen_fails_before_anything_boots(play: Play, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(SetupError, match=r"cannot listen on .*/taken: Address already in use\. Next step"):
        play("sys.exit('booted')", forwards=[Forward(str(tmp_path / "taken"), "/run/remote.sock")])
